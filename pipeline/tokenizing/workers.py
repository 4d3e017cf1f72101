"""Blocks of rows encoded side by side, in order: in threads, or in processes where threads would wait for each other.

Encoding itself runs without the interpreter's lock; parsing, rendering and locating turns, a quarter of the work, hold
it. By that share threads stop gaining at about four; then processes take over, each with a start and a tokenizer of
its own.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker

from pipeline.base.engine import LocalEngine, map_ahead
from pipeline.base.errors import BusyError
from pipeline.reading.decoding.raw import RawBlock
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.gathering import TreeBlock
from pipeline.tokenizing.tokenization import Tokenization

MOST_THREADS = 4
PROCESSES_FROM_BYTES = 1 << 26
"""Bytes of input from which on processes are started: less is done before they are there."""


_TURN_SECONDS = 0.02


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
        yield from _in_processes(tokenization, engine.num_workers, tasks)
        return
    waiting: deque[EncodeTask] = deque()

    def encode(task: EncodeTask) -> EncodedBlock:
        engine.checkpoint()
        return tokenization.encoder(task.format).encode(task.block)

    with _long_turns():
        for encoded_block in engine.map(encode, _remembered(tasks, waiting)):
            yield waiting.popleft(), encoded_block


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
    tokenization: Tokenization, num_workers: int, tasks: Iterable[EncodeTask]
) -> Iterator[tuple[EncodeTask, EncodedBlock]]:
    # Started anew, not forked: this process has threads.
    context = multiprocessing.get_context("spawn")
    waiting: deque[EncodeTask] = deque()
    with tempfile.NamedTemporaryFile(prefix="tightpack-tokenization-") as file:
        pickle.dump(tokenization, file)  # a pipe would make the processes start one after the other
        file.flush()
        pool = ProcessPoolExecutor(num_workers, context, _start_worker, (file.name,))
        try:
            with _interrupts_held_back():
                for _ in range(num_workers):
                    pool.submit(os.getpid)  # starts one, as long as none is idle
            for encoded_block in map_ahead(pool, _encode_in_worker, _remembered(tasks, waiting), 2 * num_workers):
                yield waiting.popleft(), encoded_block
        except BrokenProcessPool:
            raise BusyError("a worker process was killed, for memory perhaps; try fewer --num-workers") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; those started in here never see it, and end with the first."""
    resource_tracker.ensure_running()  # starting it later would let them through
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _remembered(tasks: Iterable[EncodeTask], waiting: deque[EncodeTask]) -> Iterator[EncodeTask]:
    for task in tasks:
        waiting.append(task)
        yield task


_tokenization: Tokenization  # of this worker process


def _start_worker(path: str) -> None:
    global _tokenization  # noqa: PLW0603 - the one thing that a worker process holds
    with open(path, "rb") as file:
        _tokenization = pickle.load(file)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _encode_in_worker(task: EncodeTask) -> EncodedBlock:
    return _tokenization.encoder(task.format).encode(task.block)
