"""A process that has imported and compiled everything, and forks one for each command, so that a kill costs little."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).parents[3]


class WarmProcess:
    """The tests' side of it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.pipeline.crashing.warm"]
        self._server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, arguments: list[str], *, swaps: bool, step: int | None = None, seconds: float | None = None) -> int:
        """Run a command, and kill it at a step, or after some seconds; returns how it ended: -9 if it was killed.

        swaps: whether folders can be exchanged. Half of what the killed step was to write is written.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        request = {"arguments": arguments, "swaps": swaps, "step": step, "seconds": seconds}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)


def serve() -> None:
    """Fork a process for each request, and answer how it ended."""
    from tests.pipeline.crashing.jobs import make_jobs

    with tempfile.TemporaryDirectory() as folder:
        for name, job in make_jobs(Path(folder)).items():
            if not job.replaces:
                ended = _forked({"arguments": job.arguments(Path(folder) / name), "swaps": True}, in_fork=False)
                assert ended == 0, f"{name} ended with {ended}"
    for line in sys.stdin:
        print(_forked(json.loads(line)), file=sys.__stdout__, flush=True)


def _forked(request: dict[str, Any], in_fork: bool = True) -> int:
    if not in_fork:
        return _command(request["arguments"])
    process = os.fork()
    if process == 0:
        _child(request)
    if request["seconds"] is not None:
        time.sleep(request["seconds"])
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _child(request: dict[str, Any]) -> NoReturn:
    from pipeline.base.storage import Step, intercepted

    counter = itertools.count()

    def intercept(step: Step, act: Callable[[], Any]) -> Any:
        if step.operation == "exchange" and not request["swaps"]:
            raise OSError(22, "Invalid argument")
        if next(counter) == request["step"]:
            if step.operation == "write":
                with open(step.path, "r+b") as file:
                    file.seek(0, os.SEEK_END)
                    file.write(bytes(step.data)[: len(step.data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return act()

    with intercepted(intercept):
        os._exit(_command(request["arguments"]))


def _command(arguments: list[str]) -> int:
    from pipeline.command.main import main

    sys.argv = ["pipeline", *arguments]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end of this process
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    with mock.patch("pipeline.reading.cache._SETTLED_SECONDS", -1e9):  # as in the tests: every run writes to its cache
        serve()
