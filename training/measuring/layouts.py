"""The same samples, given to a model in different ways: what packing is measured against.

Every layout turns the same samples into the same number of steps, of about the same number of samples each:

- padded: to the longest of a shuffled batch;
- length-grouped: the same, with batches of about one length;
- transformers-flattening: shuffled batches end to end, by transformers' `DataCollatorWithFlattening`;
- transformers-flattening-cu-seqlens: the same with `return_flash_attn_kwargs=True`, so that no layer looks for samples;
- minibatch: the same batches, by `PackedCollator`;
- packed: packs;
- packed-static: packs in rows of one length and a few shapes, decoder layers compiled;
- dense: each pack as one causal sequence: what attention within segments is measured against, nothing to train by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import DataCollatorWithFlattening

from pipeline.format.labels import IGNORE
from training.collator import PackedCollator
from training.options import DENSE, FLATTENED, FLATTENING_TOLD, GROUPED, MINIBATCH, PACKED, STATIC
from training.shapes import Shape, choose_shapes, pack_shapes

_MEGA_BATCH = 50
"""Batches whose samples are sorted together where they are grouped by length, as transformers' `Trainer` does."""

Sample = Mapping[str, Any]
"""input_ids and labels of one sample, as arrays."""

_Each = TypeVar("_Each")


@dataclass(frozen=True)
class LayoutStep:
    """What one step trains, with what there is to train in it."""

    micro_batches: list[dict[str, Any]]
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


def layout_steps(
    layout: str, packs: Sequence[Mapping[str, Any]], packs_per_forward: int, capacity: int, seed: int, parts: int = 1
) -> list[LayoutStep]:
    """All packs in a layout, `packs_per_forward` a step, or as many samples as they have.

    packs: they come in whole steps; what is over is left out.
    parts: micro-batches of a step, which its packs, or its samples, are dealt to in their order; fewer, where they are.
    """
    num_steps = len(packs) // packs_per_forward
    packs = packs[: num_steps * packs_per_forward]
    if layout in (PACKED, STATIC, DENSE):
        collate = PackedCollator(targets=True, seq_idx=True, attention="joint" if layout == DENSE else "isolated")
        if layout == STATIC:
            packs_per_row = -(-packs_per_forward // parts)
            shapes = _shapes(packs, packs_per_row, capacity)
            collate = PackedCollator(targets=True, seq_idx=True, pad_to=packs_per_row * capacity, shapes=shapes)
        steps = [packs[at : at + packs_per_forward] for at in range(0, len(packs), packs_per_forward)]
        return [_step([collate(part) for part in _dealt(each, parts)], samples_of(each)) for each in steps]
    samples = samples_of(packs)
    draws = np.random.default_rng(seed)
    order = draws.permutation(len(samples))
    size = -(-len(samples) // num_steps)
    if layout == GROUPED:
        mega = [order[at : at + _MEGA_BATCH * size] for at in range(0, len(order), _MEGA_BATCH * size)]
        order = np.concatenate([sorted(each, key=lambda at: -len(samples[at]["input_ids"])) for each in mega])
    of_steps = [[samples[at] for at in order[first : first + size]] for first in range(0, len(order), size)]
    flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=layout == FLATTENING_TOLD)

    def lay(part: Sequence[Sample]) -> dict[str, Any]:
        if layout in FLATTENED:
            flattened: dict[str, Any] = flatten(_lists(part))
            return flattened
        return _flattened(part) if layout == MINIBATCH else _padded(part)

    return [_step([lay(part) for part in _dealt(each, parts)], each) for each in of_steps]


def _dealt(each: Sequence[_Each], parts: int) -> list[Sequence[_Each]]:
    """As many pieces, of about one size; none is empty."""
    parts = min(parts, len(each))
    ends = [len(each) * number // parts for number in range(parts + 1)]
    return [each[begin:end] for begin, end in pairwise(ends)]


def _shapes(packs: Sequence[Mapping[str, Any]], packs_per_forward: int, capacity: int) -> tuple[Shape, ...]:
    lengths = [np.diff(pack["boundaries"]) for pack in packs]
    longest, segments, tokens = (np.array([what(each) for each in lengths]) for what in (np.max, len, np.sum))
    return choose_shapes(*pack_shapes(longest, segments, tokens, capacity), packs_per_row=packs_per_forward)


def _step(micro_batches: list[dict[str, Any]], samples: Sequence[Sample]) -> LayoutStep:
    return LayoutStep(
        micro_batches,
        tokens=sum(len(each["input_ids"]) for each in samples),
        targets=sum(int((np.asarray(each["labels"]) != IGNORE).sum()) for each in samples),
        samples=len(samples),
        computed=sum(each["input_ids"].numel() for each in micro_batches),
    )


def _flattened(samples: Sequence[Sample]) -> dict[str, Any]:
    lengths = [len(each["input_ids"]) for each in samples]
    return PackedCollator(seq_idx=True)(
        [
            {
                "input_ids": np.concatenate([each["input_ids"] for each in samples]),
                "labels": np.concatenate([each["labels"] for each in samples]),
                "position_ids": np.concatenate([np.arange(length) for length in lengths]),
                "boundaries": np.cumsum([0, *lengths]),
            }
        ]
    )


def _lists(samples: Sequence[Sample]) -> list[dict[str, list[int]]]:
    return [{name: np.asarray(each[name]).tolist() for name in ("input_ids", "labels")} for each in samples]


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
