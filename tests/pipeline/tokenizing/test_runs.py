"""A run of `tokenize`: the same bytes however it is run, all or nothing, resumed, done once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.tokenizing import shards, workers
from pipeline.tokenizing.encoding import Encoder
from tests.conftest import Run
from tests.pipeline.chats import chat, template
from tests.pipeline.tokenizing.conftest import Lines, manifest_of, same_files, stopped_after


def test_the_same_bytes_for_any_number_of_workers(
    run: Run, tmp_path: Path, many: Path, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    for number in (1, 2, 5):
        assert run("tokenize", many, "--output", tmp_path / str(number), *flags, "--num-workers", number).code == 0
    monkeypatch.setattr(workers, "PROCESSES_FROM_BYTES", 0)
    assert run("tokenize", many, "--output", tmp_path / "processes", *flags, "--num-workers", 5).code == 0
    assert same_files(tmp_path / "1", tmp_path / "processes")
    assert len(list((tmp_path / "1").glob("*.arrow"))) > 2
    assert same_files(tmp_path / "1", tmp_path / "2") and same_files(tmp_path / "1", tmp_path / "5")


def test_a_worker_that_is_killed(
    run: Run, tmp_path: Path, many: Path, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PROCESSES_FROM_BYTES", 0)

    def kill_one() -> None:
        while len(children := multiprocessing.active_children()) < 5:
            time.sleep(0.1)
        os.kill(children[0].pid or 0, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    ended = run("tokenize", many, "--output", tmp_path / "out", *flags, "--num-workers", 5)
    killer.join()
    assert ended.code == 75 and "fewer --num-workers" in ended.err, ended.err
    assert not (tmp_path / "out").exists()
    for child in multiprocessing.active_children():
        child.join(10)
    assert not multiprocessing.active_children()


def test_up_to_date_other_and_overwrite(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], tokenizer_dir: Path
) -> None:
    source, out = lines([{"messages": chat("a", "b")}]), tmp_path / "out"
    assert run("tokenize", source, "--output", out, *flags).code == 0
    before = (out / "manifest.json").stat().st_ino
    ended = run("tokenize", source, "--output", out, *flags, "--num-workers", 3)
    assert ended.code == 0 and "up to date" in ended.out
    assert (out / "manifest.json").stat().st_ino == before
    ended = run("tokenize", source, "--output", out, *flags, "--train-on", "all")
    assert ended.code == 2 and "train_on: None there, all now" in ended.err
    other = tmp_path / "other.jinja"
    other.write_text(template("llama3", marks=False))
    ended = run("tokenize", source, "--output", out, "--tokenizer", tokenizer_dir, "--chat-template", other)
    assert ended.code == 2 and "chat_template: chatml.jinja" in ended.err
    assert run("tokenize", source, "--output", out, *flags, "--train-on", "all", "--overwrite").code == 0
    assert manifest_of(out)["config"]["train_on"] == "all"
    ended = run("pack", out, "--output", out, "--max-length", 99)
    assert ended.code == 2


def test_interrupted_and_resumed(
    run: Run, tmp_path: Path, many: Path, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    encode, encoded = Encoder.encode, list[Encoder]()

    def counting(encoder: Encoder, *arguments: Any) -> Any:
        encoded.append(encoder)
        return encode(encoder, *arguments)

    monkeypatch.setattr(Encoder, "encode", counting)
    assert run("tokenize", many, "--output", tmp_path / "whole", *flags).code == 0
    num_blocks = len(encoded)
    with stopped_after(2, monkeypatch) as finished:
        ended = run("tokenize", many, "--output", tmp_path / "out", *flags)
    assert ended.code == 130 and "resumes it" in ended.err
    times = [path.stat().st_mtime_ns for path in finished]
    encoded.clear()
    assert run("tokenize", many, "--output", tmp_path / "out", *flags).code == 0
    assert [(tmp_path / "out" / path.name).stat().st_mtime_ns for path in finished] == times
    assert 0 < len(encoded) < num_blocks
    assert same_files(tmp_path / "whole", tmp_path / "out")


def test_terminated_for_real(tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    source = lines([{"messages": chat(f"q{i}", "word " * 200)} for i in range(20_000)])
    command = [sys.executable, "-m", "pipeline", "tokenize", source, "--output", tmp_path / "out", *flags]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True, env=environment)
    while not list(tmp_path.glob(".out.staging-*/dataset/*.part")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert not (tmp_path / "out").exists() and "Traceback" not in err
