"""How a command ends where it fails: its exit code, one message on stderr, and with `--json` one object on stdout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Ended, Run
from tests.pipeline.command.processes import ROOT

NEEDS_TOKENIZER = pytest.mark.needs("transformers")


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

    monkeypatch.setattr("pipeline.packing.plan.plan_window", broken)
    ended = run("pack", source, "--output", tmp_path / "new" / "out", "--max-length", 60)
    assert ended.code == 70
    assert "planted" in ended.err
    (report,) = tmp_path.glob("tightpack-bug-*.log")
    assert "Traceback" in report.read_text()
    assert str(report) in ended.err
    assert not (tmp_path / "new").exists()


@pytest.fixture
def packed(run: Run, tmp_path: Path, source: Path) -> Path:
    assert run("pack", source, "--output", tmp_path / "packed", "--max-length", 60).code == 0
    return tmp_path / "packed"


def failure(ended: Ended) -> dict[str, object]:
    """The one object on stdout, which says what stderr says."""
    assert len(ended.out.splitlines()) == 1, ended.out
    value = ended.json
    assert value == {"status": "error", "exit_code": ended.code, "message": value["message"]}
    assert value["message"] in ended.err
    return value


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pakc"], "No such command 'pakc'"),
        (["pack", "in"], "Missing option '--max-length'"),
        (["pack", "in", "--max-length", "9", "--strategy", "tape", "--output", "out"], "unknown strategy 'tape'"),
        (["tokenize", "in"], "Missing option '--tokenizer'"),
        pytest.param(
            ["tokenize", "in", "--tokenizer", "/nowhere", "--output", "out"],
            "no such file or directory",
            marks=NEEDS_TOKENIZER,
        ),
        (["verify"], "Missing argument 'DIR'"),
        (["verify", "out", "--tokenizer", "gpt2"], "--tokenizer has no effect without --source"),
    ],
)
def test_a_usage_error_as_an_object(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(*arguments, "--json")
    assert ended.code == 2
    assert told in str(failure(ended)["message"])


def test_bad_data_as_an_object(run: Run, tmp_path: Path, tokenizer_dir: Path, packed: Path) -> None:
    out, nowhere = tmp_path / "new", tmp_path / "nowhere.jsonl"
    for arguments in (
        ["pack", nowhere, "--output", out, "--max-length", 60],
        ["tokenize", nowhere, "--output", out, "--tokenizer", tokenizer_dir],
        ["verify", packed, "--source", nowhere],
    ):
        ended = run(*arguments, "--json")
        assert ended.code == 3, ended.err
        assert f"{nowhere}: no such file" in str(failure(ended)["message"])


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("pack", "pipeline.packing.plan.plan_window"),
        pytest.param("tokenize", "pipeline.tokenizing.encoding.Encoder.encode", marks=NEEDS_TOKENIZER),
        ("verify", "pipeline.verifying.verify.check_splits"),
    ],
)
def test_a_bug_as_an_object_that_names_its_log(
    run: Run, tmp_path: Path, source: Path, packed: Path, request: pytest.FixtureRequest, command: str, where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if command == "tokenize":
        raw = tmp_path / "raw.jsonl"
        raw.write_text('{"text": "abc"}\n')
        arguments = [raw, "--output", tmp_path / "new", "--tokenizer", request.getfixturevalue("tokenizer_dir")]
    else:
        arguments = [packed] if command == "verify" else [source, "--output", tmp_path / "new", "--max-length", 60]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(where, broken)
    ended = run(command, *arguments, "--json")
    assert ended.code == 70
    (report,) = tmp_path.glob("tightpack-bug-*.log")
    assert "RuntimeError: planted" in report.read_text()
    assert failure(ended)["message"] == f"a bug of ours: RuntimeError: planted; please report it with {report}"


HOLDING = """
import sys, time
from pathlib import Path
from pipeline.base.storage import intercepted
from pipeline.command.main import main

file, held = sys.argv.pop(1), Path(sys.argv.pop(1))

def hold(step, act):
    if step.operation == "open" and step.path == file:
        held.touch()
        while held.exists():
            time.sleep(0.01)
    return act()

with intercepted(hold):
    main()
"""
"""The command line, which waits where it opens a file for as long as another is there."""


@pytest.mark.parametrize(
    ("command", "sent", "code"),
    [
        ("pack", signal.SIGINT, 130),
        ("pack", signal.SIGTERM, 143),
        pytest.param("tokenize", signal.SIGINT, 130, marks=NEEDS_TOKENIZER),
        ("verify", signal.SIGINT, 130),
    ],
)
def test_an_interrupt_as_an_object(
    tmp_path: Path, packed: Path, request: pytest.FixtureRequest, command: str, sent: signal.Signals, code: int
) -> None:
    """A real process, stopped as it opens its input."""
    rows, held = tmp_path / "rows.jsonl", tmp_path / "held"
    rows.write_text('{"input_ids": [1, 2]}\n')
    arguments: list[object] = [rows, "--output", tmp_path / "new"]
    if command == "pack":
        arguments += ["--max-length", 60]
    elif command == "tokenize":
        arguments += ["--tokenizer", request.getfixturevalue("tokenizer_dir") / "tokenizer.json"]
    else:
        arguments = [packed, "--source", rows]
    call = [sys.executable, "-c", HOLDING, str(rows), str(held), command, *map(str, arguments), "--json"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not held.exists():
        assert process.poll() is None, f"it ended before it read: {process.communicate()}"
        time.sleep(0.01)
    process.send_signal(sent)
    held.unlink()
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    message = str(failure(Ended(code, out, err))["message"])
    assert message.startswith("interrupted" if sent == signal.SIGINT else "terminated")
    assert not (tmp_path / "new").exists()


def test_a_failed_verification_keeps_its_own_object(run: Run, packed: Path) -> None:
    next(packed.glob("*.arrow")).unlink()
    ended = run("verify", packed, "--json")
    assert ended.code == 4
    assert len(ended.out.splitlines()) == 1
    assert (ended.json["status"], ended.json["exit_code"], ended.json["ok"]) == ("failed", 4, False)
    assert "missing" in ended.json["problems"][0]
    assert "message" not in ended.json
