"""A command in a process forked from this one, which is warm: a crash of the interpreter, or a hang, shows."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from pipeline.command.main import main

SECONDS = 60


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    """Its exit code, negative for a signal that ended it."""

    said: str
    most_bytes: int
    """The memory that it had at most, with what it shared with this one."""


def forked(arguments: list[object], folder: Path) -> Ended:
    """Run a command."""
    said = folder / "said"
    child = os.fork()
    if child == 0:
        try:
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            sys.argv = ["pipeline", *map(str, arguments)]
            signal.alarm(SECONDS)
            main()
        except SystemExit as ended:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(ended.code or 0))
        finally:
            os._exit(99)
    _, status, used = os.wait4(child, 0)
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), used.ru_maxrss * 1024)
