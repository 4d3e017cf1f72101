"""All that runs on a GPU, run here under stand-ins for its kernels, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from tests.conftest import Ended, Run
from tests.training.checking.test_probe import ROWS
from tests.training.kernels import CALLS, KERNELS, NUMBERS, KernelName, flash_attn_varlen_func, stand_in
from tests.training.runs import command, equal, log_of
from tests.training.samples import config_file, pack_of, tiny
from tests.training.waiting import WouldWait, nothing_waits, on_the_host
from training import PackedCollator, plan, train_step, use_backend
from training.attention import limits
from training.attention.interface import model_inputs
from training.attention.limits import most_segments, numbers_per_token
from training.checking.parity import parity
from training.checking.probe import probe
from training.shards import open_shards

CLEAN = [row[0] for row in ROWS if row[1] == "clean"]
OWN_ATTENTION = ("codegen", "gptj", "gpt_neo")
REFUSED = {
    ("gemma2", "torch-varlen"): "has no softcap: choose flash-attn or sdpa",
    ("vaultgemma", "torch-varlen"): "has no softcap: choose flash-attn or sdpa",
    ("gpt_oss", "flash-attn"): "has no attention sinks: choose the backend sdpa",
    ("gpt_oss", "torch-varlen"): "has no attention sinks: choose the backend sdpa",
    ("dbrx", "flash-attn"): "--dtype float32 goes, by the backend sdpa",
    ("dbrx", "torch-varlen"): "--dtype float32 goes, by the backend sdpa",
}
ROUTED = ("mixtral", "qwen3_moe", "jetmoe", "dots1", "exaone_moe", "deepseek_v3")


@pytest.mark.parametrize("family", CLEAN)
@pytest.mark.parametrize("backend", ["flash-attn", "torch-varlen"])
def test_clean_families_are_clean_or_told_what_would_work(
    family: str, backend: KernelName, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, backend)
    model = tiny(family)
    found = probe(model, backend, autocast=torch.bfloat16)
    if (family, backend) in REFUSED:
        assert found.verdict == "refuses"
        assert REFUSED[family, backend] in str(found.message)
        return
    assert found.verdict == "clean"
    assert found.gradient == found.ahead == 0
    if family in OWN_ATTENTION:
        assert found.kernel is None
        assert not CALLS
    else:
        assert 0 < (found.kernel or 0) < 0.02
        assert CALLS[backend]
        assert CALLS[f"{backend} backward"]
        assert numbers_per_token(model.config) == max(NUMBERS)


@pytest.mark.parametrize("family", ["falcon", "mamba"])
def test_leaks_show_under_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash-attn")
    assert probe(tiny(family), "flash-attn", autocast=torch.bfloat16).verdict == "leaks"
    _, rounded = parity(tiny(family), [pack_of([9, 8, 4])], "flash-attn", dtype=torch.bfloat16)
    assert not rounded.agrees
    assert rounded.loss_difference > 5 * rounded.most_loss


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ({"window_size": (2, 0)}, "differs"),  # leaves tokens out
        ({"softmax_scale": 0.1}, "differs"),
        ({"causal": False}, "looks ahead"),
        ({}, "leaks"),
    ],
)
def test_a_wrong_kernel_is_found(wrong: dict[str, Any], verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is right, so that only what is asked of the kernel itself shows it."""

    def faulty(*arguments: Any, **named: Any) -> Any:
        return flash_attn_varlen_func(*arguments, **named | wrong)

    def leaking(q: Any, k: Any, v: Any, cu_seqlens: torch.Tensor, *rest: Any, **named: Any) -> Any:
        whole = cu_seqlens[[0, -1]]
        return flash_attn_varlen_func(q, k, v, whole, whole, len(q), len(q), **named)

    monkeypatch.setattr("tests.training.kernels.flash_attn_varlen_func", faulty if wrong else leaking)
    stand_in(monkeypatch, "flash-attn")
    found = probe(tiny(), "flash-attn", autocast=torch.bfloat16)
    assert (found.verdict, found.layer) == (verdict, "LlamaAttention")
    assert found.logits == 0
    (_, rounded) = parity(tiny(), [pack_of([12, 16])], "flash-attn", dtype=torch.bfloat16)
    assert not rounded.agrees


@pytest.mark.parametrize("family", ROUTED)
def test_routers_that_choose_otherwise_are_rounding(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash-attn")
    packs = [pack_of([9, 1, 14, 6], 2), pack_of([16, 3], 3)]
    exact, rounded = parity(tiny(family, 2), packs, "flash-attn", dtype=torch.bfloat16)
    assert exact.agrees
    assert rounded.agrees
    assert 0 < (rounded.kernel_difference or 0) < 0.02


@pytest.mark.parametrize("backend", ["flash-attn", "torch-varlen"])
def test_training_is_the_same_in_every_bit_if_asked_to(
    backend: KernelName, training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, backend)
    train = ["--backend", "auto", "--dtype", "bfloat16", "--no-check", "--packs-per-step", 2, "--learning-rate", "1e-2"]
    for name, more in (("one", []), ("two", []), ("three", ["--deterministic"]), ("four", ["--deterministic"])):
        CALLS.clear()
        ended = training(*command(shards, tmp_path, tmp_path / name, *train, *more, "--json", steps=2))
        assert ended.code == 0, ended.err
        assert ended.json["backend"] == backend
        assert bool(CALLS[f"{backend} deterministic backward"]) == bool(more)
        assert bool(CALLS[f"{backend} backward"]) == (not more)
    assert not equal(tmp_path / "one", tmp_path / "two")  # stand-ins round as they like
    assert equal(tmp_path / "three", tmp_path / "four")
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_cannot_be_deterministic_is_said(
    training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any, **__: Any) -> None:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))

    monkeypatch.setattr("training.running.loop.train_step", step)
    ended = training(*command(shards, tmp_path, tmp_path / "out", "--deterministic", "--no-check"))
    assert ended.code == 2
    assert "--deterministic: put_ does not have a deterministic implementation" in ended.err


@pytest.mark.parametrize(("family", "backend"), [("mixtral", "flash-attn"), ("gemma2", "sdpa")])
def test_all_commands_under_kernels(
    family: str, backend: str, training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mixture of experts is trained; and what one kernel cannot do is no reason to refuse a model."""
    stand_in(monkeypatch, "flash-attn" if family == "mixtral" else "torch-varlen")
    config, half = config_file(tmp_path, family), ("--dtype", "bfloat16", "--json")
    found = training("probe", "--model", config, *half)
    assert (found.code, found.json["verdict"]) == (0, "clean")
    assert f"attention by {backend} on cpu" in found.err
    compared = training("parity", "--model", config, "--shards", shards, "--packs", 1, *half)
    assert compared.code == 0, compared.json
    assert [each["backend"] for each in compared.json["comparisons"]] == ["sdpa", backend]
    some = ("--layouts", "minibatch,packed", "--steps", 1, "--rounds", 1)
    measured = training("bench", "--model", config, "--shards", shards, *some, *half)
    assert (measured.code, measured.json["backend"], measured.json["verdict"]) == (0, backend, "clean")
    assert all(each["tokens_per_second"] > 0 for each in measured.json["layouts"].values())
    CALLS.clear()
    train = ("train", "--model", config, "--shards", shards, "--output", tmp_path / "out", "--learning-rate", "1e-2")
    trained = training(*train, "--steps", 12, "--packs-per-step", 3, *half)
    assert trained.code == 0, trained.err
    losses = [line["loss"] for line in log_of(tmp_path / "out")]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert bool(CALLS[f"{backend} backward"]) == (backend != "sdpa")
    refused = training("probe", "--model", config, "--backend", "torch-varlen", *half)
    if family == "gemma2":
        assert refused.code == 4
        assert "torch-varlen has no softcap: choose flash-attn or sdpa" in refused.json["finding"]["message"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "opt"])
def test_no_layer_and_no_step_waits_for_a_device(
    family: str, kernel: KernelName, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, kernel)
    for name in ("_refuse_divided", "targets_of"):  # they look at batches on the CPU, before anything goes to a device
        monkeypatch.setattr(f"training.plan.{name}", on_the_host(getattr(plan, name)))
    model = tiny(family).train()
    use_backend(model, kernel.partition(" ")[0])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)  # as on a GPU
    batches = [PackedCollator(sample_mean=True)([pack_of(lengths)]) for lengths in ([9, 1, 14], [5, 3])]
    train_step(model, batches, optimizer, autocast=torch.bfloat16)  # the first asks the model what its head computes
    for packs in (batches[0], batches):
        with nothing_waits():
            result = train_step(model, packs, optimizer, autocast=torch.bfloat16)
    assert float(result.loss) > 0
    with nothing_waits(), pytest.raises(WouldWait, match="_local_scalar_dense"):
        float(result.loss)


def test_what_waits_is_seen() -> None:
    ten, some = torch.arange(10), torch.arange(10) > 5
    for waiting in (some.nonzero, lambda: ten[some], lambda: ten.masked_select(some), lambda: ten.__setitem__(some, 1)):
        with nothing_waits(), pytest.raises(WouldWait):
            waiting()
    use_backend(model := tiny(), "sdpa")
    with nothing_waits(), pytest.raises(WouldWait):  # the reference reads where segments begin
        model(**model_inputs(model, PackedCollator()([pack_of([4, 5])])))


def test_float32_is_float32_whatever_the_process_says() -> None:
    model, seen = tiny(), []
    matmul = torch.backends.cuda.matmul
    model.register_forward_pre_hook(lambda *_: seen.append(matmul.fp32_precision))
    torch.set_float32_matmul_precision("high")
    try:
        parity(model, [pack_of([4, 5])], "sdpa", dtype=torch.bfloat16)
        assert set(seen[:3]) == {"ieee"}  # two samples and their pack
        assert set(seen[3:]) == {"tf32"}
        assert torch.get_float32_matmul_precision() == "high"
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_segments_that_kernels_can_go_back_through() -> None:
    config = LlamaConfig(num_attention_heads=32, hidden_size=4096)
    assert most_segments(config, 131_072) == 3071, "one more makes exactly 2³¹ numbers"
    assert most_segments(LlamaConfig(num_attention_heads=64, hidden_size=8192), 131_072) == 1023
    assert most_segments(LlamaConfig(num_attention_heads=64, hidden_size=8192), 1 << 18) < 1


@pytest.mark.parametrize("backend", ["flash-attn", "torch-varlen"])
def test_more_segments_are_refused_before_the_first_step(
    backend: KernelName, training: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, backend)
    numbers = numbers_per_token(LlamaConfig.from_json_file(config_file(tmp_path)))
    opened = open_shards(str(shards))
    two_packs = 2 * opened.capacity + 128 * 2 * (opened.most_segments - 1)  # each has one segment too many
    monkeypatch.setattr(limits, "_MOST_NUMBERS", numbers * two_packs + 1)

    def ended(name: str, by: str, *more: object) -> Ended:
        given = ["--shards", shards, "--model", config_file(tmp_path), "--backend", by, "--dtype", "bfloat16"]
        return training(name, *given, *more)

    train = ["--steps", 1, "--output"]
    assert ended("train", backend, *train, tmp_path / "one").code == 0
    two = ("--packs-per-forward", 2)
    for refused in (ended("train", backend, *train, tmp_path / "two", *two), ended("bench", backend, *two)):
        assert refused.code == 3
        assert f"pack with --max-segments {opened.most_segments - 1}, or take fewer --packs-per-forward" in refused.err
    told = ended("train", "sdpa", *train, tmp_path / "sdpa", *two)
    assert told.code == 0
    assert "sdpa does not mind" in told.err
    monkeypatch.setattr(limits, "_MOST_NUMBERS", numbers)
    refused = ended("parity", backend)
    assert refused.code == 3
    assert "with more than 0 of them" in refused.err
    assert "pack with a smaller --max-length" in refused.err
