"""SIGTERM in the middle of each stage of a long run: it ends soon, leaves no process, and the same command resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.command.processes import ROOT
from tests.pipeline.samples import topical

pytestmark = pytest.mark.soak
MOST_SECONDS = 10


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Path:
    """So much text that it is tokenised in processes: more than 64 MB."""
    rows = (real_data / "gsm8k" / "train.jsonl").read_bytes()
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    path.write_bytes(rows * (1 + (1 << 26) // len(rows)))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return topical(tmp_path_factory.mktemp("rows") / "rows", 100_000)


def members(session: int) -> list[str]:
    """The processes of a session that run, dead ones that nobody waited for apart."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, its_session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(its_session) == session and state not in "ZX":
            found.append(process.name)
    return found


@pytest.mark.parametrize("whole_group", [False, True], ids=["the process", "all processes"])
@pytest.mark.parametrize(
    ("stage", "after"),
    [
        ("planning", 0.1),
        ("writing", 0.05),
        ("embedding", 0.3),
        ("tokenising", 0.1),
        ("tokenising", 3),
        ("tokenising", 12),
    ],
)
def test_sigterm(
    tmp_path: Path, raw: Path, rows: Path, real_data: Path, stage: str, after: float, whole_group: bool
) -> None:
    flags = ["--output", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")]
    if stage == "tokenising":
        tokenizer = str(real_data / "tokenizers" / "gpt2" / "tokenizer.json")
        command = ["tokenize", str(raw), *flags, "--map", "prompt=question,completion=answer", "--append-eos"]
        command += ["--tokenizer", tokenizer, "--num-workers", "5"]
    else:
        command = ["pack", str(rows), *flags, "--max-length", "512", "--strategy", "threshold-filtering"]
    call = [sys.executable, "-m", "pipeline", *command, "--log-format", "json"]
    process = subprocess.Popen(
        call, cwd=ROOT, text=True, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    begun = any(json.loads(line).get("message") == f"{stage} begins" for line in process.stderr)
    assert begun, "it ended before"
    time.sleep(after)
    if stage == "tokenising" and after > 1:
        assert len(members(process.pid)) > 5, "there are workers"
    sent = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    rest = [json.loads(line) for line in process.stderr]
    assert process.wait() == 143
    assert time.monotonic() - sent < MOST_SECONDS
    assert rest[-1]["exit_code"] == 143 and "the same command resumes it" in rest[-1]["message"]
    time.sleep(0.5)  # the kernel's, to let them go
    assert members(process.pid) == []
    assert not (tmp_path / "out").exists()
    process.stderr.close()
