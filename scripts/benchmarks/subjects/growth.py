"""How time and memory grow with the number of samples, as the exponent b of a * samples**b, with its interval."""

from __future__ import annotations

from typing import Any

from benchmarks.inputs import short_lengths, write_arrow, write_parquet
from benchmarks.measuring import Case, Cost, case, exponent, of_call
from benchmarks.parts import Part, Setting, folder_in
from benchmarks.subjects.job import Jobs
from benchmarks.subjects.planning import request_of
from strategies import find

COUNTS = (1_000_000, 2_500_000, 7_000_000, 20_000_000)
"""100 tokens each on average."""


def _case_of(by_count: dict[int, list[Cost]], **facts: object) -> Case:
    """The sizes as ways, and the exponents of their costs over all runs."""
    points = [(count, cost) for count, costs in by_count.items() for cost in costs]
    sizes = [count for count, _ in points]
    exponents = {
        "seconds": exponent(sizes, [cost.seconds for _, cost in points]),
        "cpu_seconds": exponent(sizes, [cost.cpu_seconds or 0 for _, cost in points]),
    }
    if all(cost.anonymous_gb for _, cost in points):
        exponents["anonymous_gb"] = exponent(sizes, [cost.anonymous_gb or 0 for _, cost in points])
    costs: dict[str, Any] = {f"{count:,} samples": of_count for count, of_count in by_count.items()}
    return {**case(costs, **facts), "exponents": exponents}


def _of_jobs(setting: Setting, rounds: int, form: str) -> Case:
    by_count: dict[int, list[Cost]] = {}
    for count in map(setting.samples, COUNTS):  # one after the other, for two do not fit on the disk
        with folder_in(setting.disk) as folder:
            jobs = Jobs(folder, 1000, is_synced=True)
            write = write_parquet if form == "parquet" else write_arrow
            source: Any = write(folder / "in", short_lengths(count))
            source = f"{source}/*.parquet" if form == "parquet" else source
            if not by_count:
                jobs.pack(source)  # compiles
            by_count[count] = [jobs.pack(source) for _ in range(rounds)]
    return _case_of(by_count, tokens_a_sample=100)


def arrow(setting: Setting, rounds: int) -> dict[str, Case]:
    """The whole job from Arrow on disk, fsynced; 41 GB of disk at the largest size."""
    return {"whole job from Arrow": _of_jobs(setting, rounds, "arrow")}


def parquet(setting: Setting, rounds: int) -> dict[str, Case]:
    """The whole job from one file of parquet on disk, fsynced; 36 GB of disk at the largest size."""
    return {"whole job from parquet": _of_jobs(setting, rounds, "parquet")}


def plan(setting: Setting, rounds: int) -> dict[str, Case]:
    """Best-fit-decreasing alone, all samples in one plan."""
    strategy = find("best-fit-decreasing")
    by_count: dict[int, list[Cost]] = {}
    requests = {count: request_of(strategy, short_lengths(count)) for count in map(setting.samples, COUNTS)}
    strategy.place(requests[min(requests)])
    for _ in range(rounds):
        for count, request in requests.items():
            by_count.setdefault(count, []).append(of_call(lambda request=request: strategy.place(request)))  # type: ignore[misc]
    return {"plan": _case_of(by_count, tokens_a_sample=100)}


PARTS = (
    Part(name="plan", measure=plan, rounds=5, minutes=0.5),
    Part(name="parquet", measure=parquet, rounds=2, minutes=15),
    Part(name="arrow", measure=arrow, rounds=2, minutes=12),
)
