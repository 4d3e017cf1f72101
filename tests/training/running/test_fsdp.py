"""A model divided over ranks, by gloo: two processes, or one that is alone in its group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import ConfigError
from tests.conftest import Run, left_behind
from tests.training.forked import free_port, two_ranks
from tests.training.runs import command, log_of, stopping, terminate, weights
from tests.training.samples import config_file, packed_shards, tiny
from training.models.fsdp import divide
from training.place import Place

STEPS = 12


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun tells the only rank."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "one",
        "WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_a_divided_run_goes_on_as_one_rank_and_ends_as_it_would_have_without(
    training: Run, run: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks, divided; on one, whole; on two again. Embedding and head of the model are one matrix."""
    evaluated = packed_shards(run, tmp_path / "other", num_samples=20, seed=1)
    more = ["--model", config_file(tmp_path, "gemma"), "--learning-rate", "1e-3", "--adam-eps", "1e-4"]
    more += ["--packs-per-step", 4, "--packs-per-forward", 2, "--eval-shards", evaluated, "--json"]
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    alone = training(*command(shards, tmp_path, whole, *more, steps=STEPS))
    assert alone.code == 0, alone.err

    arguments = command(shards, tmp_path, moved, *more, steps=STEPS)
    divided = [*arguments, "--fsdp", "--gradient-checkpointing", "--no-check"]
    ranks = two_ranks(tmp_path, *divided)
    terminate(ranks, moved, after=2)
    assert [rank.wait()[0] for rank in ranks] == [143, 143]
    checkpoint = torch.load(moved / "checkpoint.pt", weights_only=True)
    assert 2 <= checkpoint["step"] < STEPS - 3
    shapes = {name: each.shape for name, each in weights(whole).items()}
    assert {name: each.shape for name, each in checkpoint["model"].items() if name in shapes} == shapes

    with monkeypatch.context() as patched:
        patched.setattr("training.running.loop.train_step", stopping(after=2))
        stopped = training(*arguments)
    assert stopped.code == 143, stopped.err
    assert "2 ranks trained before, and 1 now" in stopped.err

    first, second = (rank.wait() for rank in two_ranks(tmp_path, *divided))
    assert (first[0], second[:2]) == (0, (0, "")), first[2] + second[2]
    assert f"going on after step {checkpoint['step'] + 2}" in first[2]
    assert left_behind(moved) == left_behind(whole)
    assert shapes.keys() == weights(moved).keys()
    for name, each in weights(whole).items():
        assert torch.allclose(each, weights(moved)[name], atol=1e-6, rtol=0), name
    losses = [[line["loss"] for line in log_of(output) if "loss" in line] for output in (whole, moved)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    scores = [[line["evaluation"] for line in log_of(output) if "loss" not in line] for output in (whole, moved)]
    for name, value in scores[0][0].items():
        if name != "seconds":
            assert scores[1][0][name] == pytest.approx(value, abs=1e-5), name
    assert scores[0][0]["packs"] % 4 == 1  # so that a rank has nothing to score at last


def test_a_group_of_one_learns_the_same_adapter(training: Run, shards: Path, tmp_path: Path, one_rank: None) -> None:
    model = tmp_path / "model"
    tiny().save_pretrained(model)
    more = ["--model", model, "--learning-rate", "1e-3", "--save-every", 1, "--dtype", "bfloat16"]
    more += ["--lora", "r=4,targets=q_proj|down_proj"]
    assert training(*command(shards, tmp_path, tmp_path / "whole", *more, steps=2)).code == 0
    ended = training(*command(shards, tmp_path, tmp_path / "divided", *more, "--fsdp", steps=2))
    assert ended.code == 0, ended.err
    assert "every rank keeps the weights of all layers in bfloat16" in ended.err
    files = [next((tmp_path / name / "model").glob("*.safetensors")) for name in ("whole", "divided")]
    assert files[0].read_bytes() == files[1].read_bytes()
    again = training(*command(shards, tmp_path, tmp_path / "whole", *more, "--fsdp", steps=2))
    assert "up to date" in again.out  # the same run


def test_what_a_divided_model_must_not_learn_is_seen(
    training: Run, shards: Path, tmp_path: Path, one_rank: None
) -> None:
    divided = ["--fsdp", "--learning-rate", "1e30"]
    leaks = training(*command(shards, tmp_path, tmp_path / "o", "--model", config_file(tmp_path, "falcon"), *divided))
    assert (leaks.code, "FalconForCausalLM leaks at FalconAttention" in leaks.err) == (4, True)
    broken = training(*command(shards, tmp_path, tmp_path / "out", *divided, steps=9))
    assert (broken.code, "of 5 steps in a row, up to step 6, are infinite or no" in broken.err) == (4, True)
    assert left_behind(tmp_path / "out") == ["log.jsonl", "run.json"]
    more = ["--weight-decay", "1e30", "--save-every", 1]
    broken = training(*command(shards, tmp_path, tmp_path / "out", *divided, *more))
    assert (broken.code, "after step 1 some weights are infinite or no numbers" in broken.err) == (4, True)


def test_what_fsdp_cannot_do_is_one_message(training: Run, shards: Path, tmp_path: Path) -> None:
    model: Any = tiny()
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM shares model\.layers\.1\.mlp\S+ between layers"):
        divide(model, Place(0, 1, torch.device("cpu")))
    arguments = command(shards, tmp_path, tmp_path / "out", "--fsdp")
    alone = training(*arguments)
    assert (alone.code, "--fsdp divides a model over ranks: torchrun" in alone.err) == (2, True)
    compiled = training(*arguments, "--compile")
    assert (compiled.code, "--compile is not made for --fsdp" in compiled.err) == (2, True)
