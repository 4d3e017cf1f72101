"""A strategy that breaks its contract is named, whoever wrote it."""

from __future__ import annotations

import numpy as np
import pytest

from strategies import ContractError, Draws, Plan, Request
from strategies.contract import check

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
