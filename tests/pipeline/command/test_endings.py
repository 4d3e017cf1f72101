"""How a command ends where it fails: its exit code, one message on stderr, and with `--json` one object on stdout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.pipeline.command.processes import ROOT


def test_log_file_holds_the_log(run: Run, tmp_path: Path) -> None:
    ended = run(
        "pack", tmp_path / "nowhere", "--output", tmp_path / "out", "--max-length", 9, "--log-file", tmp_path / "l"
    )
    assert ended.code == 3
    assert "no such file" in (tmp_path / "l").read_text()
    assert run("pack", tmp_path, "--max-length", 9, "--log-file", tmp_path / "no" / "l").code == 74


def test_unwritable_places(run: Run, tmp_path: Path, source: Path) -> None:
    ended = run("pack", source, "--output", "/proc/out", "--max-length", 60)
    assert ended.code == 74
    assert "/proc" in ended.err
    (tmp_path / "file").touch()
    ended = run("pack", source, "--output", tmp_path / "file" / "out", "--max-length", 60)
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1


def test_storage_faults_anywhere_are_told(run: Run, tmp_path: Path, source: Path) -> None:
    assert run("pack", source, "--output", tmp_path / ("x" * 240), "--max-length", 60).code == 74
    with open("/dev/full", "w", encoding="utf-8") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline", "strategies"], check=False, cwd=ROOT, stdout=full, stderr=subprocess.PIPE
        )
    assert ended.returncode == 74
    assert b"Traceback" not in ended.stderr


def test_a_closed_pipe_keeps_the_exit_code(tmp_path: Path) -> None:
    for command, code in ((["strategies"], 0), (["verify", str(tmp_path)], 4)):
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == code
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()


def test_a_bug_is_told_with_a_log_and_a_traceback_only_on_request(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("pipeline.packing.steps.plan_window", broken)
    ended = run("pack", source, "--output", tmp_path / "new" / "out", "--max-length", 60)
    assert ended.code == 70
    assert "planted" in ended.err
    (report,) = tmp_path.glob("tightpack-bug-*.log")
    assert "Traceback" in report.read_text()
    assert str(report) in ended.err
    assert not (tmp_path / "new").exists()
