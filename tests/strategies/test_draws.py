"""Random draws must never change: packed datasets are identified by their seed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategies import Draws

GOLDEN_INTEGERS = [16247878900780420191, 914947188929656362, 10732699805147326395]
GOLDEN_PERMUTATION = [1, 0, 7, 9, 3, 4, 6, 5, 8, 2]


def test_golden_draws() -> None:
    draws = Draws("seed=0/window=0/pack-order")
    assert draws.integers(3).tolist() == GOLDEN_INTEGERS
    assert draws.permutation(10).tolist() == GOLDEN_PERMUTATION


@given(count=st.integers(0, 200), purpose=st.text())
def test_permutation_is_one(count: int, purpose: str) -> None:
    assert sorted(Draws(purpose).permutation(count).tolist()) == list(range(count))


def test_purposes_are_independent() -> None:
    first, second = Draws("seed=0/window=0/a").integers(1000), Draws("seed=0/window=1/a").integers(1000)
    assert not np.any(first == second)
