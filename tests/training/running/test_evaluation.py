from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import Run
from tests.training.runs import command, equal, log_of
from tests.training.samples import config_file, losses_alone, packed_shards
from training.plan import losses_of


@pytest.fixture
def evaluated(run: Run, tmp_path: Path) -> Path:
    return packed_shards(run, tmp_path / "held-out", num_samples=41, seed=1)


@pytest.fixture
def train(shards: Path, tmp_path: Path) -> list[object]:
    """Of a model with dropout."""
    config = config_file(tmp_path, "gpt2")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"resid_pdrop": 0.3}))
    return [
        "train",
        "--shards",
        shards,
        "--model",
        config,
        "--steps",
        3,
        "--learning-rate",
        "1e-2",
        "--packs-per-forward",
        3,
        "--json",
    ]


def evaluations(output: Path) -> list[dict[str, Any]]:
    """The lines of a log that are scores, without what time they took."""
    return [
        {"step": line["step"]} | line["evaluation"] | {"seconds": None} for line in log_of(output) if "loss" not in line
    ]


def test_scores_are_those_of_samples_one_by_one_and_change_no_training(
    training: Run, train: list[object], evaluated: Path, tmp_path: Path
) -> None:
    plain, output = tmp_path / "plain", tmp_path / "out"
    assert training(*train, "--output", plain).code == 0
    scored = [*train, "--output", output, "--eval-shards", evaluated]
    ended = training(*scored, "--eval-every", 2)
    assert ended.code == 0, ended.err
    assert equal(plain, output)

    model = AutoModelForCausalLM.from_pretrained(output / "model")
    packs = datasets.load_from_disk(str(evaluated)).with_format("numpy")
    with torch.no_grad():
        losses = [each.double() for pack in packs for each in losses_alone(model, pack)]
    scores = ended.json["evaluation"]
    assert scores["loss_per_target"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert scores["loss_per_sample"] == pytest.approx(
        float(torch.stack([each.mean() for each in losses]).mean()), abs=1e-5
    )
    assert abs(scores["loss_per_target"] - scores["loss_per_sample"]) > 1e-3
    assert (scores["packs"], scores["targets"], scores["samples"]) == (len(packs), len(torch.cat(losses)), len(losses))
    first, last = evaluations(output)
    assert last == scores | {"seconds": None}
    assert (first["step"], last["step"]) == (2, 3)
    assert first["loss_per_target"] != last["loss_per_target"]
    assert f"evaluation after step 3: {scores['loss_per_target']:.4f} a target" in ended.err

    again = training(*scored)
    assert (again.json["status"], again.json["evaluation"]) == ("up_to_date", scores)
    others = training(*train, "--output", output)
    assert others.code == 2
    assert "holds another run: it is evaluated on other shards, or on none" in others.err


def test_an_evaluation_that_is_interrupted_is_made_up_for(
    training: Run, train: list[object], evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = [*train, "--eval-shards", evaluated, "--eval-every", 1]
    assert training(*scored, "--output", tmp_path / "whole").code == 0
    calls = []

    def interrupted(*arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return losses_of(*arguments, **named)

    monkeypatch.setattr("training.running.evaluation.losses_of", interrupted)
    stopped = training(*scored, "--output", tmp_path / "out")
    assert stopped.code == 143
    assert "goes on after step 1 of 3" in stopped.err
    assert len(calls) == 3
    assert evaluations(tmp_path / "out") == []
    assert training(*scored, "--output", tmp_path / "out").code == 0
    assert evaluations(tmp_path / "out") == evaluations(tmp_path / "whole")
    assert [each["step"] for each in evaluations(tmp_path / "out")] == [1, 2, 3]
    assert equal(tmp_path / "out", tmp_path / "whole")


def test_shards_of_another_tokenizer_are_warned_of(training: Run, run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "b a b b a"}\n' * 3)
    for name, vocabulary in (("one", {"?": 0, "a": 1, "b": 2}), ("two", {"?": 0, "b": 1, "a": 2})):
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / name)
        packs = ["--output", tmp_path / f"by-{name}", "--max-length", 20, "--tokenizer", tmp_path / name]
        packed = run("pack", tmp_path / "texts.jsonl", *packs)
        assert packed.code == 0, packed.err
    for name in ("one", "two"):
        scored = ["--eval-shards", tmp_path / f"by-{name}", "--no-check"]
        ended = training(*command(tmp_path / "by-one", tmp_path, tmp_path / f"run-{name}", *scored, steps=1))
        assert ended.code == 0, ended.err
        assert ("made by another tokenizer" in ended.err) == (name == "two")
