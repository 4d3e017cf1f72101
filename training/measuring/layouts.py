"""The same samples, given to a model in different ways: what packing is measured against.

Every layout turns the same samples into the same number of batches, of about the same number of samples each:

- padded: to the longest of a shuffled batch;
- length-grouped: the same, with batches of about one length;
- transformers-flattening: shuffled batches end to end, by transformers' `DataCollatorWithFlattening`;
- minibatch: the same batches, by `PackedCollator`;
- packed: packs;
- packed-static: packs in rows of one length and a few shapes, decoder layers compiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithFlattening

from pipeline.format.labels import IGNORE
from training.collator import PackedCollator
from training.options import FLATTENING, GROUPED, MINIBATCH, PACKED, STATIC
from training.shapes import Shape, choose_shapes, pack_shapes

_MEGA_BATCH = 50
"""Batches whose samples are sorted together where they are grouped by length, as transformers' `Trainer` does."""

Sample = Mapping[str, Any]
"""input_ids and labels of one sample, as arrays."""


@dataclass(frozen=True)
class LayoutBatch:
    """A batch with what there is to train in it."""

    tensors: dict[str, Any]
    tokens: int
    targets: int
    samples: int
    computed: int
    """Tokens that pass through the model, padding included."""


def samples_of(packs: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """The segments of packs, as samples of their own."""
    return [
        {name: pack[name][begin:end] for name in ("input_ids", "labels")}
        for pack in packs
        for begin, end in pairwise(np.asarray(pack["boundaries"]).tolist())
    ]


def layout_batches(
    layout: str, packs: Sequence[Mapping[str, Any]], packs_per_forward: int, capacity: int, seed: int
) -> list[LayoutBatch]:
    """All packs in a layout, one batch a step; packs come in whole steps."""
    num_steps = len(packs) // packs_per_forward
    packs = packs[: num_steps * packs_per_forward]
    if layout in (PACKED, STATIC):
        collate = PackedCollator(targets=True)
        if layout == STATIC:
            size = packs_per_forward * capacity
            collate = PackedCollator(targets=True, pad_to=size, shapes=_shapes(packs, packs_per_forward, capacity))
        steps = [packs[at : at + packs_per_forward] for at in range(0, len(packs), packs_per_forward)]
        return [_batch(collate(each), samples_of(each)) for each in steps]
    samples = samples_of(packs)
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(samples))
    size = -(-len(samples) // num_steps)
    if layout == GROUPED:
        mega = [order[at : at + _MEGA_BATCH * size] for at in range(0, len(order), _MEGA_BATCH * size)]
        order = np.concatenate([sorted(each, key=lambda at: -len(samples[at]["input_ids"])) for each in mega])
    steps = [[samples[at] for at in order[first : first + size]] for first in range(0, len(order), size)]
    lay = {MINIBATCH: _flattened, FLATTENING: _by_transformers}.get(layout, _padded)
    return [_batch(lay(each), each) for each in steps]


def _shapes(packs: Sequence[Mapping[str, Any]], packs_per_forward: int, capacity: int) -> tuple[Shape, ...]:
    lengths = [np.diff(pack["boundaries"]) for pack in packs]
    longest, segments, tokens = (np.array([what(each) for each in lengths]) for what in (np.max, len, np.sum))
    return choose_shapes(*pack_shapes(longest, segments, tokens, capacity), packs_per_row=packs_per_forward)


def _batch(tensors: dict[str, Any], samples: Sequence[Sample]) -> LayoutBatch:
    return LayoutBatch(
        tensors,
        tokens=sum(len(each["input_ids"]) for each in samples),
        targets=sum(int((np.asarray(each["labels"]) != IGNORE).sum()) for each in samples),
        samples=len(samples),
        computed=tensors["input_ids"].numel(),
    )


def _flattened(samples: Sequence[Sample]) -> dict[str, Any]:
    lengths = [len(each["input_ids"]) for each in samples]
    return PackedCollator()(
        [
            {
                "input_ids": np.concatenate([each["input_ids"] for each in samples]),
                "labels": np.concatenate([each["labels"] for each in samples]),
                "position_ids": np.concatenate([np.arange(length) for length in lengths]),
                "boundaries": np.cumsum([0, *lengths]),
            }
        ]
    )


def _by_transformers(samples: Sequence[Sample]) -> dict[str, Any]:
    rows = [{name: np.asarray(each[name]).tolist() for name in ("input_ids", "labels")} for each in samples]
    collate = DataCollatorWithFlattening(return_position_ids=True)
    flattened: dict[str, Any] = collate(rows)
    return flattened


def _padded(samples: Sequence[Sample]) -> dict[str, Any]:
    """Rows as long as the longest, with the mask that transformers wants."""
    longest = max(len(each["input_ids"]) for each in samples)
    shape = (len(samples), longest)
    rows = {
        "input_ids": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, IGNORE),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for number, each in enumerate(samples):
        length = len(each["input_ids"])
        for name in ("input_ids", "labels"):
            rows[name][number, :length] = torch.as_tensor(np.asarray(each[name]))
        rows["attention_mask"][number, :length] = 1
    return rows
