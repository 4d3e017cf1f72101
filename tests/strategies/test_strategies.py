"""Each strategy against the contract, and against a straightforward implementation of its definition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import pack
from strategies.testing import Case, StrategyConformance, length_lists, packs_of
from tests.strategies import reference


def composition(packs: list[list[int]], lengths: list[int]) -> Counter[tuple[int, ...]]:
    """Packs by the lengths in them, order and identity of equal samples apart."""
    return Counter(tuple(sorted((lengths[i] for i in one), reverse=True)) for one in packs)


class TestPadding(StrategyConformance):
    strategy = "padding"

    def test_one_sample_a_pack(self) -> None:
        assert packs_of(pack([3, 1, 2], 4, "padding")) == [[0], [1], [2]]


class TestMinibatch(StrategyConformance):
    strategy = "minibatch"
    option_sets = ({}, {"batch_size": 1}, {"batch_size": 3, "shuffle": True})

    def test_consecutive_samples(self) -> None:
        assert packs_of(pack([5] * 7, 5, "minibatch", batch_size=3)) == [[0, 1, 2], [3, 4, 5], [6]]

    def test_shuffle_permutes_and_depends_on_the_seed(self) -> None:
        shuffled = [packs_of(pack([5] * 50, 5, "minibatch", seed=s, batch_size=3, shuffle=True)) for s in (0, 1)]
        assert shuffled[0] != shuffled[1]
        assert [len(p) for p in shuffled[0]] == [3] * 16 + [2]

    def test_batch_size_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            pack([1], 5, "minibatch", batch_size=0)


class TestNextFit(StrategyConformance):
    strategy = "next-fit"

    @given(case=length_lists())
    def test_equals_reference(self, case: Case) -> None:
        assert packs_of(pack(*case, "next-fit")) == reference.next_fit(*case)


class TestWrapped(StrategyConformance):
    strategy = "wrapped"
    option_sets = ({}, {"shuffle": True})


class TestFirstFit(StrategyConformance):
    strategy = "first-fit"

    @given(case=length_lists())
    def test_equals_reference(self, case: Case) -> None:
        assert packs_of(pack(*case, "first-fit")) == reference.first_fit(*case)


class TestFirstFitDecreasing(StrategyConformance):
    strategy = "first-fit-decreasing"

    @given(case=length_lists())
    def test_equals_reference(self, case: Case) -> None:
        assert packs_of(pack(*case, "first-fit-decreasing")) == reference.first_fit_decreasing(*case)

    @given(case=length_lists())
    def test_equals_sweeping_down(self, case: Case) -> None:
        assert packs_of(pack(*case, "greedy")) == reference.sweep_down(*case)


class TestBestFitDecreasing(StrategyConformance):
    strategy = "best-fit-decreasing"

    @settings(max_examples=200)
    @given(case=length_lists())
    def test_same_packs_by_length_as_reference(self, case: Case) -> None:
        lengths, capacity = case
        ours = packs_of(pack(lengths, capacity))
        assert composition(ours, lengths) == composition(reference.best_fit_decreasing(*case), lengths)

    @given(lengths=st.lists(st.integers(1, 30), max_size=9))
    def test_within_the_proven_bound_of_the_optimum(self, lengths: list[int]) -> None:
        # Johnson 1974: at most 11/9 of the optimum, plus less than one pack.
        packs = pack(lengths, 30).num_packs
        assert packs <= 11 / 9 * reference.fewest_packs(lengths, 30) + 6 / 9
        assert packs >= reference.fewest_packs(lengths, 30)

    def test_same_number_of_packs_as_reference_on_a_heavy_tail(self) -> None:
        draws = np.random.default_rng(1)
        lengths = np.clip(np.exp(draws.normal(5.2, 0.9, 3000)), 8, 4096).astype(int).tolist()
        assert pack(lengths, 4096).num_packs == len(reference.best_fit_decreasing(lengths, 4096))

    def test_longest_first_inside_a_pack(self) -> None:
        for one in packs_of(pack([2, 5, 1, 4, 3, 6], 7)):
            assert one == sorted(one, key=lambda i: -[2, 5, 1, 4, 3, 6][i])

    def test_equal_samples_in_index_order(self) -> None:
        assert packs_of(pack([5] * 5, 10)) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("length", [0, -1, 11])
def test_pack_refuses_lengths_out_of_range(length: int) -> None:
    with pytest.raises(ValueError, match=rf"length {length} of sample 1 is outside 1\.\.10"):
        pack([5, length], 10)


def test_pack_refuses_what_is_no_vector_of_integers() -> None:
    with pytest.raises(ValueError, match="vector of integers"):
        pack([1.5], 10)
    with pytest.raises(ValueError, match="vector of integers"):
        pack([[1, 2]], 10)


def test_pack_refuses_strategies_that_cut_samples() -> None:
    with pytest.raises(ValueError, match="cuts samples"):
        pack([1], 10, "wrapped")


def test_unknown_strategy_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'best-fit-decreasing'"):
        pack([1], 10, "best-fit-decresing")
