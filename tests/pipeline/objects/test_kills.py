"""SIGKILL at any instant of a run to a store, then the same command again, here or on another machine."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.base.storage import Step, intercepted
from tests.conftest import Run
from tests.pipeline.objects.datasets import contents, files, read
from tests.pipeline.objects.server import Proxy

pytestmark = [pytest.mark.soak, pytest.mark.needs("moto", "s3fs"), pytest.mark.usefixtures("quick")]

_AT_STEPS, _AT_MOMENTS = 24, 12


class Count:
    """An interceptor that counts steps, and ends the process at one of them."""

    def __init__(self, last: int | None = None) -> None:
        """last: the step, counted from 0, that is not done any more."""
        self.steps, self._last = 0, last

    def __call__(self, _: Step, act: Callable[[], Any]) -> Any:
        if self.steps == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1
        return act()


def killed(run: Run, command: list[object], step: int | None, seconds: float | None) -> int:
    """Run a command in a fork, and kill it at a step or after some seconds; returns how it ended."""
    child = os.fork()
    if child == 0:
        os.environ["AWS_EXECUTION_ENV"] = str(os.getpid())  # for a client, and connections, of its own
        with intercepted(Count(step)):
            os._exit(run(*command).code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("is_moved", [False, True], ids=["here", "elsewhere"])
def test_a_killed_run_goes_on(
    run: Run,
    job: list[object],
    tmp_path: Path,
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
    is_moved: bool,
) -> None:
    assert run(*job, "--output", tmp_path / "local").code == 0
    expected, count = files(tmp_path / "local"), Count()
    with intercepted(count):
        began = time.monotonic()
        assert run(*job, "--output", f"s3://{bucket}/undisturbed").code == 0
        lasted = time.monotonic() - began
    draws = random.Random(0)
    steps = sorted(draws.sample(range(count.steps), min(_AT_STEPS, count.steps)))
    moments = [draws.uniform(0, lasted) for _ in range(_AT_MOMENTS)]
    published = []
    for number, (step, seconds) in enumerate([*((s, None) for s in steps), *((None, m) for m in moments)]):
        out = f"{bucket}/{number}"
        command = [*job, "--output", f"s3://{out}", "--cache-dir"]
        ended = killed(run, [*command, tmp_path / f"cache-{number}"], step, seconds)
        assert ended in (-signal.SIGKILL, 0), (step, seconds)
        published.append(read(proxy, out) is not None)
        assert ended or published[-1]
        again = run(*command, tmp_path / f"cache-{number}{'-moved' if is_moved else ''}", "--json")
        assert again.code == 0, (step, seconds, again.err)
        assert again.json["status"] == "up_to_date" or not published[-1]
        assert contents(store, out) == expected, (step, seconds)
    assert {True, False} == set(published)
