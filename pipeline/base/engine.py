"""Running independent tasks on this machine's cores.

Threads, because every heavy step (compiled kernels, Arrow, hashing, file I/O) runs without the
interpreter's lock, and threads share one copy of the window's integers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Monitor = Callable[[int], None]
"""What a task calls now and then with the units of work done since the last call; it may raise to end the task."""


class Cancellation(Exception):
    """Raised inside a task after another one failed or the run was interrupted."""


class LocalEngine:
    """A pool of threads; results come in the order of the items, whatever finished first."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="tightpack")
        self._stop = Event()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in order, with a bounded number of tasks ahead of the one that is awaited."""
        return map_ahead(self._pool, function, items, 2 * self.num_workers)

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """A task on its own, whose caller bounds how many there are."""
        return self._pool.submit(function, item)

    def monitor(self, advance: Callable[[int], object]) -> Monitor:
        """What tells `advance` of a task's work, and ends the task once the run is ending."""

        def watch(units: int) -> None:
            advance(units)
            self.checkpoint()

        return watch

    def checkpoint(self) -> None:
        """Raise `Cancellation` once the run is ending; long tasks call it now and then."""
        if self._stop.is_set():
            raise Cancellation


def map_ahead(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results in order, with so many tasks ahead of the one that is awaited."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon:")), 0)
    except OSError:
        return 0
