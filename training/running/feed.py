"""What steps compute with, made ready while the steps before them compute.

In a thread packs are read, checked, collated, pinned and sent to the device, in the order of the steps, and a few steps
ahead alone. What goes wrong there is raised where its batches are taken.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import torch
from transformers import PreTrainedModel

from pipeline.base.engine import map_ahead
from training.checking.content import check_packs
from training.collator import PackedCollator
from training.options import TrainOptions
from training.order import packs_of_step
from training.packs import Costs, costs
from training.place import Place
from training.plan import to_device
from training.shapes import choose_shapes, layers_of, pack_shapes
from training.shards import Shards

log = logging.getLogger(__name__)

AHEAD = 2
"""Steps that are made ready, besides the one that computes."""

THREAD = "feed"

Made = TypeVar("Made")


@dataclass(frozen=True)
class Feed:
    """Some packs for a model, as batches on its rank's device."""

    shards: Shards
    model: PreTrainedModel
    collate: PackedCollator
    device: torch.device

    def batches(self, packs: Iterable[list[int]]) -> tuple[list[dict[str, Any]], Costs]:
        """A batch for each list of pack numbers, and what there is to compute in them.

        Raises `DataError` for packs that do not fit themselves or the model: files may change under a run.
        """
        made, total = [], Costs()
        for numbers in packs:
            table = self.shards.packs.table(numbers)
            check_packs(table, self.model, self.shards)
            made.append(to_device(self.collate(table), self.device))
            total += costs(table, joint=self.collate.attention == "joint")
        return made, total


def packs_of_rank(options: TrainOptions, place: Place, num_packs: int, step: int) -> list[list[int]]:
    """The packs that a rank trains in a step, counted from 0, by micro-batch."""
    own = packs_of_step(num_packs, step, options.packs_per_step, options.seed)[place.rank :: place.num_ranks]
    return micro_batches(own, options.packs_per_forward)


def micro_batches(packs: list[int], packs_per_forward: int) -> list[list[int]]:
    """Packs as they go through a model."""
    return [packs[first : first + packs_per_forward] for first in range(0, len(packs), packs_per_forward)]


@contextmanager
def ahead(make: Callable[[int], Made], numbers: Iterable[int], device: torch.device) -> Iterator[Iterator[Made]]:
    """What is made of each number, in a thread, a few ahead of the one that is taken.

    Whatever `make` raises is raised where that would be taken. The thread ends with the block.
    """
    begin = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    pool = ThreadPoolExecutor(1, THREAD, initializer=begin)
    try:
        yield map_ahead(pool, make, numbers, AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def collator(options: TrainOptions, shards: Shards, model: PreTrainedModel) -> PackedCollator:
    """Rows of one length, and few shapes, where the model is compiled; and as many targets in each, if as a whole."""
    packs = options.packs_per_forward
    collate = plain_collator(options, sample_mean=options.loss == "sample-mean")
    if not options.compile:
        return collate
    of_packs = pack_shapes(*shards.extents(joint=options.attention == "joint"), shards.capacity)
    shapes = choose_shapes(*of_packs, packs_per_row=packs)
    log.info("compiled for %d shapes, from %s to %s", len(shapes), shapes[0], shapes[-1])
    max_targets = None if layers_of(model) else packs * _most_targets(shards)
    return dataclasses.replace(collate, pad_to=packs * shards.capacity, shapes=shapes, max_targets=max_targets)


def plain_collator(options: TrainOptions, *, sample_mean: bool) -> PackedCollator:
    """Rows as long as their packs. Segments are numbered, as they are for `probe`, unless a row is one."""
    has_several = options.attention == "isolated" or options.packs_per_forward > 1
    return PackedCollator(attention=options.attention, sample_mean=sample_mean, targets=True, seq_idx=has_several)


def _most_targets(shards: Shards) -> int:
    """The targets of the pack that has most."""
    counts = shards.packs.column("target_counts").combine_chunks()
    return int(np.bincount(pc.list_parent_indices(counts), pc.list_flatten(counts)).max())
