from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.conftest import Run, left_behind
from tests.training.forked import Forked, two_ranks
from tests.training.runs import (
    command,
    equal,
    log_of,
    log_of_complete,
    on_two_ranks,
    stopping,
    terminate,
    weights,
)
from tests.training.samples import config_file, packed_shards


def test_a_finished_run_is_up_to_date_and_no_other(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert training(*command(shards, tmp_path, output)).code == 0
    before = (output / "model/model.safetensors").stat().st_mtime_ns
    again = training(*command(shards, tmp_path, output))
    assert again.code == 0
    assert "up to date" in again.out
    assert (output / "model/model.safetensors").stat().st_mtime_ns == before
    other = training(*command(shards, tmp_path, output, "--learning-rate", "1e-3"))
    assert other.code == 2
    assert "holds another run: its learning-rate is 2e-05, not 0.001" in other.err


def test_a_run_whose_model_is_gone_or_was_another_is_not_up_to_date(
    training: Run, shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert training(*command(shards, tmp_path, output)).code == 0
    before = weights(output)
    (output / "model/notes.txt").write_text("one's own")
    (tmp_path / "tokenizer.json").touch()  # of no model
    assert "up to date" in training(*command(shards, tmp_path, output)).out
    (output / "model/model.safetensors").unlink()
    changed = training(*command(shards, tmp_path, output))
    assert changed.code == 2
    assert "model is not as it was written; remove it to train it again" in changed.err
    shutil.rmtree(output / "model")
    again = training(*command(shards, tmp_path, output))
    assert again.code == 0
    assert "model is gone: it is trained again" in again.err
    assert "up to date" not in again.out
    assert all(torch.equal(before[name], each) for name, each in weights(output).items())
    arguments = command(shards, tmp_path, output)
    config = config_file(tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    other = training(*arguments)
    assert other.code == 2
    assert "holds another run: its model has another config.json or other weights" in other.err
    gone = training(*["nowhere/config.json" if each == config else each for each in arguments])
    assert gone.code == 2
    assert "model nowhere/config.json: no such file or directory" in gone.err


def test_what_is_not_a_runs_own_is_left_alone(training: Run, shards: Path, tmp_path: Path) -> None:
    before = left_behind(shards)
    refused = training(*command(shards, tmp_path, shards))
    assert refused.code == 2
    assert "holds files that are not of a training run" in refused.err
    assert left_behind(shards) == before
    (tmp_path / "file").touch()
    assert "is a file" in training(*command(shards, tmp_path, tmp_path / "file")).err
    failed = training(*command(shards, tmp_path, tmp_path / "out", "--learning-rate", "1e30"))
    assert failed.code == 4
    assert training(*command(shards, tmp_path, tmp_path / "out")).code == 0  # nothing of it was worth keeping


def test_two_runs_do_not_write_one_output(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with open(output / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = training(*command(shards, tmp_path, output))
    assert busy.code == 75
    assert "another run is writing" in busy.err
    assert training(*command(shards, tmp_path, output)).code == 0
    assert (output / "model/model.safetensors").stat().st_mode & 0o777 == (output / "log.jsonl").stat().st_mode & 0o777


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_stopped_run_goes_on_to_the_same_weights(
    training: Run, shards: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    more = ["--learning-rate", "1e-2", "--loss", "sample-mean"]
    assert training(*command(shards, tmp_path, whole, *more, steps=60)).code == 0
    process = Forked(tmp_path, *command(shards, tmp_path, stopped, *more, steps=60))
    while not (stopped / "log.jsonl").exists() or len(log_of_complete(stopped)) < 5:
        assert process.is_alive
        time.sleep(0.01)
    process.send(sent)
    code, _, said = process.wait()
    assert code == (130 if sent == signal.SIGINT else 143), said
    assert "the same command goes on after step" in said
    step = torch.load(stopped / "checkpoint.pt", weights_only=True)["step"]
    assert 5 <= step < 60
    with open(stopped / "log.jsonl", "a") as file:
        file.write(json.dumps({"step": step + 1, "loss": 0.0}) + '\n{"step": ')  # as if it had been killed later
    on = training(*command(shards, tmp_path, stopped, *more, steps=60))
    assert on.code == 0, on.err
    assert f"going on after step {step}" in on.err
    assert equal(whole, stopped)
    assert [line["loss"] for line in log_of(stopped)] == [line["loss"] for line in log_of(whole)]


def test_checkpoints_are_written_on_request_and_of_one_run(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert training(*command(shards, tmp_path, output, "--save-every", 2)).code == 0
    assert not (output / "checkpoint.pt").exists()
    (output / "result.json").unlink()
    torch.save({"step": 2}, output / "checkpoint.pt")
    other = training(*command(shards, tmp_path, output, steps=9))
    assert other.code == 2
    assert "holds another run: its steps is 6, not 9" in other.err
    (output / "checkpoint.pt").write_bytes(b"broken")
    broken = training(*command(shards, tmp_path, output))
    assert broken.code == 2
    assert "remove it to begin again" in broken.err


def test_two_ranks_train_as_one(training: Run, run: Run, shards: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    evaluated = packed_shards(run, tmp_path / "other", num_samples=61, seed=1)
    more = ["--learning-rate", "1e-3", "--eval-shards", evaluated, "--packs-per-forward", 2, "--json"]
    alone = training(*command(shards, tmp_path, one, *more))
    assert alone.code == 0
    process = on_two_ranks(*command(shards, tmp_path, two, *more))
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(printed)["steps"] == 6  # one rank prints
    scores, of_ranks = alone.json["evaluation"], json.loads(printed)["evaluation"]
    assert scores["packs"] % 4 in (1, 2, 3)  # so that a rank has fewer
    for name, each in scores.items():
        if name != "seconds":
            assert of_ranks[name] == (pytest.approx(each, abs=1e-5) if name.startswith("loss") else each), name
    losses = [[line["loss"] for line in log_of(output) if "loss" in line] for output in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    other = weights(two)
    for name, each in weights(one).items():
        assert torch.allclose(each, other[name], atol=1e-4), name


def test_a_rank_that_is_left_alone_says_so(shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    with open(output / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = [rank.wait() for rank in two_ranks(tmp_path, *command(shards, tmp_path, output))]
    assert [code for code, _, _ in ended] == [75, 75]
    assert "rank 0: another run is writing" in ended[0][2]
    assert "rank 1: another rank has ended, and says why" in ended[1][2]


@pytest.mark.soak
def test_two_ranks_that_are_stopped_go_on_to_the_same_weights(shards: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for rank in two_ranks(tmp_path, *command(shards, tmp_path, whole, steps=60)):
        code, _, said = rank.wait()
        assert code == 0, said
    ranks = two_ranks(tmp_path, *command(shards, tmp_path, stopped, steps=60))
    terminate(ranks, stopped, after=5)
    for number, rank in enumerate(ranks):
        code, _, said = rank.wait()
        assert code == 143
        assert f"rank {number}: terminated; the same command goes on after step" in said
    step = torch.load(stopped / "checkpoint.pt", weights_only=True)["step"]
    assert 5 <= step < 60
    first, second = two_ranks(tmp_path, *command(shards, tmp_path, stopped, steps=60))
    code, printed, said = first.wait()
    assert code == 0, said
    assert f"going on after step {step}" in said
    assert "trained" in printed
    assert second.wait()[:2] == (0, "")  # one rank prints
    assert equal(whole, stopped)


@pytest.mark.soak
def test_a_run_goes_on_with_another_number_of_ranks(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two, on one, on two again: the same packs, and what one rank alone would have learned but for rounding."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    arguments = ["--learning-rate", "1e-3", "--packs-per-step", 4]
    assert training(*command(shards, tmp_path, whole, *arguments, steps=60)).code == 0
    arguments = command(shards, tmp_path, moved, *arguments, steps=60)
    ranks = two_ranks(tmp_path, *arguments)
    terminate(ranks, moved, after=5)
    assert [rank.wait()[0] for rank in ranks] == [143, 143]
    first = torch.load(moved / "checkpoint.pt", weights_only=True)["step"]
    assert 5 <= first < 57
    with monkeypatch.context() as patched:
        patched.setattr("training.running.loop.train_step", stopping(after=2))
        alone = training(*arguments)
    assert alone.code == 143
    assert "2 ranks trained before, and 1 now: the same packs in each step, but sums are rounded in" in alone.err
    assert torch.load(moved / "checkpoint.pt", weights_only=True)["step"] == first + 2
    for number, rank in enumerate(two_ranks(tmp_path, *arguments)):
        code, _, said = rank.wait()
        assert code == 0, said
        assert ("1 rank trained before, and 2 now" in said) == (number == 0)
    losses = [[line["loss"] for line in log_of(output)] for output in (whole, moved)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert not equal(whole, moved)


def test_a_signal_after_the_last_step_does_not_lose_the_run(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice Ctrl-C while the model is written: it is written."""
    written = LlamaForCausalLM.save_pretrained

    def interrupted(self: Any, folder: Path, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        written(self, folder, **named)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", interrupted)
    output = tmp_path / "out"
    ended = training(*command(shards, tmp_path, output))
    assert ended.code == 0, ended.err
    assert (output / "model/model.safetensors").is_file()
    assert "up to date" in training(*command(shards, tmp_path, output)).out
