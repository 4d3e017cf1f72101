"""Shapes of rows for a compiled model: a few, each with little for attention's kernels to launch in vain.

Kernels launch a block of threads for each 128 tokens of `max_length`, segment and head, whether there is work or not.
One shape for all packs would have the longest segment of any and the segments of the fullest: ten to hundreds of times
too many. Packs with a long segment have few segments, so shapes by the longest segment waste little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from training.packs import Integers

BLOCK = 128
"""Tokens of a block of FlashAttention's kernels."""

MOST_SHAPES = 8
"""As many graphs as torch compiles of one function by default."""


@dataclass(frozen=True, order=True)
class Shape:
    """What all rows of one shape have room for, at a given number of tokens."""

    max_length: int
    """Tokens of the longest segment."""

    max_segments: int
    """Segments, padding included."""

    def blocks(self) -> int:
        """Blocks that a kernel launches for each head."""
        return -(-self.max_length // BLOCK) * self.max_segments


def pack_shapes(longest: Integers, segments: Integers, tokens: Integers, capacity: int) -> tuple[Integers, Integers]:
    """(longest, segments) of packs in rows of `capacity`, where padding is cut as each pack's longest segment is.

    longest, segments, tokens: of each pack.  # shapes: (num_packs,)
    """
    return longest, segments + -(-(capacity - tokens) // longest)


def choose_shapes(
    longest: Integers, segments: Integers, *, packs_per_row: int = 1, most: int = MOST_SHAPES
) -> tuple[Shape, ...]:
    """Choose the shapes, at most `most`, that launch the fewest blocks over all packs; they rise in `max_length`.

    longest, segments: of each pack, padding included, see `pack_shapes`.  # shapes: (num_packs,)

    Every row of so many packs or fewer fits the first shape whose `max_length` is not exceeded: of the shape itself one
    pack at least, of this or an earlier shape the others.

    Packs are put in order of their blocks; where shapes end is found by dynamic programming. O(num_packs log num_packs
    + most · blocks²), blocks being the number of different ones, capacity / 128 at most.
    """
    blocks, of_pack, counts = np.unique(-(-longest // BLOCK), return_inverse=True, return_counts=True)
    length, fullest = np.zeros(len(blocks), np.int64), np.zeros(len(blocks), np.int64)
    np.maximum.at(length, of_pack, longest)
    np.maximum.at(fullest, of_pack, segments)
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.full((most + 1, len(blocks) + 1), np.inf)  # cost of the first packs in so many shapes
    least[:, 0] = 0
    begins = np.zeros(least.shape, np.int64)
    for end in range(1, len(blocks) + 1):
        room = np.maximum.accumulate(fullest[:end][::-1])[::-1]  # by where the last shape begins
        cost = (before[end] - before[:end]) * room * blocks[end - 1]
        for number in range(1, most + 1):
            total = least[number - 1, :end] + cost
            begins[number, end] = np.argmin(total)
            least[number, end] = total.min()
    shapes: list[tuple[int, int]] = []
    end, number = len(blocks), most
    while end:
        begin = int(begins[number, end])
        shapes.append((int(length[end - 1]), int(fullest[begin:end].max())))
        end, number = begin, number - 1
    shapes.reverse()
    most_so_far = np.maximum.accumulate([room for _, room in shapes]).tolist()
    return tuple(
        Shape(each, room + (packs_per_row - 1) * others)
        for (each, room), others in zip(shapes, most_so_far, strict=True)
    )


def layers_of(model: nn.Module) -> list[nn.Module]:
    """A model's decoder layers, outer ones before those inside; none, if they are not of transformers' kind."""
    return [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]


def compile_layers(model: nn.Module) -> list[nn.Module]:
    """Let torch compile each decoder layer by itself, in place, for static shapes; returns the layers.

    Layers of one kind share what is compiled, so that it takes a fraction of the time of a whole model; what stands
    around them, the head with its loss among it, stays as it is. A model without layers of transformers' kind is
    compiled as a whole.
    """
    # Each shape is a graph, of each kind of layer, with and without gradients.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * MOST_SHAPES)
    compiled = layers_of(model) or [model]
    for each in compiled:
        each.compile(fullgraph=True, dynamic=False)
    return compiled
