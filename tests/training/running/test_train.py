from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.conftest import Run
from tests.training.runs import ROOT, command, equal, log_of, weights
from tests.training.samples import VOCABULARY, config_file, packed_shards, tiny
from training.order import packs_of_step


def test_training_lowers_the_loss_and_leaves_a_model(training: Run, shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    more = ["--learning-rate", "3e-2", "--packs-per-step", 4, "--packs-per-forward", 2]
    ended = training(*command(shards, tmp_path, output, *more, "--warmup-steps", 2, "--json", steps=30))
    assert ended.code == 0, ended.err
    log = log_of(output)
    assert [line["step"] for line in log] == list(range(1, 31))
    assert sum(line["loss"] for line in log[-5:]) < sum(line["loss"] for line in log[:5]) - 1
    rates = [line["learning_rate"] for line in log]
    assert rates[:3] == pytest.approx([1.5e-2, 3e-2, 3e-2])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert all(line["tokens_per_second"] > line["targets_per_second"] > 0 for line in log)
    assert all(line["peak_memory_bytes"] > 1 << 20 for line in log)
    assert ended.json["loss"] == log[-1]["loss"]
    assert ended.json["backend"] == "sdpa"
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    assert model.config.vocab_size == VOCABULARY
    assert not (output / "checkpoint.pt").exists()


def test_the_tokenizer_goes_with_the_model(training: Run, shards: Path, tmp_path: Path) -> None:
    """From a directory, and by its id from the Hub, whose files lie in the cache."""
    snapshot = tmp_path / "hub/models--somebody--tiny/snapshots/1"
    tiny().save_pretrained(snapshot)
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(snapshot)
    refs = tmp_path / "hub/models--somebody--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("1")
    train = ["train", "--shards", shards, "--steps", 1]
    assert training(*train, "--model", snapshot, "--output", tmp_path / "local").code == 0
    done = subprocess.run(
        [sys.executable, "-m", "training", *map(str, train), "--model", "somebody/tiny", "--output", tmp_path / "hubs"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for output in ("local", "hubs"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / output / "model")
        assert tokenizer.convert_tokens_to_ids(["a", "b"]) == [0, 1]
    without = training(*train, "--model", config_file(tmp_path), "--output", tmp_path / "none")
    assert "has no tokenizer, so the trained model has none" in without.err


def test_every_option_that_decides_the_result_changes_it(training: Run, shards: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path)
    train = ["train", "--shards", shards, "--model", config, "--steps", 3, "--learning-rate", "1e-2"]
    assert training(*train, "--output", tmp_path / "plain").code == 0
    options: list[list[object]] = [
        ["--attention", "joint"],
        ["--loss", "sample-mean"],
        ["--packs-per-step", 4],
        ["--learning-rate", "2e-2"],
        ["--warmup-steps", 2],
        ["--weight-decay", "0.5"],
        ["--max-grad-norm", "0.01"],
        ["--adam-beta1", "0.5"],
        ["--adam-beta2", "0.5"],
        ["--adam-eps", "1e-3"],
        ["--dtype", "bfloat16"],
        ["--seed", 1],
    ]
    for number, more in enumerate(options):
        output = tmp_path / str(number)
        ended = training(*train, *more, "--output", output)
        assert ended.code == 0, (more, ended.err)
        assert not equal(tmp_path / "plain", output), more
    for without_effect in (["--log-every", "2"], ["--save-every", "1"], ["--no-check"], ["--backend", "sdpa"]):
        output = tmp_path / without_effect[0]
        assert training(*train, *without_effect, "--output", output).code == 0
        assert equal(tmp_path / "plain", output), without_effect


def test_micro_batches_do_not_change_what_is_learned(training: Run, shards: Path, tmp_path: Path) -> None:
    for packs in (1, 3, 8):
        output = tmp_path / str(packs)
        assert training(*command(shards, tmp_path, output, "--packs-per-forward", packs)).code == 0
        assert "up to date" in training(*command(shards, tmp_path, output, "--packs-per-forward", 2)).out
    one, three, eight = (weights(tmp_path / str(packs)) for packs in (1, 3, 8))
    for name, each in one.items():
        assert torch.allclose(each, three[name], atol=1e-4), name
        assert torch.allclose(each, eight[name], atol=1e-4), name


def test_checkpointed_gradients_are_the_same(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    forward: Callable[..., Any] = LlamaMLP.forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        passes.append(self.training)
        return forward(self, *arguments, **named)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    assert training(*command(shards, tmp_path, tmp_path / "plain")).code == 0
    once = sum(passes)
    assert training(*command(shards, tmp_path, tmp_path / "again", "--gradient-checkpointing")).code == 0
    assert sum(passes) - once == 2 * once > 0
    assert equal(tmp_path / "plain", tmp_path / "again")


def test_without_a_terminal_there_is_a_line_now_and_then(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.running.step_log.PROGRESS_SECONDS", 0.0)
    ended = training(*command(shards, tmp_path, tmp_path / "out"))
    assert f"step 3 of 6, loss {log_of(tmp_path / 'out')[2]['loss']:.4f}" in ended.err
    ended = training(*command(shards, tmp_path, tmp_path / "other", "--log-every", 4))
    assert "step 3 of 6" not in ended.err
    assert "step 4 of 6" in ended.err


def test_compiled_training_learns_the_same(training: Run, run: Run, tmp_path: Path) -> None:
    if not any(os.access(Path(folder) / "g++", os.X_OK) for folder in os.environ["PATH"].split(":")):
        pytest.skip("no C++ compiler for torch.compile on a CPU")
    shards = packed_shards(run, tmp_path)
    assert training(*command(shards, tmp_path, tmp_path / "plain", steps=3)).code == 0
    ended = training(*command(shards, tmp_path, tmp_path / "compiled", "--compile", steps=3))
    assert ended.code == 0, ended.err
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_steps_walk_through_every_pack_once_an_epoch() -> None:
    seen = [pack for step in range(10) for pack in packs_of_step(7, step, 3, seed=0)]
    for epoch in range(4):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert packs_of_step(7, 2, 3, seed=0) != packs_of_step(7, 2, 3, seed=1)
    assert packs_of_step(2, 0, 5, seed=0)[4] in (0, 1)  # more packs a step than there are
