from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import strategies
from tests.training.samples import Pack, pack_of
from training import PackedCollator
from training.packs import Integers
from training.shapes import BLOCK, MOST_SHAPES, Shape, choose_shapes, pack_shapes

Lengths = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


def as_dataset(packs: list[Pack]) -> datasets.Dataset:
    columns = {name: pa.array([pack[name].tolist() for pack in packs], pa.list_(pa.int32())) for name in packs[0]}
    return datasets.Dataset(pa.table(columns))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        if isinstance(one[name], torch.Tensor)
        else one[name] == other[name]
        for name in one
    )


@given(Lengths)
def test_packs_become_one_row_with_flash_attentions_boundaries(lengths: list[list[int]]) -> None:
    packs = [pack_of(each, seed) for seed, each in enumerate(lengths)]
    batch = PackedCollator()(packs)
    flat = [length for each in lengths for length in each]
    assert batch["cu_seq_lens_q"].tolist() == np.cumsum([0, *flat]).tolist() == batch["cu_seq_lens_k"].tolist()
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == max(flat) == batch["max_length_k"]
    assert type(batch["max_length_q"]) is int
    for name in ("input_ids", "labels", "position_ids"):
        assert batch[name].shape == (1, sum(flat))
        assert batch[name].dtype == torch.int64
        assert batch[name][0].tolist() == np.concatenate([pack[name] for pack in packs]).tolist()
    assert "attention_mask" not in batch


@given(Lengths, st.booleans())
def test_lists_numpy_and_arrow_give_the_same_batch(lengths: list[list[int]], static: bool) -> None:
    packs = [pack_of(each, seed) for seed, each in enumerate(lengths)]
    total = sum(map(sum, lengths))
    collate = PackedCollator(pad_to=total + 3 if static else None, sample_mean=True, seq_idx=True)
    batch = collate(packs)
    plain = as_dataset(packs)
    arrow = plain.with_format("arrow")
    assert same(batch, collate([plain[number] for number in range(len(packs))]))  # Python lists
    assert same(batch, collate(plain.with_format("torch").__getitems__(list(range(len(packs))))))
    assert same(batch, collate([arrow[number] for number in range(len(packs))]))  # one-row tables
    assert same(batch, collate(arrow[:]))  # one table
    sliced = arrow[:].slice(len(packs) - 1)  # keeps its parent's buffers
    assert same(collate(packs[-1:]), collate(sliced))


@pytest.mark.parametrize("format_", [None, "numpy", "torch", "arrow"])
@pytest.mark.parametrize("lengths", [[[3, 4], [7], [1, 1, 5]], [[3, 4], [7, 1], [2]], [[2]]])
def test_a_slice_of_a_dataset_is_its_packs(lengths: list[list[int]], format_: str | None) -> None:
    """Of packs of one length numpy and torch make a matrix."""
    packs = [pack_of(each, seed) for seed, each in enumerate(lengths)]
    dataset = as_dataset(packs).with_format(format_)
    assert same(PackedCollator()(dataset[:]), PackedCollator()(packs))
    assert same(PackedCollator()(dataset[0]), PackedCollator()(packs[:1]))


def test_serves_a_data_loader() -> None:
    packs = [pack_of([3, 4], 0), pack_of([7], 1), pack_of([1, 1, 5], 2)]
    for format_ in (None, "numpy", "torch"):
        loader = DataLoader(as_dataset(packs).with_format(format_), batch_size=2, collate_fn=PackedCollator())
        batches = list(loader)
        assert [batch["cu_seq_lens_q"].tolist() for batch in batches] == [[0, 3, 7, 14], [0, 1, 2, 7]]


@given(Lengths)
def test_joint_attention_makes_a_pack_one_segment(lengths: list[list[int]]) -> None:
    packs = [pack_of(each, seed) for seed, each in enumerate(lengths)]
    batch = PackedCollator(attention="joint")(packs)
    totals = [sum(each) for each in lengths]
    assert batch["cu_seq_lens_q"].tolist() == np.cumsum([0, *totals]).tolist()
    assert batch["position_ids"][0].tolist() == [at for total in totals for at in range(total)]
    starts = np.cumsum([0, *(length for each in lengths for length in each)])[:-1]
    assert set(batch["labels"][0, starts].tolist()) == {-100}  # as where attention is isolated
    assert torch.equal(batch["labels"], PackedCollator()(packs)["labels"])


@given(Lengths, st.integers(0, 20), st.integers(0, 3))
def test_padding_is_segments_of_its_own_and_shapes_are_constant(
    lengths: list[list[int]], missing: int, more: int
) -> None:
    packs = [pack_of(each, seed) for seed, each in enumerate(lengths)]
    flat = [length for each in lengths for length in each]
    size, longest = sum(flat) + missing, max(flat) + more
    pieces = [longest] * (missing // longest) + [missing % longest] * (missing % longest > 0)
    most = len(flat) + len(pieces) + more
    batch = PackedCollator(pad_to=size, max_length=longest, max_segments=most, pad_token_id=7)(packs)
    boundaries = np.cumsum([0, *flat, *pieces]).tolist()
    assert batch["cu_seq_lens_q"].tolist() == boundaries + [size] * (most + 1 - len(boundaries))
    assert batch["max_length_q"] == longest == batch["max_length_k"]
    padding = {name: batch[name][0, sum(flat) :].tolist() for name in ("input_ids", "labels", "position_ids")}
    assert padding["input_ids"] == [7] * missing
    assert padding["labels"] == [-100] * missing
    assert max(padding["position_ids"], default=0) < max(flat)  # a model may have no more positions
    assert batch["input_ids"].shape == (1, size)


@given(Lengths, st.integers(1, 30))
def test_targets_are_where_the_labels_say_and_filled_up(lengths: list[list[int]], more: int) -> None:
    packs = [pack_of(each, seed) for seed, each in enumerate(lengths)]
    found = PackedCollator(targets=True)(packs)
    expected = (found["labels"][0] != -100).nonzero()[:, 0].tolist()
    assert found["targets"].tolist() == expected
    static = PackedCollator(pad_to=500, max_targets=len(expected) + more)(packs)
    assert static["targets"].tolist() == expected + [0] * more


def test_the_first_token_of_a_segment_is_no_target_whatever_the_data_says() -> None:
    pack = pack_of([3, 1, 4], trained=1.0)
    wrong = {**pack, "labels": pack["input_ids"].copy(), "target_counts": np.array([3, 1, 4], np.int32)}
    for attention in ("isolated", "joint"):
        collate = PackedCollator(attention=attention, sample_mean=True, pad_to=12, targets=True)
        assert same(collate([wrong]), collate([pack]))


@given(Lengths)
def test_weights_of_the_sample_mean_sum_to_one_in_each_sample_with_targets(lengths: list[list[int]]) -> None:
    packs = [pack_of(each, seed, trained=0.4) for seed, each in enumerate(lengths)]
    for attention in ("isolated", "joint"):
        batch = PackedCollator(attention=attention, sample_mean=True, pad_to=200)(packs)
        weights = batch["loss_weights"][0]
        assert set((weights > 0).nonzero()[:, 0].tolist()) == set((batch["labels"][0] != -100).nonzero()[:, 0].tolist())
        at = 0
        for pack in packs:
            for length, targets in zip(pack["seq_lengths"].tolist(), pack["target_counts"].tolist(), strict=True):
                assert float(weights[at : at + length].sum()) == pytest.approx(1.0 if targets else 0.0)
                at += length
        assert float(weights[at:].sum()) == 0


def test_segments_are_numbered_on_request() -> None:
    batch = PackedCollator(seq_idx=True, pad_to=9)([pack_of([2, 3]), pack_of([1])])
    assert batch["seq_idx"].tolist() == [[0, 0, 1, 1, 1, 2, 3, 3, 3]]
    assert batch["seq_idx"].dtype == torch.int32
    assert "seq_idx" not in PackedCollator()([pack_of([2])])


def test_a_row_takes_the_first_shape_that_has_room() -> None:
    collate = PackedCollator(pad_to=12, shapes=(Shape(2, 7), Shape(6, 3)))
    assert collate([pack_of([2, 1, 2])])["cu_seq_lens_q"].tolist() == [0, 2, 3, 5, 7, 9, 11, 12]
    batch = collate([pack_of([6, 3])])
    assert batch["cu_seq_lens_q"].tolist() == [0, 6, 9, 12]
    assert batch["max_length_q"] == 6


@pytest.mark.parametrize(
    ("options", "packs", "said"),
    [
        ({"pad_to": 4}, [pack_of([3, 2])], "1 packs of 5 tokens do not fit pad_to=4"),
        ({"pad_to": 9, "max_segments": 2}, [pack_of([3, 2])], "3 segments, padding included"),
        ({"pad_to": 9, "max_length": 2}, [pack_of([3, 2])], "a segment of 3 tokens is longer than max_length=2"),
        ({"pad_to": 9, "max_targets": 2}, [pack_of([3, 4], trained=1.0)], "5 targets are more than max_targets=2"),
        ({}, [], "no packs"),
        ({}, "packs", "not str of str"),
        ({}, [{"input_ids": [1, 2], "labels": [-100, 2], "position_ids": [0, 1]}], "remove_unused_columns=False"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], packs: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PackedCollator(**options)(packs)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "full"},
        {"max_segments": 3},
        {"max_length": 3},
        {"max_targets": 3},
        {"shapes": (Shape(1, 1),)},
        {"pad_to": 0},
        {"pad_to": 4, "max_targets": 4},
        {"pad_to": 4, "max_length": 2, "shapes": (Shape(1, 1),)},
    ],
)
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"attention must be|no effect|at least 1|never a target|not beside"):
        PackedCollator(**options)


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
    plan = strategies.pack(lengths.tolist(), capacity, "best-fit-decreasing")
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
