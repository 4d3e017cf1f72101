"""Static shapes launch few blocks in vain, and every row fits one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import pack
from tests.training.samples import pack_of
from training import PackedCollator
from training.packs import Integers
from training.shapes import BLOCK, MOST_SHAPES, choose_shapes, pack_shapes

LENGTHS = {  # as in scripts/gpu_check: mean and deviation of the logarithm
    "superni-like": (np.log(110), 0.75),
    "lognormal": (5.5, 1.0),
    "gsm8k-like": (np.log(170), 0.35),
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("capacity", [4096, 16384])
def test_few_blocks_are_launched_in_vain(name: str, capacity: int) -> None:
    draws = np.random.default_rng(0)
    lengths = np.clip(draws.lognormal(*LENGTHS[name], 60_000).astype(int), 8, 4096)
    plan = pack(lengths.tolist(), capacity, "best-fit-decreasing")
    segments, first = lengths[plan.segment], plan.pack_offsets[:-1]
    longest, tokens = np.maximum.reduceat(segments, first), np.add.reduceat(segments, first)
    with_work = np.add.reduceat(-(-segments // BLOCK), first)
    of_packs = pack_shapes(longest, np.diff(plan.pack_offsets), tokens, capacity)

    def launched(most: int) -> Integers:
        shapes = choose_shapes(*of_packs, most=most)
        assert len(shapes) <= most
        taken = np.searchsorted([each.max_length for each in shapes], longest)
        return np.array([each.blocks() for each in shapes])[taken]

    assert float((launched(MOST_SHAPES) / with_work).mean()) <= 3.5
    assert float((launched(1) / with_work).mean()) > 7  # or there was nothing to gain


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_any_packs_fit_a_shape(lengths: list[list[int]], most: int, packs_per_row: int, seed: int) -> None:
    """Also fewer than a row has room for, as the last of a step."""
    packs = [pack_of(each, number) for number, each in enumerate(lengths)]
    capacity = max(map(sum, lengths))
    longest, segments, tokens = (np.array([what(each) for each in lengths]) for what in (max, len, sum))
    shapes = choose_shapes(*pack_shapes(longest, segments, tokens, capacity), packs_per_row=packs_per_row, most=most)
    collate = PackedCollator(pad_to=packs_per_row * capacity, shapes=shapes)
    order = np.random.default_rng(seed).permutation(len(packs)).tolist()
    for at in range(0, len(order), packs_per_row):
        batch = collate([packs[number] for number in order[at : at + packs_per_row]])
        assert batch["cu_seq_lens_q"][-1] == packs_per_row * capacity
