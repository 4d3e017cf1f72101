"""The results as tables in Markdown: what docs/performance.md has of each subject, and the bars to be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import Spread
from benchmarks.results import RESULTS, parts_in, path_of

CORES = 2
"""Of the machine whose results the documents show."""

LOADED = 0.15
"""The share of the machine that others took while a part was measured, from which on its figures are called rough."""

_FACTS = {"samples", "tokens", "packs", "lower_bound", "rows", "input_gb", "output_gb", "cap_gb", "gb_of_text"}
"""The facts that are shown under a table, where they are single numbers."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in lines)


def table_of_part(part: dict[str, Any]) -> str:
    """The costs of all cases of a part, ways beside each other, and what they were measured on."""
    rows = [row for name, case in part["cases"].items() if case["ways"] for row in _rows(name, case)]
    measured = part["measured"]
    header = ("", "way", "seconds", "CPU seconds", "memory, GB", "times the first", "of its CPU")
    filled = [column for column in range(len(header)) if column < 2 or any(row[column] for row in rows)]
    picked = [[row[column] for column in filled] for row in (header, *rows)]
    told = [table(picked[0], picked[1:])] if rows else []
    return "\n\n".join([*told, *_exponents(part["cases"]), *_facts(part["cases"]), _conditions(measured)])


def subject(name: str, folder: Path = RESULTS) -> str:
    """The tables of all parts of a subject that were measured."""
    parts = parts_in(path_of(name, folder, CORES))
    return "\n\n".join(f"**{part}**\n\n{table_of_part(figures)}" for part, figures in parts.items())


def _rows(name: str, case: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for number, (way, costs) in enumerate(case["ways"].items()):
        times = case["times"].get(way, {})
        yield (
            "" if number else name,
            way,
            *(_spread(costs.get(measure)) for measure in ("seconds", "cpu_seconds", "anonymous_gb")),
            *(_spread(times.get(measure)) for measure in ("seconds", "cpu_seconds")),
        )


def _spread(values: Spread | None) -> str:
    """A median, with what lies round it."""
    if values is None:
        return ""
    low, middle, high = (significant(values[name]) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"


def significant(value: float) -> str:
    """Three digits of it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.2g}"


def _exponents(cases: dict[str, Any]) -> list[str]:
    rows = []
    for name, case in cases.items():
        for measure, found in case.get("exponents", {}).items():
            figures = (f"{found[end]:.3f}" for end in ("exponent", "low", "high"))
            rows.append((name, measure.replace("_", " "), *figures))
    return [table(("", "of", "exponent", "from", "to"), rows)] if rows else []


def _facts(cases: dict[str, Any]) -> list[str]:
    rows = []
    for name, case in cases.items():
        shown = {key: value for key, value in case["facts"].items() if key in _FACTS and _is_shown(value, name)}
        if shown:
            cells = (f"{key.replace('_', ' ')} {_number(value)}" for key, value in shown.items())
            rows.append(f"{name}: {', '.join(cells)}.")
    return [" ".join(rows)] if rows else []


def _is_shown(value: object, name: str) -> bool:
    """Whether a fact is a number that the name of its case does not have already."""
    return isinstance(value, int | float) and f"{value:,}" not in name


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else significant(value)


def _conditions(measured: dict[str, Any]) -> str:
    """The machine, the versions and how it was measured, in words."""
    machine = measured["machine"]
    words = f"{machine['cores']} cores of an {machine['processor']} with {machine['memory_gib']:.0f} GiB"
    if rounds := measured.get("rounds"):
        words += f", {rounds} {'round' if rounds == 1 else 'rounds'}"
    if _is_rough(measured):
        words += f"; measured on a loaded machine (others took {measured['others']:.0%} of it), so that times are rough"
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    return f"<sub>{words}; {versions}.</sub>"


def _is_rough(measured: dict[str, Any]) -> bool:
    return float(measured.get("others", 0)) >= LOADED


@dataclass(frozen=True)
class Bar:
    """What a figure has to reach."""

    what: str
    must: str
    subject: str
    part: str
    figure: Callable[[dict[str, Any]], float]
    """Out of the cases of the part."""

    is_met: Callable[[float], bool]
    unit: str = " ×"


def _first(cases: dict[str, Any]) -> dict[str, Any]:
    case: dict[str, Any] = next(iter(cases.values()))
    return case


def _times(way: str, measure: str = "seconds") -> Callable[[dict[str, Any]], float]:
    """How many times the first way's cost another's is."""
    return lambda cases: float(_first(cases)["times"][way][measure]["median"])


def _of(way: str, measure: str = "seconds") -> Callable[[dict[str, Any]], float]:
    """How many times another's cost the first way's is."""
    return lambda cases: 1 / _times(way, measure)(cases)


def _slowest(cases: dict[str, Any]) -> float:
    """Of all distributions, how many times as long the fastest variant of the peer takes at the least."""
    return min(float(times["seconds"]["median"]) for case in cases.values() for times in case["times"].values())


def _more_packs(cases: dict[str, Any]) -> float:
    """The most packs that a plan has more than any variant of the peer."""
    facts = [case["facts"] for case in cases.values()]
    return float(max(each["packs"] - min(each["packs_of_lightbinpack"].values()) for each in facts))


def _memory_growth(cases: dict[str, Any]) -> float:
    """The peak of the largest number of samples, over that of the smallest."""
    peaks = [float(case["ways"]["tightpack"]["anonymous_gb"]["median"]) for case in cases.values()]
    return peaks[-1] / peaks[0]


BARS = (
    Bar("whole job from Arrow on tmpfs, against TRL's bfd over all rows and save", "≥ 11 × faster", "job", "arrow",
        _times("TRL bfd, all rows"), lambda x: x >= 11),
    Bar("the same, CPU seconds", "≥ 8 × fewer", "job", "arrow",
        _times("TRL bfd, all rows", "cpu_seconds"), lambda x: x >= 8),
    Bar("whole job from one file of parquet, against reading it alone and the job from Arrow", "≤ 1 ×", "job",
        "parquet", _of("read_table, then from Arrow"), lambda x: x <= 1),
    Bar("whole job on disk, fsynced, against `cp -r` of its output and `sync`", "≤ 1.7 ×", "job", "disk",
        _of("cp -r of the output, sync"), lambda x: x <= 1.7),
    Bar("plan of 1 M, against the fastest variant of LightBinPack, the least of four distributions", "≥ 10 × faster",
        "plan", "lightbinpack", _slowest, lambda x: x >= 10),
    Bar("packs more than the fewest of LightBinPack, the most of four distributions", "0", "plan", "lightbinpack",
        _more_packs, lambda x: x <= 0, ""),
    Bar("exponent of time, whole job from Arrow, 1 M to 20 M samples", "≤ 1.05", "growth", "arrow",
        lambda cases: float(_first(cases)["exponents"]["seconds"]["exponent"]), lambda x: x <= 1.05, ""),
    Bar("a job of ten rows, against importing numpy, pyarrow and numba", "≤ 1.3 ×", "startup", "small",
        _of("importing numpy, pyarrow, numba"), lambda x: x <= 1.3),
    Bar("one row of 8 MB in `tokenize`, against the same text in short rows", "≤ 2.6 ×", "tokenize", "long-row",
        _of("short rows"), lambda x: x <= 2.6),
    Bar("peak of anonymous memory under a cap of 2 GB, from parquet, 20 M samples against 1 M", "≤ 1.1 ×", "memory",
        "capped", _memory_growth, lambda x: x <= 1.1),
)  # fmt: skip


def bars(folder: Path = RESULTS) -> str:
    """What was measured beside what it has to reach."""
    rows = []
    for bar in BARS:
        part = parts_in(path_of(bar.subject, folder, CORES)).get(bar.part)
        try:
            value = bar.figure(part["cases"]) if part else None
        except KeyError:  # figures that are older than the suite
            value = None
        if part is None or value is None:
            rows.append((bar.what, bar.must, "not measured yet", ""))
            continue
        shown = f"{significant(value)}{bar.unit}{' (rough)' if _is_rough(part['measured']) else ''}"
        rows.append((bar.what, bar.must, shown, "yes" if bar.is_met(value) else "no"))
    return table(("measure", "must", "measured", "met"), rows)
