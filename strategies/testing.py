"""The suite that every strategy must pass, ours and those of other packages.

After `pip install 'tightpack[testing]'` this is a whole test file, which pytest runs:

    from strategies.testing import StrategyConformance


    class TestShortestFirst(StrategyConformance):
        strategy = "shortest-first"

Every promise of the contract that can be checked from outside is one test of `StrategyConformance`.
"""

from __future__ import annotations

import functools
import io
import logging.handlers
import math
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from strategies.arrays import AnyArray, Int16Array, Int32Array
from strategies.contract import (
    PREPARATION_SAMPLES,
    Embedding,
    Plan,
    Preparation,
    Request,
    Strategy,
    check,
    check_strategy,
)
from strategies.draws import Draws
from strategies.registry import BUILT_IN, find
from strategies.related.affinity import quantise

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("strategies.testing needs hypothesis: pip install 'tightpack[testing]'") from error

Case = tuple[list[int], int]
"""The lengths of some segments, and the maximum length."""

_MOST_CAPACITY = 1 << 30  # beyond which a run is refused before its strategy is asked

_VALUES: dict[type, st.SearchStrategy[Any]] = {
    int: st.integers(-1000, 1000),
    float: st.floats(),
    bool: st.booleans(),
    str: st.text(max_size=20),
}


@st.composite
def length_lists(draw: st.DrawFn) -> Case:
    """Draw up to 120 lengths: random, on the edges, all equal, or heavy-tailed."""
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


def packs_of(plan: Plan) -> list[list[int]]:
    """Return a plan as lists of segments."""
    return [plan.segment[first:end].tolist() for first, end in pairwise(plan.pack_offsets)]


def request_for(
    strategy: Strategy,
    lengths: Int32Array,
    max_length: int,
    options: Any,
    *,
    max_segments: int | None = None,
    window: int = 0,
    num_threads: int = 1,
) -> Request:
    """Make a request as a run would.

    Samples are embedded at random, with some vectors equal and some zero, for strategies that relate them.
    """
    embeddings: Int16Array | None = None
    preparation: Preparation = {}
    if strategy.embedding is not None:
        embeddings = _embeddings(len(lengths))
        if strategy.prepare is not None:
            sample = embeddings[embeddings.any(axis=1)][:PREPARATION_SAMPLES]
            preparation = strategy.prepare(sample, len(lengths), options)
    return Request(
        lengths=lengths,
        capacity=strategy.capacity(max_length, options),
        max_segments=max_segments,
        draws=Draws(f"seed=0/window={window}/{strategy.name}"),
        options=options,
        embeddings=embeddings,
        preparation=preparation,
        num_threads=num_threads,
    )


def _embeddings(count: int) -> Int16Array:
    vectors = np.random.default_rng(count).normal(size=(count, 8))
    vectors[1::10] = vectors[::10][: len(vectors[1::10])]
    vectors[2::20] = 0
    return quantise(vectors)


def _examples(count: int) -> settings:
    """Try so many examples. Inherited tests run on several classes, which hypothesis warns of."""
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class StrategyConformance:
    """A class of tests for a strategy inherits this, has a name that begins with Test, and names the strategy."""

    strategy: ClassVar[Strategy | str]
    """The strategy by its name, which proves its entry point too; or itself, while its package is not installed."""

    option_sets: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Settings of the strategy's options to be tried, such as `({}, {"batch_size": 1})`."""

    many: ClassVar[int] = 1_000_000
    """How many lengths are placed at once; fewer for a strategy that compares samples with each other."""

    def test_every_name_finds_it(self) -> None:
        """Its name and aliases find it and no other, and its options can be shown and set."""
        strategy = self.resolve()
        check_strategy(strategy)
        if isinstance(self.strategy, str):
            for name in strategy.names:
                assert find(name) is strategy, f"{name!r} finds another strategy"
        for other in BUILT_IN:
            shared = set(strategy.names) & set(other.names)
            assert other is strategy or not shared, f"{shared} belongs to the built-in {other.name!r}"

    @_examples(100)
    @given(data=st.data(), case=length_lists())
    def test_every_segment_once_and_no_pack_over_capacity_or_empty(self, data: st.DataObject, case: Case) -> None:
        """A plan is a partition of the segments into packs of 1..capacity tokens."""
        lengths, _ = case
        request = self.request(case, data.draw(st.sampled_from(self.option_sets)))
        packs = packs_of(self.place(request))
        assert sorted(i for pack in packs for i in pack) == list(range(len(lengths))), f"not each segment once: {packs}"
        loads = [sum(lengths[i] for i in pack) for pack in packs]
        unfit = [load for load in loads if not 1 <= load <= request.capacity]
        assert not unfit, f"packs of {unfit} tokens, not of 1..{request.capacity}"

    @_examples(40)
    @given(data=st.data(), case=length_lists(), more=st.integers(0, 12))
    def test_no_pack_has_more_segments_than_it_may(self, data: st.DataObject, case: Case, more: int) -> None:
        """A strategy that says so keeps to a cap on the segments of a pack, from the lowest that it names."""
        strategy, option_set = self.resolve(), data.draw(st.sampled_from(self.option_sets))
        if strategy.least_max_segments is None:
            return
        request = self.request(case, option_set)
        least = strategy.least_max_segments(request.options)
        assert least >= 1, f"a pack of {least} segments is none"
        self.place(replace(request, max_segments=least + more))

    @_examples(20)
    @given(data=st.data(), case=length_lists(), other=length_lists())
    def test_same_request_same_plan_whatever_was_planned_between(
        self, data: st.DataObject, case: Case, other: Case
    ) -> None:
        """A plan depends on its request alone: on no clock, no state, no other source of randomness."""
        option_set = data.draw(st.sampled_from(self.option_sets))
        plan = self.place(self.request(case, option_set))
        self.place(self.request(other, option_set, window=1))
        _assert_same(plan, self.place(self.request(case, option_set)), "the same request got another plan")

    @_examples(20)
    @given(data=st.data(), case=length_lists(), num_threads=st.integers(2, 4))
    def test_no_number_of_threads_changes_the_plan(self, data: st.DataObject, case: Case, num_threads: int) -> None:
        """A plan, report included, is the same on one thread and on several."""
        option_set = data.draw(st.sampled_from(self.option_sets))
        plan = self.place(self.request(case, option_set))
        other = self.place(self.request(case, option_set, num_threads=num_threads))
        _assert_same(plan, other, f"the plan on {num_threads} threads is not that on one")

    @_examples(20)
    @given(data=st.data(), case=length_lists())
    def test_reports_of_windows_add_up(self, data: st.DataObject, case: Case) -> None:
        """Windows report the same finite sums, and one without segments adds nothing to them."""
        strategy, option_set = self.resolve(), data.draw(st.sampled_from(self.option_sets))
        request = self.request(case, option_set)
        report, least = self.place(request).report, self.place(self.request(([1], 1), option_set)).report
        _assert_figures(report)
        if len(request.lengths):
            assert set(report) == set(least), f"windows report different sums: {set(report) ^ set(least)}"
        else:
            assert not any(report.values()), f"a window without segments adds to the report: {report}"
        if strategy.figures is not None and report:
            _assert_figures(strategy.figures({name: 2 * value for name, value in report.items()}, request.preparation))

    def test_no_segments_give_no_packs(self) -> None:
        """A window may be empty, because all of its samples were left out."""
        for option_set in self.option_sets:
            plan = self.place(self.request(([], 10), option_set))
            assert plan.num_packs == 0, f"{plan.num_packs} packs of nothing, with {option_set}"

    def test_one_segment_gives_one_pack(self) -> None:
        """The least plan there is."""
        for option_set in self.option_sets:
            for length in (1, 9, 10):
                packs = packs_of(self.place(self.request(([length], 10), option_set)))
                assert packs == [[0]], f"one segment of {length} tokens gives the packs {packs}, with {option_set}"

    def test_a_pack_holds_the_longest_sample(self) -> None:
        """A sample of the maximum length is placed whole."""
        strategy = self.resolve()
        for option_set in self.option_sets:
            for max_length in (1, 7, 4096):
                capacity = strategy.capacity(max_length, strategy.options(**option_set))
                assert capacity >= max_length, f"capacity {capacity} is below the maximum length {max_length}"

    @_examples(40)
    @given(data=st.data())
    def test_any_setting_plans_or_is_refused_with_a_value_error(self, data: st.DataObject) -> None:
        """An option that does not work is refused by the options, in words for the user."""
        strategy = self.resolve()
        if not fields(strategy.options):
            return
        option = data.draw(st.sampled_from(fields(strategy.options)))
        value = data.draw(_VALUES[type(option.default)])
        option_set = {**data.draw(st.sampled_from(self.option_sets)), option.name: value}
        try:
            options = strategy.options(**option_set)
        except ValueError as error:
            assert str(error), f"{option_set} is refused without a word why"
            return
        if strategy.capacity(100, options) <= _MOST_CAPACITY:
            self.place(self.request(([60, 50, 40, 100, 1], 100), option_set))

    def test_the_stream_is_a_permutation(self) -> None:
        """A strategy that cuts a stream concatenates every sample once, in an order that its draws decide."""
        strategy = self.resolve()
        if strategy.stream_order is None:
            return
        for option_set in self.option_sets:
            options = strategy.options(**option_set)
            for count in (0, 1, 2, 1000):
                order = strategy.stream_order(count, Draws("stream"), options)
                assert order.dtype == np.int64, f"the order must be of int64, not {order.dtype}"
                assert sorted(order.tolist()) == list(range(count)), f"no permutation of {count} samples: {order}"
                again = strategy.stream_order(count, Draws("stream"), options)
                assert np.array_equal(order, again), f"the same draws give another order, with {option_set}"

    def test_the_same_sample_prepares_alike(self) -> None:
        """A strategy that relates samples prepares arrays, and from the same embeddings the same ones."""
        strategy = self.resolve()
        if strategy.embedding is None:
            return
        unknown = set(strategy.embedding_options) - {option.name for option in fields(strategy.options)}
        assert not unknown, f"embedding_options names no options: {unknown}"
        for option_set in self.option_sets:
            options = strategy.options(**option_set)
            assert isinstance(strategy.embedding(options), Embedding), "embedding must return an Embedding"
            if strategy.prepare is None:
                continue
            for count in (0, 1, 50):
                sample = _embeddings(count)
                first, again = strategy.prepare(sample, 100_000, options), strategy.prepare(sample, 100_000, options)
                assert set(first) == set(again), f"the same sample prepares {set(first) ^ set(again)} or not"
                for name, array in first.items():
                    assert np.array_equal(array, again[name]), f"the same sample prepares another {name!r}"
                    assert array.dtype.kind in "biuf", f"{name!r} of type {array.dtype} cannot be stored"
                assert np.array_equal(sample, _embeddings(count)), "prepare changes the sample"

    def test_it_prints_and_logs_nothing(self) -> None:
        """Results, progress and warnings are those of the command that runs it."""
        spoken, records = io.StringIO(), logging.handlers.BufferingHandler(1000)
        logging.getLogger().addHandler(records)
        try:
            with redirect_stdout(spoken), redirect_stderr(spoken):
                for option_set in self.option_sets:
                    self.place(self.request(([3, 4, 5] * 20, 10), option_set))
        finally:
            logging.getLogger().removeHandler(records)
        assert not spoken.getvalue(), f"a strategy prints nothing, but: {spoken.getvalue()}"
        assert not records.buffer, f"a strategy logs nothing, but: {records.buffer[0].getMessage()}"

    def test_many_lengths_are_placed(self) -> None:
        """It can pack a large dataset."""
        draws = np.random.default_rng(0)
        lengths = np.clip(np.exp(draws.normal(5.2, 0.9, self.many)), 8, 4096).astype(np.int32)
        strategy = self.resolve()
        request = request_for(strategy, lengths, 4096, strategy.options(**self.option_sets[0]))
        plan = check(strategy.place(request), request, strategy.name)
        least = -(-int(lengths.sum()) // request.capacity)
        assert plan.num_packs >= least, f"{plan.num_packs} packs cannot hold what needs {least}"

    def resolve(self) -> Strategy:
        """Return the strategy under test."""
        return _find(self.strategy) if isinstance(self.strategy, str) else self.strategy

    def request(self, case: Case, option_set: dict[str, Any], *, window: int = 0, num_threads: int = 1) -> Request:
        """Make a request for the strategy, with one of its option sets."""
        strategy, (lengths, max_length) = self.resolve(), case
        options = strategy.options(**option_set)
        array = np.array(lengths, np.int32)
        return request_for(strategy, array, max_length, options, window=window, num_threads=num_threads)

    def place(self, request: Request) -> Plan:
        """Plan a request, hold the plan against the contract, and the request against what it was."""
        strategy = self.resolve()
        before = [array.copy() for array in _arrays_of(request)]
        plan = check(strategy.place(request), request, strategy.name)
        for array, copy in zip(_arrays_of(request), before, strict=True):
            assert np.array_equal(array, copy), f"a strategy changes nothing in its request, but: {copy} is now {array}"
        return plan


def _arrays_of(request: Request) -> list[AnyArray]:
    embeddings = [] if request.embeddings is None else [request.embeddings]
    return [request.lengths, *embeddings, *request.preparation.values()]


def _assert_same(plan: Plan, other: Plan, message: str) -> None:
    assert np.array_equal(plan.segment, other.segment), message
    assert np.array_equal(plan.pack_offsets, other.pack_offsets), message
    assert plan.report == other.report, f"{message}: {plan.report} and {other.report}"


def _assert_figures(figures: Mapping[str, int | float]) -> None:
    for name, value in figures.items():
        assert isinstance(value, int | float), f"{name!r} must be an int or a float, not {value!r}"
        assert math.isfinite(value), f"{name!r} is {value}"


_find = functools.cache(find)  # it would look for installed packages every time
