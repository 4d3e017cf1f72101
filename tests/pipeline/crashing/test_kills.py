"""SIGKILL at any instant, then the same command again: the same bytes, finished tasks not redone, and no reader ever
opens anything but a whole version."""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.digests import is_whole
from pipeline.base.staging import Staging
from pipeline.base.storage import FileFacts, Step, intercepted
from tests.conftest import Run
from tests.pipeline.crashing.jobs import NAMES, Job, Trial, first_trial, steps_of, unless_it_swaps
from tests.pipeline.crashing.warm import WarmProcess


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    process = WarmProcess()
    yield process
    process.close()


def finished_files(folder: Path) -> set[str]:
    """The files of finished tasks in staging folders: those with a record of what they hold."""
    found = set()
    records = [record for staging in folder.glob(".out.staging-*") for record in Staging(staging).work.glob("*.done")]
    for record in records:
        facts = json.loads(record.read_bytes())["file"]
        part, _, rest = record.name.removesuffix(".done").partition("-")
        for file in record.parents[1].joinpath(part).rglob("*"):
            name = "-".join(file.relative_to(record.parents[1] / part).parts)
            if name == rest and is_whole(file, FileFacts(bytes=facts["bytes"], xxh3_128=facts["xxh3_128"])):
                found.add(str(file))
    return found


def check_kill(trial: Trial, warm: WarmProcess, run: Run, **moment: Any) -> tuple[str, int]:
    """Kill a run, look, run it again, and look again; returns what was published and the tasks that were finished."""
    ended = warm.run(trial.job.arguments(trial.folder), swaps=trial.job.swaps, **moment)
    assert ended in (-signal.SIGKILL, 0), f"{moment}: {ended}"
    published = trial.published()
    assert ended or published == "new"
    assert all(name == ".out.lock" or name.startswith(".out.staging-") for name in trial.left()), moment
    finished = finished_files(trial.folder) if published != "new" else set()
    created = set()

    def note(step: Step, act: Callable[[], Any]) -> Any:
        if step.operation == "create":
            created.add(re.sub(r"(\.[0-9a-f]{12})?\.part$", "", step.path))
        return act()

    with intercepted(unless_it_swaps(trial.job, note)):
        again = run(*trial.job.arguments(trial.folder))
    assert again.code == 0, f"{moment}: {again.err}"
    assert trial.published() == "new", moment
    assert trial.left() == [], moment
    assert finished & created == set(), f"{moment}: a finished task was done again"
    return published, len(finished)


def kill_at_steps(first: Trial, steps: range, folder: Path, warm: WarmProcess, run: Run) -> int:
    """Kill at each of some steps; returns how often."""
    ends = [check_kill(first.at(folder / f"step-{step}"), warm, run, step=step) for step in steps]
    assert {"new", "old" if first.old else "nothing"} <= {published for published, _ in ends}
    assert max(finished for _, finished in ends) > 0
    return len(ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replace", "replace by renames", "tokenize"])
def test_a_run_killed_at_a_step_is_resumed(
    name: str, jobs: dict[str, Job], tmp_path: Path, warm: WarmProcess, run: Run
) -> None:
    first = first_trial(jobs[name], tmp_path, run)
    number = len(steps_of(first.at(tmp_path / "steps"), run))
    kill_at_steps(first, range(3, number, number // 8), tmp_path, warm, run)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_is_resumed(
    jobs: dict[str, Job], tmp_path: Path, warm: WarmProcess, run: Run
) -> None:
    first = first_trial(jobs["replace"], tmp_path, run)
    draws = random.Random(0)
    for number in range(8):
        check_kill(first.at(tmp_path / f"{number}"), warm, run, seconds=draws.uniform(0, 0.08))


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_kills(name: str, jobs: dict[str, Job], tmp_path: Path, warm: WarmProcess, run: Run) -> None:
    first = first_trial(jobs[name], tmp_path, run)
    number = len(steps_of(first.at(tmp_path / "steps"), run))
    kills = kill_at_steps(first, range(number), tmp_path, warm, run)
    draws = random.Random(0)
    for moment in range(100):
        check_kill(first.at(tmp_path / f"{moment}"), warm, run, seconds=draws.uniform(0, 0.1))
    print(f"{name}: {kills} kills at steps, 100 at random moments, 0 losses")
