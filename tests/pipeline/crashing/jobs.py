"""Small jobs that tests interrupt, and what must be so afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from pipeline.base.storage import Step, intercepted
from tests.conftest import Run
from tests.pipeline.chats import save_tokenizer
from tests.pipeline.samples import random_rows, save, table, topical, write_jsonl

NAMES = (
    *("pack", "replace", "replace by renames", "append", "relate and pack", "decode and pack"),
    *("tokenize", "tokenize and pack"),
)
PACKING = ("--max-length", "60", "--window-samples", "20", "--shard-size", "4000", "--num-workers", "1")


@dataclass(frozen=True)
class Job:
    """A command line, but for its output."""

    command: tuple[str, ...]
    replaces: tuple[str, ...] = ()
    """The command of the dataset that is there before; none where nothing is."""

    swaps: bool = True
    """Whether the file system can exchange two folders."""

    def arguments(self, folder: Path) -> list[str]:
        """With the output and a cache in a folder."""
        return [*self.command, *_places(folder)]


def _places(folder: Path) -> list[str]:
    return ["--output", str(folder / "out"), "--cache-dir", str(folder / "cache")]


def make_jobs(folder: Path) -> dict[str, Job]:
    """Jobs by name, over inputs in a folder."""
    rows = random_rows(40)
    tokens, more, parquet = save(rows, folder / "in"), save(rows[:15], folder / "more"), folder / "in.parquet"
    pq.write_table(table(rows), parquet)
    texts = [{"text": f"the {n} old trains"} if n % 5 else {"text": 7} for n in range(12)]
    lines = write_jsonl(texts, folder / "in.jsonl")
    parts = {name: datasets.Dataset.from_list(texts[1:4]) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "splits"))
    raw = ("--tokenizer", str(save_tokenizer(folder / "tokenizer")), "--num-workers", "1")
    pack = ("pack", str(tokens), *PACKING)
    replace = (*pack, "--seed", "1", "--overwrite")
    return {
        "pack": Job(pack),
        "replace": Job(replace, replaces=pack),
        "replace by renames": Job(replace, replaces=pack, swaps=False),
        "append": Job((*pack, str(more), "--append"), replaces=pack),
        "relate and pack": Job(("pack", str(topical(folder / "topics", 40)), *PACKING, "--strategy", "tfp")),
        "decode and pack": Job(("pack", str(parquet), *PACKING)),
        "tokenize": Job(("tokenize", str(lines), "--on-error", "drop", *raw)),
        "tokenize and pack": Job(("pack", str(folder / "splits"), *PACKING, *raw[:2])),
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass(frozen=True)
class Trial:
    """A job in a folder of its own, and what it must give."""

    job: Job
    folder: Path
    new: dict[str, bytes]
    old: dict[str, bytes]
    """What is there before; empty where nothing is."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def at(self, folder: Path) -> Trial:
        """The same in another folder, which is made."""
        folder.mkdir()
        if self.old:
            shutil.copytree(self.folder.parent / "old" / "out", folder / "out")
        return Trial(self.job, folder, self.new, self.old)

    def published(self) -> str:
        """Whether a reader finds the old version, the new one, or nothing; anything else fails."""
        if not self.out.exists():
            with pytest.raises(FileNotFoundError):
                datasets.load_from_disk(str(self.out))
            return "nothing"
        found = contents(self.out)
        assert found in (self.old, self.new), "what is published is a whole version"
        loaded = datasets.load_from_disk(str(self.out))
        parts = loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]
        assert all(len(part[:]) and len(part) for part in parts)
        return "new" if found == self.new else "old"

    def left(self) -> list[str]:
        """What lies beside the output."""
        return sorted(path.name for path in self.folder.iterdir() if path.name not in ("out", "cache"))

    def relative(self, path: str) -> str:
        """A step's path, as it is in every trial."""
        return path.removeprefix(f"{self.folder}/")


def first_trial(job: Job, folder: Path, run: Run) -> Trial:
    """Run a job undisturbed."""
    (folder / "first").mkdir()
    old = {}
    if job.replaces:
        assert run(*job.replaces, *_places(folder / "old")).code == 0
        old = contents(folder / "old" / "out")
        shutil.copytree(folder / "old" / "out", folder / "first" / "out")
    assert run(*job.arguments(folder / "first")).code == 0
    new = contents(folder / "first" / "out")
    assert new != old
    return Trial(job, folder / "first", new, old)


def unless_it_swaps(
    job: Job, then: Callable[[Step, Callable[[], Any]], Any]
) -> Callable[[Step, Callable[[], Any]], Any]:
    """An interceptor, before which exchanges fail as they do on NFS, if the job is to have it so."""

    def intercept(step: Step, act: Callable[[], Any]) -> Any:
        if step.operation == "exchange" and not job.swaps:
            raise OSError(22, "Invalid argument")
        return then(step, act)

    return intercept


def steps_of(trial: Trial, run: Run) -> list[Step]:
    """The steps of an undisturbed run."""
    steps: list[Step] = []

    def note(step: Step, act: Callable[[], Any]) -> Any:
        steps.append(step)
        return act()

    with intercepted(unless_it_swaps(trial.job, note)):
        assert run(*trial.job.arguments(trial.folder)).code == 0
    return steps
