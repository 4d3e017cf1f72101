"""LoRA adapters: trained as models are, saved in PEFT's format, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.base.errors import ConfigError
from tests.conftest import Run, left_behind
from tests.training.runs import log_of
from tests.training.samples import config_file, tiny
from training.checking.probe import probe
from training.models.adapters import add_lora
from training.models.pretrained import load_model
from training.options import LoraOptions
from training.step import train_step

LORA = "r=4,alpha=8,dropout=0.1,targets=q_proj|down_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def command(shards: Path, base: Path, output: Path, *more: object) -> list[object]:
    fixed = ["--steps", 12, "--learning-rate", "1e-1", "--packs-per-step", 4]
    return ["train", "--shards", shards, "--model", base, "--output", output, *fixed, *more]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        computed: torch.Tensor = model(input_ids=torch.arange(3, 30)[None], use_cache=False).logits
    return computed


def test_an_adapter_is_trained_stopped_and_merged(
    training: Run, shards: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    ended = training(*command(shards, base, whole, "--lora", LORA, "--gradient-checkpointing"))
    assert ended.code == 0, ended.err
    assert "parameters are trained: LoRA of rank 4 on down_proj and q_proj" in ended.err
    assert left_behind(whole / "model") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
    ]
    told = json.loads((whole / "model/adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["lora_dropout"]) == (4, 8, 0.1)
    assert told["base_model_name_or_path"] == str(base)
    losses = [line["loss"] for line in log_of(whole)]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1, losses

    steps: list[None] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        steps.append(None)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("training.running.loop.train_step", interrupted)
        assert training(*command(shards, base, stopped, "--lora", LORA)).code == 130
    kept = torch.load(stopped / "checkpoint.pt", weights_only=True)["model"]
    assert len(kept) == 8  # two matrices for each of two layers' two targets, and nothing of the model
    assert all(".lora_" in name for name in kept)
    on = training(*command(shards, base, stopped, "--lora", LORA))
    assert on.code == 0, on.err
    assert "going on after step 4" in on.err
    once, twice = (load_file(each / "model/adapter_model.safetensors") for each in (whole, stopped))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert "up to date" in training(*command(shards, base, stopped, "--lora", LORA)).out

    adapted = logits(load_model(str(whole / "model")))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(model)
    merged = PeftModel.from_pretrained(model, str(whole / "model")).merge_and_unload()
    assert float((logits(merged) - adapted).abs().max()) < 1e-4
    assert float((adapted - before).abs().max()) > 0.1
    assert training("parity", "--shards", shards, "--model", whole / "model").code == 0

    further = tmp_path / "further"
    again = training(*command(shards, whole / "model", further, "--steps", 1))
    assert again.code == 0, again.err
    assert f"is an adapter of {base}" in again.err
    assert abs(log_of(further)[0]["loss"] - losses[0]) > 0.01  # of the same packs
    assert json.loads((further / "model/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    tiny(seed=1).save_pretrained(base)  # another model under its name is another run
    other = training(*command(shards, whole / "model", further, "--steps", 1))
    assert "its model has another config.json or other weights" in other.err


@pytest.mark.parametrize(("family", "verdict"), [("llama", "clean"), ("gpt2", "clean"), ("falcon", "leaks")])
def test_the_probe_sees_through_a_fresh_adapter(family: str, verdict: str) -> None:
    model = tiny(family)
    add_lora(model, LoraOptions(), base=family, seed=0)
    finding = probe(model.eval(), "sdpa")
    assert finding.verdict == verdict
    assert finding.gradient is not None
    assert (finding.gradient > 0.1) == (verdict == "leaks")


@pytest.mark.parametrize("family", ["llama4_text", "phimoe"])
def test_routers_that_are_no_products_take_no_adapter(family: str) -> None:
    model = tiny(family)
    add_lora(model, LoraOptions(r=2), base=family, seed=0)
    adapted = {name.partition(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora" in name}
    assert {"q_proj", "k_proj", "v_proj", "o_proj"} <= adapted
    assert "router" not in adapted
    assert probe(model.eval(), "sdpa").verdict == "clean"
    with pytest.raises(ConfigError, match="router computes more than a product"):
        add_lora(tiny(family), LoraOptions(r=2, targets=("q_proj", "router")), base=family, seed=0)


def test_an_adapter_that_cannot_be_is_one_message(training: Run, shards: Path, base: Path, tmp_path: Path) -> None:
    def said(model: Path, *more: object) -> str:
        ended = training(*command(shards, model, tmp_path / "out", "--no-check", *more))
        assert ended.code == 2, ended.err
        return ended.err

    for text, why in (
        ("r=0", "r must be at least 1, not 0"),
        ("r=four", "r: invalid literal"),
        ("r=4,v_proj", "r: invalid literal"),
        ("rank=4", "'rank=4' is none of r, alpha, dropout, targets"),
        ("r=4,r=8", "'r=8' is none of r, alpha, dropout, targets, or stands there twice"),
        ("dropout=1", "dropout must be less than 1"),
        ("targets=q_proj,nowhere", "the model has no layer 'nowhere', but down_proj, gate_proj, k_proj, lm_head"),
    ):
        assert why in said(base, "--lora", text)

    adapter = tmp_path / "adapter"
    model = load_model(str(base))
    add_lora(model, LoraOptions(r=2), base=str(base), seed=0)
    model.save_pretrained(adapter)
    assert "an adapter already, which is trained further without --lora" in said(adapter, "--lora", "r=4")
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    save_file({key: each for key, each in weights.items() if key != name}, adapter / "adapter_model.safetensors")
    assert "the adapter lacks model.layers.0" in said(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change, why in (
        ({"base_model_name_or_path": str(tmp_path / "gone")}, "model " + str(tmp_path / "gone") + ": no such file"),
        ({"base_model_name_or_path": None}, "does not say of which model"),
        ({"peft_type": "IA3"}, "only LoRA is trained"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(config | change))
        assert why in said(adapter)
    (adapter / "adapter_config.json").write_text("{")
    assert "its adapter_config.json cannot be read" in said(adapter)


def test_without_peft_the_extra_is_named(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    ended = training(*command(shards, config_file(tmp_path), tmp_path / "out", "--lora", "r=4"))
    assert ended.code == 2
    assert "pip install 'tightpack[lora]'" in ended.err
