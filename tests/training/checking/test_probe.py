from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
import transformers

from tests.conftest import Run
from tests.training.samples import config_file, pack_of, tiny
from training.checking.families import FAMILIES, tiny_config
from training.checking.parity import parity
from training.checking.probe import SEGMENTS, probe, probe_ways

PAGE = Path(__file__).parents[3] / "docs/families.md"
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| family", "| ---"))
]


def test_the_page_names_every_family() -> None:
    assert sorted(row[0] for row in ROWS) == sorted(FAMILIES)
    assert sum(row[1] == "clean" for row in ROWS) >= 30
    assert {row[1] for row in ROWS} == {"clean", "leaks", "refuses"}
    clean = {row[0] for row in ROWS if row[1] == "clean"}
    leaking_by_positions = {row[0] for row in ROWS if row[3] == "leaks"}
    assert {"opt", "gpt_oss", "biogpt"} <= clean & leaking_by_positions  # repaired


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_page_says_what_is_found(row: list[str]) -> None:
    if f"transformers {transformers.__version__} " not in PAGE.read_text(encoding="utf-8"):
        pytest.skip("the page was written with another version of transformers")
    positions, cached, masked, ours = probe_ways(tiny(row[0]))
    assert [each.verdict for each in (ours, positions, cached, masked)] == [row[1], *row[3:]]
    if ours.verdict == "leaks":
        assert ours.layer == row[2]
    assert masked.verdict == "leaks"  # the most common mistake, in every family


@pytest.mark.parametrize("family", [row[0] for row in ROWS if row[1] == "clean"])
def test_clean_families_train_as_their_samples_one_by_one(family: str) -> None:
    lengths = [9, 1, 14, 6] if family != "llama4_text" else [9, 1, 16, 6]
    model, computed = tiny(family), []
    model.register_forward_hook(lambda _, __, output: computed.append(output.logits.shape[1]))
    (found,) = parity(model, [pack_of(lengths, 0), pack_of([16, 3], 1)], "sdpa")
    assert found.targets > 20
    assert sum(computed[-2:]) == found.targets  # the two packs: logits of targets alone
    assert found.max_difference <= 1e-5
    assert found.gradient_difference <= 1e-4


def test_a_model_that_sees_what_comes_after_is_found() -> None:
    """It keeps samples apart, and yet learns nothing: every target is before its eyes."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=128,
        initializer_range=0.2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    found = probe(transformers.BertLMHeadModel(config).eval(), "sdpa")
    assert found.verdict == "looks ahead"
    assert found.earlier is not None
    assert found.earlier > 0.1
    assert found.logits == 0
    assert found.layer == "BertSelfAttention"
    assert found.gradient == 0


def test_parity_sees_a_leak() -> None:
    (found,) = parity(tiny("falcon"), [pack_of([9, 8])], "sdpa")
    assert not found.agrees
    assert found.max_difference > 0.1


def test_parity_compares_packs_with_several_samples(training: Run, tmp_path: Path) -> None:
    alone = [{name: each.tolist() for name, each in pack_of([9], seed).items()} for seed in range(8)]
    several = {name: each.tolist() for name, each in pack_of([4, 5, 6]).items()}
    parity = ["parity", "--model", config_file(tmp_path, "falcon"), "--shards"]
    datasets.Dataset.from_list(alone).save_to_disk(str(tmp_path / "alone"))
    ended = training(*parity, tmp_path / "alone")
    assert ended.code == 3
    assert "every pack holds one sample alone, so there is nothing to compare" in ended.err
    datasets.Dataset.from_list([*alone, several]).save_to_disk(str(tmp_path / "mixed"))
    ended = training(*parity, tmp_path / "mixed", "--json")
    assert ended.code == 4
    assert (ended.json["packs"], ended.json["samples"]) == (1, 3)


def test_parity_allows_lower_precision_its_own_rounding() -> None:
    exact, rounded = parity(tiny(), [pack_of([9, 8, 4]), pack_of([21])], "sdpa", dtype=torch.bfloat16)
    assert exact.agrees
    assert exact.dtype == "float32"
    assert rounded.agrees
    assert rounded.most_loss > 100 * exact.most_loss
    _, leaking = parity(tiny("falcon"), [pack_of([9, 8, 4])], "sdpa", dtype=torch.bfloat16)
    assert not leaking.agrees


def test_probing_under_autocast_judges_by_its_precision() -> None:
    model, computed = tiny(), []
    model.register_forward_hook(lambda _, __, output: computed.append(output.logits.dtype))
    assert probe(model, "sdpa", autocast=torch.bfloat16).verdict == "clean"
    assert computed[0] == torch.bfloat16  # what is differentiated
    assert set(computed[1:]) == {torch.float32}
    assert probe(tiny("falcon"), "sdpa", autocast=torch.bfloat16).verdict == "leaks"


def test_a_probed_model_is_left_as_it_was() -> None:
    model = tiny()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    attention = model.config._attn_implementation
    probe_ways(model)
    assert model.config._attn_implementation == attention
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


def test_positions_that_do_not_restart_are_no_leak_but_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ignores positions: gpt2 counts them through the row when it is given none."""
    model = tiny("gpt2")
    forward = model.forward

    def without_positions(**inputs: object) -> object:
        running = torch.arange(inputs["input_ids"].shape[1])[None]  # type: ignore[attr-defined]
        return forward(**{**inputs, "position_ids": running})

    monkeypatch.setattr(model, "forward", without_positions)
    found = probe(model, "sdpa")
    assert found.verdict == "differs"
    assert found.gradient == 0


def test_probe_ends_with_four_and_names_the_layer(training: Run, tmp_path: Path) -> None:
    clean = training("probe", "--model", config_file(tmp_path), "--json")
    assert clean.code == 0
    assert clean.json["verdict"] == "clean"
    assert clean.json["ways"] == []
    assert "attention by sdpa on cpu (flash-attn: its kernels need CUDA" in clean.err

    leaking = training("probe", "--model", config_file(tmp_path, "falcon"), "--json")
    assert leaking.code == 4
    assert leaking.json["finding"]["layer"] == "FalconAttention"
    shown = training("probe", "--model", config_file(tmp_path, "falcon"))
    assert "SEE EACH OTHER" in shown.out

    refusing = training("probe", "--model", config_file(tmp_path, "doge"))
    assert refusing.code == 4
    assert "DogeAttention got an attention mask" in refusing.out


def test_all_shows_the_mistake_of_a_mask_of_ones(training: Run, tmp_path: Path) -> None:
    ended = training("probe", "--model", config_file(tmp_path), "--all", "--json")
    assert ended.code == 0  # other ways have no verdict
    ways = {each["way"]: each for each in ended.json["ways"]}
    assert ways["positions"]["verdict"] == "clean"
    assert ways["positions, all-ones mask"]["verdict"] == "leaks"
    assert ways["positions, all-ones mask"]["logits"] > 0.1
    assert ways["positions, use_cache"]["verdict"] == "leaks"
    assert "our batch, sdpa" not in ways  # said once
    assert ended.json["finding"]["verdict"] == "clean"
    assert json.loads(json.dumps(ways)) == ways


@pytest.mark.parametrize("content", ["{}", "not json", '{"model_type": "nothing"}'])
def test_what_is_no_model_is_one_message(training: Run, tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    ended = training("probe", "--model", path)
    assert ended.code == 2
    assert f"model {path} cannot be loaded" in ended.err
    assert training("probe", "--model", tmp_path / "missing").code == 2


def test_the_row_is_long_enough_for_what_it_probes() -> None:
    assert max(SEGMENTS) > max(
        getattr(tiny_config(family), "sliding_window", None) or 0
        for family in FAMILIES
        if family != "modernbert-decoder"
    )
