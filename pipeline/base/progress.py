"""Progress bars on stderr, where there is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(what: str, total: int, unit: str = "tok") -> Iterator[Callable[[int], object]]:
    """A bar with rate and remaining time; yields what advances it. Silent without a terminal."""
    with tqdm(
        desc=what, total=total, unit=unit, unit_scale=True, disable=None, leave=False, dynamic_ncols=True
    ) as shown:
        yield shown.update
