"""The suite finds what it is there to find: each fault fails its test with a word why, and sound strategies pass."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from strategies import Draws, Plan, Request, Strategy, find
from strategies.arrays import Int16Array, Int64Array
from strategies.contract import Embedding, Preparation
from strategies.testing import StrategyConformance

CALLS = itertools.count()
"""What no strategy should look at: how often it was called."""


@dataclass(frozen=True, kw_only=True)
class Size:
    size: int = field(default=1, metadata={"help": "any number but 0, which it does not refuse"})


@dataclass(frozen=True, kw_only=True)
class SizeWithAnotherError(Size):
    def __post_init__(self) -> None:
        if self.size < 1:
            raise KeyError("no such size")


@dataclass(frozen=True, kw_only=True)
class SizeWithoutHelp:
    size: int = 1


@dataclass(kw_only=True)
class SizeThatMayChange:
    size: int = field(default=1, metadata={"help": "any number"})


def one_each(request: Request, **report: Any) -> Plan:
    """Sound: a pack for each segment."""
    count = len(request.lengths)
    return Plan(segment=np.arange(count), pack_offsets=np.arange(count + 1), report=report)


def in_order(request: Request, order: Int64Array) -> Plan:
    return replace(one_each(request), segment=order)


def all_in_one(request: Request) -> Plan:
    """Sound without segments and for few tokens."""
    count = len(request.lengths)
    return replace(one_each(request), pack_offsets=np.array([0, count] if count else [0]))


def boundless(request: Request) -> Plan:
    """Sound without a cap on segments."""
    return find("next-fit").place(replace(request, max_segments=None))


def shorten(request: Request) -> Plan:
    request.lengths[:] = 1
    return one_each(request)


def speak(request: Request) -> Plan:
    print("I am planning")
    return one_each(request)


def log(request: Request) -> Plan:
    logging.getLogger("elsewhere").warning("I am planning")
    return one_each(request)


def forget(request: Request) -> Plan:
    """Sound for few segments: their numbers fit a byte."""
    return in_order(request, np.arange(len(request.lengths)).astype(np.uint8).astype(np.int64))


def stream(count: int, draws: Draws, options: Any) -> Int64Array:
    """Sound: a seeded permutation."""
    return draws.permutation(count)


def embedding(options: Any) -> Embedding:
    return Embedding(embedder="tokens")


def prepare(sample: Int16Array, most_rows: int, options: Any) -> Preparation:
    """Sound: a sum, which an empty sample has too."""
    return {"sum": sample.sum(axis=0, dtype=np.int64)}


def mine(place: Callable[[Request], Plan] = one_each, **parts: Any) -> Strategy:
    return Strategy(**{"name": "mine", "place": place, "summary": "one each", "when": "in tests", **parts})


def relating(**parts: Any) -> Strategy:
    return mine(**{"embedding": embedding, "prepare": prepare, **parts})


def suite(strategy: Strategy) -> StrategyConformance:
    tests = StrategyConformance()
    tests.__dict__.update(strategy=strategy, many=300)
    return tests


SOUND = relating(
    place=lambda request: one_each(request, packs=len(request.lengths)),
    aliases=("my-own",),
    least_max_segments=lambda options: 1,
    stream_order=stream,
    figures=lambda sums, preparation: {"packs": sums["packs"]},
)

# Each breaks one rule alone, whatever it is given: hypothesis draws the requests, and any of them may be the first.
FAULTS: dict[str, list[tuple[Strategy, str]]] = {
    "test_every_name_finds_it": [
        (mine(name="padding"), "belongs to the built-in 'padding'"),
        (mine(aliases=("greedy",)), "belongs to the built-in 'first-fit-decreasing'"),
        (mine(aliases="mine"), "aliases must be a tuple"),
        (mine(when=""), "must be texts"),
        (mine(options=SizeWithoutHelp), "'size' needs a `help`"),
        (mine(options=SizeThatMayChange), "frozen"),
    ],
    "test_every_segment_once_and_no_pack_over_capacity_or_empty": [
        (mine(lambda r: in_order(r, np.zeros(len(r.lengths), np.int64))), "stands in more than one place"),
        (mine(all_in_one), "over capacity"),
    ],
    "test_no_pack_has_more_segments_than_it_may": [
        (mine(boundless, least_max_segments=lambda options: 1), "holds more segments than max_segments"),
        (mine(least_max_segments=lambda options: 0), "a pack of 0 segments is none"),
    ],
    "test_same_request_same_plan_whatever_was_planned_between": [
        (mine(lambda r: in_order(r, np.roll(np.arange(len(r.lengths)), next(CALLS)))), "got another plan"),
        (mine(lambda r: one_each(r, calls=next(CALLS))), "got another plan"),
    ],
    "test_no_number_of_threads_changes_the_plan": [
        (mine(lambda r: in_order(r, np.roll(np.arange(len(r.lengths)), r.num_threads))), "is not that on one"),
        (mine(lambda r: one_each(r, threads=r.num_threads)), "is not that on one"),
    ],
    "test_reports_of_windows_add_up": [
        (mine(lambda r: one_each(r, windows=1)), "without segments adds to the report"),
        (mine(lambda r: one_each(r, mean=float("nan"))), "'mean' is nan"),
        (mine(lambda r: one_each(r, **{f"of_{len(r.lengths)}": 0})), "report different sums"),
        (mine(lambda r: one_each(r, word="two")), "must be an int or a float"),
        (mine(SOUND.place, figures=lambda sums, _: {"mean": np.inf}), "'mean' is inf"),
    ],
    "test_no_segments_give_no_packs": [
        (mine(lambda r: replace(one_each(r), pack_offsets=np.array([0, 0]))), "pack 0 is empty"),
    ],
    "test_one_segment_gives_one_pack": [
        (mine(lambda r: in_order(r, np.arange(len(r.lengths)) + 1)), "segment index 1 does not exist"),
        (mine(shorten), "changes nothing in its request"),
    ],
    "test_a_pack_holds_the_longest_sample": [
        (mine(capacity=lambda max_length, options: max_length // 2), "is below the maximum length"),
    ],
    "test_any_setting_plans_or_is_refused_with_a_value_error": [
        (mine(lambda r: one_each(r, share=1 // r.options.size), options=Size), "by zero"),
        (mine(options=SizeWithAnotherError), "no such size"),
    ],
    "test_the_stream_is_a_permutation": [
        (mine(stream_order=lambda count, draws, options: np.zeros(count, np.int64)), "no permutation"),
        (mine(stream_order=lambda count, draws, options: np.arange(count, dtype=np.int32)), "must be of int64"),
        (mine(stream_order=lambda count, draws, options: np.random.permutation(count)), "give another order"),
    ],
    "test_the_same_sample_prepares_alike": [
        (relating(prepare=lambda sample, most_rows, options: {"calls": np.array(next(CALLS))}), "another 'calls'"),
        (relating(prepare=lambda sample, most_rows, options: {"least": sample.min(axis=0)}), "zero-size"),
        (relating(prepare=lambda sample, most_rows, options: {"word": np.array("two")}), "cannot be stored"),
        (relating(embedding_options=("model",)), "names no options: {'model'}"),
        (relating(embedding=lambda options: "tokens"), "must return an Embedding"),
    ],
    "test_it_prints_and_logs_nothing": [(mine(speak), "prints nothing"), (mine(log), "logs nothing")],
    "test_many_lengths_are_placed": [(mine(forget), "stands in more than one place")],
}


def words_of(error: BaseException) -> str:
    """The message of an error, and of those that it groups."""
    return " ".join([str(error), *(words_of(part) for part in getattr(error, "exceptions", ()))])


@pytest.mark.parametrize(
    ("test", "strategy", "why"), [(test, *fault) for test, faults in FAULTS.items() for fault in faults]
)
def test_a_fault_fails_its_test(test: str, strategy: Strategy, why: str) -> None:
    with pytest.raises(Exception) as failure:
        getattr(suite(strategy), test)()
    assert why in words_of(failure.value)


@pytest.mark.parametrize("test", [name for name in dir(StrategyConformance) if name.startswith("test_")])
def test_sound_strategies_pass(test: str) -> None:
    assert test in FAULTS, "a test of the suite that no fault fails proves nothing"
    getattr(suite(SOUND), test)()


def test_a_name_must_be_found() -> None:
    tests = StrategyConformance()
    tests.__dict__.update(strategy="shortest-fist")
    with pytest.raises(ValueError, match="unknown strategy 'shortest-fist'"):
        tests.test_every_name_finds_it()
