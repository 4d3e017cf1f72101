"""The machine crashes anywhere in a run, and what was not synced is lost or reordered: what is published is whole, and
the same command gives the same bytes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from pipeline.base.storage import Step, intercepted
from tests.conftest import Run
from tests.pipeline.crashing.jobs import NAMES, Job, Trial, first_trial, unless_it_swaps
from tests.pipeline.crashing.replay import Model, recorded


def crashes(name: str, jobs: dict[str, Job], tmp_path: Path, run: Run, *, each: int, states: int) -> dict[str, int]:
    """Crash after every `each`-th step, into so many states; returns how often a reader then found what."""
    first = first_trial(jobs[name], tmp_path, run)
    trial = first.at(tmp_path / "recorded")
    before = Model(trial.folder)
    steps: list[Step] = []
    with intercepted(unless_it_swaps(trial.job, recorded(steps))):
        assert run(*trial.job.arguments(trial.folder)).code == 0
    found: dict[str, int] = {}
    draws = random.Random(0)
    for at, step in enumerate(steps):
        before.apply(step)
        for _ in range(states if at % each == 0 or (at > len(steps) * 3 // 4 and step.operation != "remove") else 0):
            after = Trial(first.job, tmp_path / "crashed", first.new, first.old)
            before.crash(draws, after.folder)
            published = after.published()
            found[published] = found.get(published, 0) + 1
            what = f"after step {at}, {step.operation} {trial.relative(step.path)}"
            again = run(*after.job.arguments(after.folder))
            assert again.code == 0, f"{what}: {again.err}"
            assert after.published() == "new", what
            assert after.left() == [], what
            shutil.rmtree(after.folder)
    assert found["new"] and found["old" if first.old else "nothing"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replace", "tokenize"])
def test_a_crash_of_the_machine_loses_nothing(name: str, jobs: dict[str, Job], tmp_path: Path, run: Run) -> None:
    crashes(name, jobs, tmp_path, run, each=15, states=1)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_crashes(name: str, jobs: dict[str, Job], tmp_path: Path, run: Run) -> None:
    found = crashes(name, jobs, tmp_path, run, each=1, states=6)
    print(f"{name}: {sum(found.values())} crashes, after which there was {found}; 0 losses")
