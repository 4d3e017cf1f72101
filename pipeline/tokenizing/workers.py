"""Blocks of rows encoded side by side, in order: in threads, or in processes where threads would wait for each other.

Encoding itself runs without the interpreter's lock; parsing, rendering and locating turns, a quarter of the work, hold
it. By that share threads stop gaining at about four; then processes take over, each with a start and a tokenizer of
its own.

Blocks are dealt as workers become free, and read ahead by bytes: while a long row is encoded, the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import BusyError
from pipeline.reading.decoding.raw import BLOCK_BYTES, RawBlock
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.gathering import TreeBlock
from pipeline.tokenizing.tokenization import Tokenization

MOST_THREADS = 4
PROCESSES_FROM_BYTES = 1 << 26
"""Bytes of input from which on processes are started: less is done before they are there."""


_TURN_SECONDS = 0.02

_AHEAD = 2
"""For each worker, tasks that are not done, and bytes in all for each byte of the task that is awaited."""


@dataclass(frozen=True, slots=True)
class EncodeTask:
    """A block and how to read it."""

    file: int
    """Number of its file."""

    format: Format
    block: RawBlock | TreeBlock


def encode_all(
    tokenization: Tokenization, engine: LocalEngine, tasks: Iterable[EncodeTask], num_bytes: int
) -> Iterator[tuple[EncodeTask, EncodedBlock]]:
    """Every task with its result, in order. num_bytes: of input, about."""
    if engine.num_workers > MOST_THREADS and num_bytes >= PROCESSES_FROM_BYTES:
        yield from _in_processes(tokenization, engine, tasks)
        return

    def encode(task: EncodeTask) -> EncodedBlock:
        engine.checkpoint()
        return tokenization.encoder(task.format).encode(task.block)

    with _long_turns():
        yield from dealt(engine, encode, tasks)


def dealt(
    engine: LocalEngine, encode: Callable[[EncodeTask], EncodedBlock], tasks: Iterable[EncodeTask]
) -> Iterator[tuple[EncodeTask, EncodedBlock]]:
    """Every task with its result, in order.

    Tasks are read ahead while no more than `_AHEAD` for each worker are unfinished, and while those that wait have no
    more than so many times the bytes of the one that is awaited: about what the others do meanwhile. Memory holds so
    many bytes and their results, at the most `_AHEAD` rows of the largest size for each worker.
    """
    waiting: deque[tuple[EncodeTask, Future[EncodedBlock]]] = deque()
    room = threading.Semaphore(_AHEAD * engine.num_workers)
    num_bytes = 0
    for task in tasks:
        room.acquire()
        future = engine.submit(encode, task)
        future.add_done_callback(lambda _: room.release())
        waiting.append((task, future))
        num_bytes += task.block.num_bytes
        while waiting:
            first, its_future = waiting[0]
            most = _AHEAD * engine.num_workers * max(first.block.num_bytes, BLOCK_BYTES)
            if num_bytes <= most and not its_future.done():
                break
            waiting.popleft()
            num_bytes -= first.block.num_bytes
            yield first, its_future.result()
    for task, future in waiting:
        yield task, future.result()


@contextmanager
def _long_turns() -> Iterator[None]:
    """Threads that come out of encoding interrupt the one that renders less often; see docs/decisions.md."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _in_processes(
    tokenization: Tokenization, engine: LocalEngine, tasks: Iterable[EncodeTask]
) -> Iterator[tuple[EncodeTask, EncodedBlock]]:
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def encode(task: EncodeTask) -> EncodedBlock:
        engine.checkpoint()
        worker = idle.get()
        try:
            return worker.encode(task)
        finally:
            idle.put(worker)

    workers: list[_Worker] = []
    with tempfile.NamedTemporaryFile(prefix="tightpack-tokenization-") as file:
        pickle.dump(tokenization, file)  # a pipe would make the processes start one after the other
        file.flush()
        try:
            with _signals_held_back():
                for _ in range(engine.num_workers):
                    workers.append(_Worker(file.name))
                    idle.put(workers[-1])
            yield from dealt(engine, encode, tasks)
        finally:
            for worker in workers:
                worker.end()


class _Worker:
    """A process that encodes one task at a time, and the pipe to it.

    Each has a pipe of its own, so that whoever waits for one that was killed reads the end of the pipe: processes that
    share a queue, as those of concurrent.futures, leave it locked or half-written for ever.
    """

    def __init__(self, path: str) -> None:
        context = multiprocessing.get_context("spawn")  # not forked: this process has threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, path), daemon=True)
        self._process.start()
        theirs.close()

    def encode(self, task: EncodeTask) -> EncodedBlock:
        """The result of a task; raises what encoding it raised, and `BusyError` if the process was killed."""
        try:
            self._pipe.send(task)
            result: EncodedBlock | Exception = self._pipe.recv()
        except (EOFError, OSError):
            raise BusyError("a worker process was killed, for memory perhaps; try fewer --num-workers") from None
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """Kill it: what it holds is known here, or not wanted any more."""
        self._process.kill()
        self._process.join()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal, and a scheduler's SIGTERM every one of the job; those started in
    here never see them, and end with the first, which heeds them once all are started."""
    resource_tracker.ensure_running()  # starting it later would let them through
    signals, came = (signal.SIGINT, signal.SIGTERM), deque[int]()
    # Another thread may take a signal, and Python then calls the handler in the main thread, masked or not.
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {one: signal.signal(one, lambda number, _: came.append(number)) for one in signals if is_main}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        for one, handler in handlers.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        if came:
            signal.raise_signal(came[0])


def _work(pipe: Connection, path: str) -> None:
    """Encode what comes until the parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with open(path, "rb") as file:
        tokenization: Tokenization = pickle.load(file)
    while True:
        try:
            task = pipe.recv()
            pipe.send(_encoded(tokenization, task))
        except (EOFError, OSError):
            return


def _encoded(tokenization: Tokenization, task: EncodeTask) -> EncodedBlock | Exception:
    """The result of a task, or what it raised, with where it was raised."""
    try:
        return tokenization.encoder(task.format).encode(task.block)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError("".join(traceback.format_exception_only(error)))
        return error


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
