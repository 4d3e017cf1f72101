"""A cap on the segments of a pack: kept by every strategy, without effect where it does not bind, and few packs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import Plan, Strategy, find, pack
from strategies.contract import check
from strategies.registry import BUILT_IN
from strategies.testing import Case, length_lists, packs_of, request_for
from tests.strategies import reference


def least_packs(lengths: Any, capacity: int, max_segments: int) -> int:
    return max(-(-int(np.sum(lengths)) // capacity), -(-len(lengths) // max_segments))


def test_every_strategy_of_ours_keeps_to_a_cap() -> None:
    assert all(strategy.least_max_segments is not None for strategy in BUILT_IN)


@settings(max_examples=40)
@given(case=length_lists(), cap=st.integers(1, 9))
def test_a_pack_with_all_its_segments_has_no_room(case: Case, cap: int) -> None:
    for name in ("next-fit", "first-fit", "first-fit-decreasing"):
        expected = getattr(reference, name.replace("-", "_"))(*case, max_segments=cap)
        assert packs_of(pack(*case, name, max_segments=cap)) == expected


@pytest.mark.parametrize("strategy", [strategy for strategy in BUILT_IN if strategy.name != "minibatch"])
def test_a_cap_that_does_not_bind_changes_nothing(strategy: Strategy) -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 600).astype(np.int32)
    free = request_for(strategy, lengths, 1000, strategy.options())
    plan = strategy.place(free)
    # The packs that threshold-filtering grows, takes apart and puts together again may hold more than those it gives.
    most = int(np.diff(plan.pack_offsets).max()) if strategy.embedding is None else 200

    def capped(max_segments: int) -> Plan:
        request = request_for(strategy, lengths, 1000, strategy.options(), max_segments=max_segments)
        return check(strategy.place(request), request, strategy.name)

    same = capped(most)
    assert np.array_equal(same.pack_offsets, plan.pack_offsets)
    assert np.array_equal(same.segment, plan.segment)
    assert most == 1 or np.diff(capped(5).pack_offsets).max() == 5, "where it binds it shows"


@pytest.mark.parametrize("cap", [64, 1024, 3072])
@pytest.mark.parametrize("strategy", ["best-fit-decreasing", "first-fit", "next-fit"])
def test_tiny_samples_in_a_long_pack(strategy: str, cap: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 200_000)
    plan = pack(lengths, 131_072, strategy, max_segments=cap)
    assert plan.num_packs == least_packs(lengths, 131_072, cap)


def drawn(center: float, spread: float, least: int, most: int, count: int) -> np.ndarray[Any, Any]:
    """Lognormal, clipped.  # shape: (count,)"""
    values = np.exp(np.random.default_rng(0).normal(center, spread, count))
    return np.clip(values, least, most).astype(np.int64)


@pytest.mark.parametrize(
    ("of", "capacity", "cap"),
    [
        ((5.2, 0.9, 8, 4096, 1_000_000), 4096, 64),  # the reference: tokens need most packs
        ((5.2, 0.9, 8, 4096, 1_000_000), 4096, 16),  # segments nearly as many
        ((4.9, 0.45, 20, 600, 200_000), 2048, 14),  # even lengths, both as many
        ((4.9, 0.45, 20, 600, 200_000), 4096, 28),  # the same in longer packs
        ((4.5, 1.6, 1, 4096, 300_000), 4096, 32),  # a heavy tail, and many of one token
    ],
)
def test_packs_are_few_whatever_binds(of: tuple[float, float, int, int, int], capacity: int, cap: int) -> None:
    lengths = drawn(*of)
    plan = pack(lengths, capacity, max_segments=cap)
    bound = least_packs(lengths, capacity, cap)
    assert plan.num_packs <= 1.001 * bound
    assert pack(lengths, capacity, "first-fit-decreasing", max_segments=cap).num_packs > 1.005 * bound


@given(lengths=st.lists(st.integers(1, 12), max_size=9), cap=st.integers(1, 4))
def test_never_far_from_the_optimum(lengths: list[int], cap: int) -> None:
    fewest = reference.fewest_packs(lengths, 12, cap)
    assert fewest <= pack(lengths, 12, max_segments=cap).num_packs <= 1.5 * fewest + 1


def test_two_lengths_that_must_be_mixed() -> None:
    lengths = np.repeat([100, 10], 50_000)
    # Ten of 100 a pack would leave the tens alone, twenty a pack: 7,500 packs.
    assert pack(lengths, 1000, max_segments=20).num_packs < 1.07 * least_packs(lengths, 1000, 20)


def test_related_samples_meet_under_a_cap() -> None:
    draws = np.random.default_rng(0)
    vectors = draws.normal(size=(30, 32))[draws.integers(0, 30, 2000)] + 0.3 * draws.normal(size=(2000, 32))
    lengths = drawn(4.8, 0.8, 8, 1024, 2000)
    for mode in ("pack", "path"):
        plan = pack(lengths, 2048, "tfp", max_segments=8, embeddings=vectors, threshold="none", mode=mode)
        assert np.diff(plan.pack_offsets).max() == 8
        assert plan.report["mean_in_pack_similarity"] > 5 * plan.report["shuffled_mean_in_pack_similarity"]
        if mode == "pack":
            assert plan.num_packs <= 1.01 * least_packs(lengths, 2048, 8) + 1


def test_a_cap_that_a_strategy_does_not_keep_to_is_refused() -> None:
    assert packs_of(pack([1] * 5, 9, "minibatch", max_segments=3, batch_size=3)) == [[0, 1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"'minibatch' \(batch_size=3, shuffle=False\) needs packs of 3 segments"):
        pack([1] * 5, 9, "minibatch", max_segments=2, batch_size=3)
    with pytest.raises(ValueError, match="max_segments must be at least 1"):
        pack([1], 9, max_segments=0)
    other = Strategy(name="other", place=find("padding").place, summary="one each", when="never")
    with pytest.raises(ValueError, match="'other' keeps to no cap"):
        other.check_max_segments(8, other.options())
