from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")


from pipeline.base.process.log import JsonLines
from pipeline.command.main import main
from strategies.registry import ENTRY_POINT_GROUP

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

pytest_plugins = ["tests.selection"]

IN_MEMORY, ROOM = "/dev/shm", 4 << 30


def pytest_sessionstart() -> None:
    """Refuse to run where a plug-in is installed: what the strategies are, and are called, is tested."""
    plug_ins = entry_points(group=ENTRY_POINT_GROUP)
    if plug_ins:
        pytest.exit(f"uninstall the plug-in {next(iter(plug_ins)).name!r}: the tests know our own strategies", 2)


def pytest_configure() -> None:
    """Put the tests' folders into memory, unless the user says where, or there is no room; and listen to Ctrl-C.

    Whatever is published is synced to its disk, some ten thousand times in all: in memory that costs nothing. A shell
    that starts the tests in the background ignores SIGINT for all they start, and some of that has to be interrupted.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said = {"PYTEST_DEBUG_TEMPROOT", "TMPDIR"} & set(os.environ)
    if not said and os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > ROOM:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = IN_MEMORY


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


Run = Callable[..., Ended]


def in_process(
    package: str, main: Callable[[], object], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """What calls `python -m PACKAGE` in this process."""
    logs = [logging.getLogger(name) for name in ("pipeline", "training")]

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [package, *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        for log in [*logs, logging.getLogger()]:
            for handler in list(log.handlers):
                if log in logs or isinstance(handler.formatter, JsonLines):
                    log.removeHandler(handler)
                    handler.close()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err or "--debug" in arguments
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call `python -m pipeline`; its caches lie in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return in_process("pipeline", main, capfd, monkeypatch)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets; tests that want it are skipped where it is missing."""
    folder = Path(os.environ.get("PACKING_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set PACKING_DATA")
    return folder


def left_behind(folder: Path) -> list[str]:
    """What lies in a folder, hidden files included, but for the tests' own cache."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "cache" not in path.parts)
