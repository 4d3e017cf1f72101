"""Every operation on storage fails once: the exit code and the message are right, nothing is published, and the same
command then gives the same bytes."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.storage import Step, intercepted
from tests.conftest import Ended, Run
from tests.pipeline.crashing.jobs import NAMES, Job, Trial, first_trial, steps_of, unless_it_swaps

ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.ETIMEDOUT)


def run_with_fault(trial: Trial, run: Run, at: int, code: int, until: int | None = None) -> tuple[Ended, list[Step]]:
    """Run where step `at` fails, or all from there to `until`; returns those that failed as well."""
    counter = itertools.count()
    failed = []

    def fail(step: Step, act: Callable[[], Any]) -> Any:
        if at <= next(counter) < (at + 1 if until is None else until):
            failed.append(step)
            raise OSError(code, os.strerror(code))
        return act()

    with intercepted(unless_it_swaps(trial.job, fail)):
        return run(*trial.job.arguments(trial.folder)), failed


def check_fault(trial: Trial, run: Run, steps: list[Step], at: int, code: int) -> None:
    """Let one step fail, look, and run again."""
    what = f"{os.strerror(code)} at step {at}: {steps[at].operation} {trial.relative(steps[at].path)}"
    ended, (step,) = run_with_fault(trial, run, at, code)
    assert step.operation == steps[at].operation, what
    assert ended.code == expected_code(trial, steps, at, code), f"{what}: {ended.err}"
    if ended.code:
        assert trial.published() == ("old" if trial.old else "nothing"), what
        (message,) = [line for line in ended.err.splitlines() if line.startswith("ERROR")]
        assert os.strerror(code) in message, what
        assert step.path in message or step.to in message, what
        left = trial.left()
        assert all(name.startswith(".out.staging-") for name in left), f"{what}: {left}"
        assert left == [] or (ended.code == 74 and left[0] in message), what
    else:
        assert trial.published() == "new", what
    again = run(*trial.job.arguments(trial.folder))
    assert again.code == 0, f"{what}: {again.err}"
    assert trial.published() == "new", what
    assert trial.left() == [], what


def expected_code(trial: Trial, steps: list[Step], at: int, code: int) -> int:
    """How a run has to end: a step that is not needed is told at most."""
    step = steps[at]
    if step.path.startswith("/") and "/inputs/" in step.path:
        return 3 if code == errno.EACCES else 74
    if step.path.startswith("cache") and "/embedding-" in step.path:  # vectors are nowhere else
        is_saved = any(each.operation == "rename" and each.to == step.path for each in steps[:at])
        return 74 if is_saved or step.operation != "open" else 0
    is_cache = step.path.split("/")[0] == "cache"
    is_record = step.operation == "open" and step.path.endswith(".done")
    last = max(n for n, each in enumerate(steps) if each.operation == "sync")
    is_clearing_up = at > last
    return 0 if is_cache or is_record or is_clearing_up else 74


def faults(name: str, jobs: dict[str, Job], tmp_path: Path, run: Run, each: int, errors: int) -> int:
    """Check every `each`-th step of a job with so many of the errors; returns how many were checked."""
    first = first_trial(jobs[name], tmp_path, run)
    trial = first.at(tmp_path / "steps")
    steps = [Step(step.operation, trial.relative(step.path), trial.relative(step.to)) for step in steps_of(trial, run)]
    number = 0
    for at in range(0, len(steps), each):
        for which in range(errors):
            code = ERRORS[(at // each + which) % len(ERRORS)]
            check_fault(first.at(tmp_path / f"{at}-{which}"), run, steps, at, code)
            number += 1
    return number


@pytest.mark.slow
@pytest.mark.parametrize(("name", "each"), [("replace", 5), ("tokenize", 9), ("replace by renames", 16)])
def test_a_fault_of_storage_publishes_nothing_and_costs_nothing(
    name: str, each: int, jobs: dict[str, Job], tmp_path: Path, run: Run
) -> None:
    assert faults(name, jobs, tmp_path, run, each, errors=1) > 7


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_every_fault_at_every_step(name: str, jobs: dict[str, Job], tmp_path: Path, run: Run) -> None:
    number = faults(name, jobs, tmp_path, run, each=1, errors=len(ERRORS))
    print(f"{name}: {number} faults, 0 losses")


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_gone_from_some_step_on(name: str, jobs: dict[str, Job], tmp_path: Path, run: Run) -> None:
    first = first_trial(jobs[name], tmp_path, run)
    number = len(steps_of(first.at(tmp_path / "steps"), run))
    for at in range(number):
        trial = first.at(tmp_path / f"{at}")
        ended, _ = run_with_fault(trial, run, at, errno.EIO, until=10**9)
        assert ended.code in (0, 74), ended.err
        trial.published()
        assert run(*trial.job.arguments(trial.folder)).code == 0
        assert trial.published() == "new"
        assert trial.left() == []
    print(f"{name}: gone from each of {number} steps on, 0 losses")
