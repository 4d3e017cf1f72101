"""What every strategy must satisfy. A strategy's test class inherits this and names the strategy."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strategies import Draws, Plan, Request, Strategy, find
from strategies.contract import SAMPLED, check
from strategies.related.affinity import quantise

# Inherited tests run on several classes, which hypothesis warns of.
INHERITED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.differing_executors]}


@st.composite
def length_lists(draw: st.DrawFn) -> tuple[list[int], int]:
    """(lengths, max_length): random, on the edges, all equal, or heavy-tailed."""
    capacity = draw(st.sampled_from([1, 2, 7, 63, 64, 65, 100, 4096, 70_000]))
    lengths = draw(
        st.one_of(
            st.lists(st.integers(1, capacity), max_size=120),
            st.lists(st.sampled_from(sorted({1, max(1, capacity - 1), capacity})), max_size=60),
            st.tuples(st.integers(1, capacity), st.integers(0, 100)).map(lambda pair: [pair[0]] * pair[1]),
            st.lists(st.floats(0, 1).map(lambda u: max(1, round(capacity * u**6))), max_size=120),
        )
    )
    return lengths, capacity


def request_for(
    strategy: Strategy, lengths: npt.NDArray[np.int32], max_length: int, options: Any, seed: int = 0
) -> Request:
    """A request as a run would make it; samples are embedded at random, a tenth of them like their neighbour."""
    draws = Draws(f"seed={seed}/window=0/{strategy.name}")
    embeddings, prepared = None, {}
    if strategy.embedding is not None:
        vectors = np.random.default_rng(len(lengths)).normal(size=(len(lengths), 8))
        vectors[1::10] = vectors[: len(vectors[1::10]) * 10 : 10]
        embeddings = quantise(vectors)
        if strategy.prepare is not None:
            prepared = strategy.prepare(embeddings[:SAMPLED], len(lengths), options)
    return Request(
        lengths=lengths,
        capacity=strategy.capacity(max_length, options),
        draws=draws,
        options=options,
        embeddings=embeddings,
        prepared=prepared,
    )


class StrategyConformance:
    """Inherited by the tests of every strategy."""

    name: ClassVar[str]
    option_sets: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    many: ClassVar[int] = 1_000_000

    def place(self, lengths: list[int], max_length: int, options: dict[str, Any], seed: int = 0) -> tuple[Plan, int]:
        strategy = find(self.name)
        chosen = strategy.options(**options)
        request = request_for(strategy, np.array(lengths, np.int32), max_length, chosen, seed)
        before = request.lengths.copy(), None if request.embeddings is None else request.embeddings.copy()
        plan = check(strategy.place(request), request, strategy.name)
        assert np.array_equal(before[0], request.lengths), "a strategy must not change its request"
        assert request.embeddings is None or np.array_equal(before[1], request.embeddings)
        return plan, request.capacity

    @settings(max_examples=150, **INHERITED)
    @given(case=length_lists())
    def test_every_segment_once_and_no_pack_over_capacity(self, case: tuple[list[int], int]) -> None:
        lengths, max_length = case
        for options in self.option_sets:
            plan, capacity = self.place(lengths, max_length, options)
            packs = [plan.segment[a:b] for a, b in zip(plan.pack_offsets[:-1], plan.pack_offsets[1:], strict=True)]
            assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
            assert all(1 <= sum(lengths[i] for i in pack) <= capacity for pack in packs)

    @settings(max_examples=50, **INHERITED)
    @given(case=length_lists(), seed=st.integers(0, 3))
    def test_same_request_same_plan(self, case: tuple[list[int], int], seed: int) -> None:
        for options in self.option_sets:
            plans = [self.place(*case, options, seed)[0] for _ in range(2)]
            assert np.array_equal(plans[0].segment, plans[1].segment)
            assert np.array_equal(plans[0].pack_offsets, plans[1].pack_offsets)

    def test_no_segments_give_no_packs(self) -> None:
        plan, _ = self.place([], 10, self.option_sets[0])
        assert plan.num_packs == 0
        assert len(plan.segment) == 0

    def test_one_segment_gives_one_pack(self) -> None:
        for length in (1, 9, 10):
            plan, _ = self.place([length], 10, self.option_sets[0])
            assert plan.segment.tolist() == [0]
            assert plan.pack_offsets.tolist() == [0, 1]

    def test_options_are_frozen_documented_and_have_defaults(self) -> None:
        options = find(self.name).options
        assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
        for field in dataclasses.fields(options):
            assert field.metadata["help"]
            assert type(field.default) in (int, float, bool, str)

    def test_aliases_find_it(self) -> None:
        strategy = find(self.name)
        assert all(find(alias) is strategy for alias in strategy.aliases)
        assert strategy.summary
        assert strategy.when

    def test_many_lengths(self) -> None:
        draws = np.random.default_rng(0)
        lengths = np.clip(np.exp(draws.normal(5.2, 0.9, self.many)), 8, 4096).astype(np.int32)
        strategy = find(self.name)
        request = request_for(strategy, lengths, 4096, strategy.options(**self.option_sets[0]))
        plan = check(strategy.place(request), request, self.name)
        assert plan.num_packs >= -(-int(lengths.sum()) // request.capacity)


def packs_of(plan: Plan) -> list[list[int]]:
    """A plan as lists."""
    return [plan.segment[a:b].tolist() for a, b in zip(plan.pack_offsets[:-1], plan.pack_offsets[1:], strict=True)]
