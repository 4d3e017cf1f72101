from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.format.labels import IGNORE
from tests.conftest import Run
from tests.training.samples import config_file, losses_alone, pack_of, tiny
from training import use_backend
from training.attention.interface import model_inputs
from training.measuring.layouts import layout_steps
from training.measuring.metrics import training_flops
from training.options import DENSE, FLATTENED, GROUPED, LAYOUTS, MINIBATCH, OF_TRANSFORMERS, PADDED, STATIC
from training.packs import costs

PACKS = [pack_of([5, 9, 1], 0), pack_of([14], 1), pack_of([3, 3, 3, 3], 2), pack_of([7, 8], 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same_targets(layout: str) -> None:
    """The sum of the losses of all targets, however the samples are laid out, is that of the samples alone."""
    model = tiny()
    expected = sum(float(each.sum()) for pack in PACKS for each in losses_alone(model, pack))
    prepared = layout_steps(layout, PACKS, packs_per_forward=2, capacity=20, seed=0)
    assert len(prepared) == 2
    assert sum(each.samples for each in prepared) == 10
    assert sum(each.tokens for each in prepared) == sum(len(pack["input_ids"]) for pack in PACKS)
    assert sum(each.targets for each in prepared) == sum(int(pack["target_counts"].sum()) for pack in PACKS)
    total = 0.0
    for batch in [batch for each in prepared for batch in each.micro_batches]:
        labels = batch["labels"]
        if layout in OF_TRANSFORMERS:
            given = {name: value for name, value in batch.items() if name != "labels"}
            logits = model(**given, use_cache=False).logits
        else:
            use_backend(model, "sdpa")
            logits = model(**model_inputs(model, batch)).logits
            model.set_attn_implementation("sdpa")
        total += float(
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
            )
        )
    assert (total == pytest.approx(expected, rel=1e-5)) == (layout != DENSE)


def test_layouts_differ_in_what_is_computed() -> None:
    packs = [pack_of([1, 2, 30, 3], seed) for seed in range(6)]
    computed = {
        layout: sum(each.computed for each in layout_steps(layout, packs, 1, capacity=40, seed=0)) for layout in LAYOUTS
    }
    tokens = sum(len(pack["input_ids"]) for pack in packs)
    assert {computed[name] for name in (MINIBATCH, "packed", DENSE, *FLATTENED)} == {tokens}
    assert computed[STATIC] == 6 * 40
    assert tokens < computed[GROUPED] < computed[PADDED]


def test_bench_tells_every_layout(training: Run, shards: Path, tmp_path: Path) -> None:
    command = ["bench", "--shards", shards, "--model", config_file(tmp_path), "--steps", 2, "--rounds", 2]
    some = "padded,length-grouped,transformers-flattening,minibatch,packed,dense"
    ended = training(*command, "--packs-per-forward", 2, "--layouts", some, "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert list(found["layouts"]) == some.split(",")
    for name, each in found["layouts"].items():
        assert each["tokens_per_second"] > each["targets_per_second"] > 0
        assert ("times_padded" in each) == (name != "padded")
    assert found["layouts"]["padded"]["real_tokens"] < found["layouts"]["packed"]["real_tokens"] == 1
    assert found["device"]
    assert found["versions"]["torch"] == torch.__version__
    assert 0 < found["collating"]["part_of_step"] < 1
    assert "round 2 of 2: packed measured" in ended.err
    assert found["status"] == "measured"
    shown = training(*command, "--layouts", "padded,packed")
    assert "packed" in shown.out
    assert "of a packed step" in shown.out
    without_effect = training(*command, "--layouts", "padded", "--backend", "sdpa")
    assert without_effect.code == 2
    assert "--backend sdpa has no effect on padded" in without_effect.err
    unknown = training(*command, "--layouts", "padding")
    assert unknown.code == 2
    assert "there is no 'padding'" in unknown.err


def test_operations_are_counted_by_the_formula() -> None:
    model = tiny()  # 2 layers of width 32, 2 of 4 heads for keys and values, 64 in the middle, 128 ids
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert training_flops(model, 10, 4, 40.0) == 6 * (matrices * 10 + 32 * 128 * 4) + 6 * 2 * 32 * 40.0


def test_costs_are_those_of_the_segments() -> None:
    names = ("boundaries", "target_counts")
    table = pa.table({name: pa.array([pack[name].tolist() for pack in PACKS], pa.list_(pa.int32())) for name in names})
    for first in (0, 1):
        part, packs = table.slice(first), PACKS[first:]
        found = costs(part, joint=False)
        lengths = np.concatenate([np.diff(pack["boundaries"]) for pack in packs])
        assert found.tokens == lengths.sum()
        assert found.targets == sum(pack["target_counts"].sum() for pack in packs)
        assert found.sum_length_squared == (lengths**2).sum()
        assert costs(part, joint=True).sum_length_squared == sum(pack["boundaries"][-1] ** 2 for pack in packs)
