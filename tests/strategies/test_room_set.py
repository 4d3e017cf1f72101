from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.by_length.room_set import insert, remove, room_set, smallest_from


@pytest.mark.parametrize("size", [1, 64, 65, 4097, 300_000])
@settings(max_examples=30)
@given(data=st.data())
def test_finds_what_a_sorted_set_finds(size: int, data: st.DataObject) -> None:
    words, levels = room_set(size)
    members: set[int] = set()
    for value in data.draw(st.lists(st.integers(0, size - 1), max_size=40)):
        if value in members:
            remove(words, levels, value)
            members.remove(value)
        else:
            insert(words, levels, value)
            members.add(value)
        bound = data.draw(st.integers(0, size - 1))
        assert smallest_from(words, levels, bound) == min((m for m in members if m >= bound), default=-1)
