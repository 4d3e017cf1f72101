"""Commands in a Python process of their own, for tests of the process itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def call_main(*arguments: object, after: str = "") -> str:
    """Python code that runs a command and then goes on."""
    lines = [
        "import sys",
        f"sys.argv = {['pipeline', *map(str, arguments)]!r}",
        "from pipeline.command.main import main",
    ]
    lines += ["try: main()", "except SystemExit as end: assert end.code == 0", after]
    return "\n".join(lines)


def not_imported(*modules: str) -> str:
    return f"found = {set(modules)!r} & set(sys.modules)\nassert not found, found"
