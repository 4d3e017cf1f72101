"""The command line of `scripts/bench`: every part of every subject, or some, each kept as soon as it is measured."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from benchmarks.measuring import FailedError, Others
from benchmarks.parts import SUBJECTS, Part, Setting, parts_of
from benchmarks.results import RESULTS, keep, machine, parts_in, path_of, versions
from benchmarks.tables import table_of_part

Chosen = tuple[str, Part]


def chosen(names: tuple[str, ...]) -> list[Chosen]:
    """The parts named by SUBJECT or SUBJECT/PART, in the suite's order; all where none is named.

    Only modules of subjects that are asked for are imported.
    """
    asked: dict[str, set[str]] = {}
    for name in names or SUBJECTS:
        subject, _, part = name.partition("/")
        if subject not in SUBJECTS:
            raise click.BadParameter(f"there is no {subject!r}, but {', '.join(SUBJECTS)}")
        known = [each.name for each in parts_of(subject)]
        if part and part not in known:
            raise click.BadParameter(f"{subject} has no {part!r}, but {', '.join(known)}")
        asked.setdefault(subject, set()).update([part] if part else known)
    return [(name, part) for name in SUBJECTS if name in asked for part in parts_of(name) if part.name in asked[name]]


def listed(parts: list[Chosen]) -> str:
    """Every part with its rounds, its minutes, and what it measures."""
    lines = []
    for subject, part in parts:
        told = (part.measure.__doc__ or "").partition("\n")[0]
        lines.append(f"{subject + '/' + part.name:<22}{part.rounds:>4} rounds {part.minutes:>5g} min  {told}")
    return "\n".join([*lines, f"about {sum(part.minutes for _, part in parts):.0f} minutes together"])


def data(name: str) -> Path | None:
    """A file below the folder of real data, if there is one."""
    folder = os.environ.get("PACKING_DATA")
    return Path(folder) / name if folder and (Path(folder) / name).exists() else None


@click.command()
@click.argument("names", nargs=-1, metavar="[SUBJECT[/PART]]...")
@click.option("--list", "is_list", is_flag=True, help="Name the parts with their rounds and minutes; measure nothing.")
@click.option("--rounds", type=click.IntRange(1), help="How often ways take turns, instead of each part's own number.")
@click.option("--scale", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Of all numbers of samples.")
@click.option("--resume", is_flag=True, help="Leave out parts that the results have from this commit, at this scale.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where the JSON files are kept.")
@click.option("--tmpfs", type=click.Path(path_type=Path), default=Path("/dev/shm/bench"), help="A folder in memory.")
@click.option("--disk", type=click.Path(path_type=Path), default=Path("bench-on-disk"), help="A folder on disk.")
@click.option("--source", type=click.Path(path_type=Path, exists=True), help="JSON lines of instructions.")
@click.option("--tokenizer", type=click.Path(path_type=Path, exists=True), help="A tokenizer.json.")
@click.option("--workers", default=len(os.sched_getaffinity(0)), help="Of our commands and of their peers.")
def main(
    names: tuple[str, ...],
    is_list: bool,
    rounds: int | None,
    scale: float,
    resume: bool,
    results: Path,
    tmpfs: Path,
    disk: Path,
    source: Path | None,
    tokenizer: Path | None,
    workers: int,
) -> None:
    """Measure SUBJECTs, or single parts of them; all where none is named.

    Each part is kept in the results as soon as it is measured. --source has rows of task, instruction, input and
    output; it and --tokenizer are those of the folder PACKING_DATA, where that is set and has them. What could not be
    measured is told at the end, with exit code 1.
    """
    parts = chosen(names)
    if is_list:
        print(listed(parts))
        return
    if scale != 1 and results == RESULTS:
        raise click.UsageError("figures at another scale are no results: name another folder with --results")
    setting = Setting(
        tmpfs=tmpfs,
        disk=disk.resolve(),
        workers=workers,
        scale=scale,
        source=source or data("superni/train.jsonl"),
        tokenizer=tokenizer or data("tokenizers/gpt2/tokenizer.json"),
    )
    failed = []
    for subject, part in parts:
        name, num_rounds = f"{subject}/{part.name}", rounds or part.rounds
        if resume and _is_there(path_of(subject, results), part.name, scale):
            print(f"{name}: there already\n", flush=True)
            continue
        try:
            _measure(subject, part, num_rounds, setting, results)
        except FailedError as error:
            print(f"{name}: not measured: {error}\n", flush=True)
            failed.append(name)
    if failed:
        print(f"not measured: {', '.join(failed)}")
        sys.exit(1)


def _is_there(path: Path, part: str, scale: float) -> bool:
    measured = parts_in(path).get(part, {}).get("measured", {})
    return bool(measured.get("versions") == versions() and measured.get("scale") == scale)


def _measure(subject: str, part: Part, rounds: int, setting: Setting, results: Path) -> None:
    """Measure a part, keep it, and print its table. Raises `FailedError`."""
    started = time.monotonic()
    with Others() as others:
        cases = part.measure(setting, rounds)
    measured = {
        "machine": machine(),
        "versions": versions(),
        "rounds": rounds,
        "scale": setting.scale,
        "others": round(others.share, 3),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    keep(subject, part.name, cases, measured, results)
    print(f"{subject}/{part.name}\n\n{table_of_part({'measured': measured, 'cases': cases})}\n", flush=True)


if __name__ == "__main__":
    main()
