"""Compilation of the inner loops, cached on disk where a place for it can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` with numba, to run without the interpreter's lock.

    The machine code is cached beside the source or in the user's cache folder. On a read-only install without a home
    numba can use neither and refuses: then each process compiles anew.
    """
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True)(function)
    return cast("Callable[P, R]", compiled)
