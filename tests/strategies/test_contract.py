"""A strategy that breaks its contract is named, whoever wrote it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from strategies import ContractError, Draws, Plan, Request, find
from strategies.contract import check
from strategies.registry import BUILT_IN

REQUEST = Request(lengths=np.array([4, 3, 2], np.int32), capacity=7, draws=Draws("test"))


def plan(segment: list[int], offsets: list[int]) -> Plan:
    return Plan(segment=np.array(segment, np.int64), pack_offsets=np.array(offsets, np.int64))


def test_a_plan_passes() -> None:
    good = plan([0, 1, 2], [0, 2, 3])
    assert check(good, REQUEST, "mine") is good


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (plan([0, 1], [0, 2]), "as many segments"),
        (plan([0, 1, 1], [0, 2, 3]), "segment 1 stands in more than one place"),
        (plan([0, 1, 3], [0, 2, 3]), "segment index 3 does not exist"),
        (plan([0, 1, -1], [0, 2, 3]), "segment index -1 does not exist"),
        (plan([0, 1, 2], [0, 3]), "pack 0 is over capacity"),
        (plan([0, 1, 2], [0, 2, 2, 3]), "pack 1 is empty"),
        (plan([0, 1, 2], [0, 2]), "pack_offsets must run"),
        (plan([0, 1, 2], [1, 3]), "pack_offsets must run"),
        (plan([0, 1, 2], [0, 9, 3]), "is empty"),
        (plan([0, 1, 2], []), "pack_offsets must run"),
        (Plan(segment=np.array([0, 1, 2], np.int32), pack_offsets=np.array([0, 2, 3])), "int64"),
    ],
)
def test_a_broken_plan_is_named(broken: Plan, what: str) -> None:
    with pytest.raises(ContractError, match=f"strategy 'mine' broke its contract: .*{what}"):
        check(broken, REQUEST, "mine")


def test_a_pack_of_more_segments_than_it_may_hold_is_named() -> None:
    good = plan([0, 1, 2], [0, 1, 3])
    assert check(good, replace(REQUEST, max_segments=2), "mine") is good
    with pytest.raises(ContractError, match="'mine' broke its contract: pack 1 holds more segments than max_segments"):
        check(good, replace(REQUEST, max_segments=1), "mine")


def test_settings_are_all_options_but_paths() -> None:
    strategy = find("threshold-filtering")
    options = strategy.options(embedder="sentence-transformers", model="/home/me/model", block=9)
    settings = strategy.settings(options)
    assert set(settings) == {option.name for option in fields(strategy.options)} - {"model"}
    assert (settings["embedder"], settings["block"], settings["mode"]) == ("sentence-transformers", 9, "pack")


@pytest.mark.parametrize(
    ("name", "settings", "changed"),
    [
        ("padding", {}, {}),
        ("minibatch", {}, {}),
        ("minibatch", {"batch_size": 8, "shuffle": False}, {}),
        ("minibatch", {"batch_size": 8, "shuffle": True}, {"shuffle": True}),
        ("minibatch", {"batch_size": 0}, {"batch_size": 0}),
        ("tfp", {"model": "/home/me/model", "max_tokens": 9}, {"max_tokens": 9}),
    ],
)
def test_changed_settings_are_those_not_at_their_default(
    name: str, settings: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert find(name).changed(settings) == changed


def test_nothing_is_changed_by_default() -> None:
    for strategy in BUILT_IN:
        assert strategy.changed(strategy.settings(strategy.options())) == {}


def test_an_unknown_setting_is_no_setting() -> None:
    with pytest.raises(KeyError, match="batch"):
        find("minibatch").changed({"batch": 8})
