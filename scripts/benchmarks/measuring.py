"""What a process or a call costs: seconds by the wall and of CPU, and anonymous memory; ways that take turns.

Ratios are taken within a round, so that a machine that slows down slows both sides. Every figure is a median with the
smallest and the largest beside it. CPU seconds count all cores and every process that was started and ended.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Spread = dict[str, float]
"""Smallest, middle and largest: min, median, max."""

Case = dict[str, Any]
"""What was measured of one thing: `facts`, and of each way its costs and how many times those of the first they are."""

MEASURES = ("seconds", "cpu_seconds", "anonymous_gb")
"""What a cost has of each."""

SAMPLED_SECONDS = 0.02


_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 95 %, two-sided, for 1 to 10 degrees of freedom."""


class FailedError(Exception):
    """A process that was to be measured failed, or something that it needs is not there."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was spent once."""

    seconds: float
    cpu_seconds: float | None
    """None where it cannot be told from that of other work."""

    anonymous_gb: float | None = None
    """Peak of the anonymous memory of a process and its descendants together; None for a call in this process."""

    told: str = ""
    """What the process wrote to its output."""

    def plus(self, other: Cost) -> Cost:
        """Both, one after the other."""
        cpu = None if self.cpu_seconds is None or other.cpu_seconds is None else self.cpu_seconds + other.cpu_seconds
        peaks = [each.anonymous_gb for each in (self, other) if each.anonymous_gb is not None]
        return Cost(seconds=self.seconds + other.seconds, cpu_seconds=cpu, anonymous_gb=max(peaks, default=None))


def of_call(function: Callable[[], object]) -> Cost:
    """A call in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Cost(seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - cpu)


def of_process(
    command: Sequence[object], environment: Mapping[str, str] | None = None, most_bytes: int | None = None
) -> Cost:
    """A process that must succeed.

    most_bytes: what it, and each of its descendants, may have of private writable memory (RLIMIT_DATA).
    Raises `FailedError` with the end of what it wrote to stderr.
    """
    called = [str(word) for word in command]

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        there = _environment(environment)
        process = subprocess.Popen(called, stdout=out, stderr=err, env=there, preexec_fn=limit)  # noqa: PLW1509
        with _Watch(process.pid) as watch:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            err.seek(0)
            told = err.read().decode(errors="replace")[-2000:]
            raise FailedError(f"{' '.join(called)[:300]} ended with {process.returncode}:\n{told}")
        out.seek(0)
        told = out.read().decode()
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(seconds=seconds, cpu_seconds=cpu, anonymous_gb=watch.peak_kb * 1024 / 1e9, told=told)


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Ours, in which modules are compiled once: installed peers are compiled already."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | dict(more or {})


class _Watch:
    """Samples the anonymous memory of a process and its descendants while the block runs."""

    def __init__(self, pid: int) -> None:
        self.peak_kb = 0
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLED_SECONDS):
            self.peak_kb = max(self.peak_kb, sum(_anonymous_kb(pid) for pid in _family(self._pid)))


def _family(pid: int) -> Iterator[int]:
    """A process and its descendants, whichever of their threads started them."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = children.read_text(encoding="ascii").split()
        except OSError:  # it ended
            continue
        for child in pids:
            yield from _family(int(child))


def _anonymous_kb(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("RssAnon")), 0)
    except OSError:  # it ended
        return 0


class Others:
    """What others take of this machine while the block runs."""

    share = 0.0
    """Of the time of all cores, as a fraction; the kernel's own work for the disk is among it."""

    def __enter__(self) -> Others:
        self._wall, self._busy, self._ours = time.monotonic(), _busy_seconds(), _our_seconds()
        return self

    def __exit__(self, *exception: object) -> None:
        spent = _busy_seconds() - self._busy - (_our_seconds() - self._ours)
        self.share = max(0.0, spent / (time.monotonic() - self._wall) / (os.cpu_count() or 1))


def _busy_seconds() -> float:
    """Of all cores since the machine started: everything but idling and waiting for the disk."""
    ticks = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    return sum(int(each) for at, each in enumerate(ticks) if at not in (3, 4)) / os.sysconf("SC_CLK_TCK")


def _our_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in usage)


def in_turn(ways: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """The costs of each way, one a round; every other round goes through them backwards."""
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            costs[name].append(ways[name]())
    return costs


def case(costs: Mapping[str, Sequence[Cost]], **facts: object) -> Case:
    """What was measured, as it is kept; ratios are to the first way, round by round."""
    first = next(iter(costs.values()))
    ways, times = {}, {}
    for name, of_way in costs.items():
        ways[name] = {
            measure: spread(values) for measure in MEASURES if None not in (values := _values(of_way, measure))
        }
        if of_way is not first:
            times[name] = {
                measure: spread([one / base for one, base in zip(_values(of_way, measure), bases, strict=True)])
                for measure in ways[name]
                if all(bases := _values(first, measure))
            }
    return {"facts": facts, "ways": ways, "times": times}


def _values(costs: Sequence[Cost], measure: str) -> list[Any]:
    return [getattr(cost, measure) for cost in costs]


def spread(values: Sequence[float]) -> Spread:
    """Smallest, middle and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """The exponent of a power law through points by least squares of logarithms, with its interval of 95 %.

    Sizes may come several times; at least three points. Raises `ValueError` for fewer.
    """
    freedom = len(sizes) - 2
    if freedom < 1:
        raise ValueError("an exponent with an interval needs at least three points")
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(values, np.float64))
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    error = math.sqrt(float(((y - slope * x) ** 2).sum()) / freedom / float(x @ x))
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.7 / freedom
    return {"exponent": slope, "low": slope - t * error, "high": slope + t * error}
