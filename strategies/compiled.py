"""Compilation of the inner loops, cached on disk where a place for it can be written."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def ready() -> None:
    """Have numba load what compiled code needs, before the first kernel is called.

    numba asks whether there is a BLAS by importing all of scipy.linalg, a third of the first kernel's time.
    It is told that there is none while it loads, and what it notes of that is put right: scipy is imported when
    compiled code calls BLAS.
    """
    blas = "scipy.linalg"
    if blas in sys.modules or find_spec("scipy") is None:
        return
    sys.modules[blas] = None  # type: ignore[assignment]
    try:
        arraymath = importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules[blas]
    arraymath._HAVE_BLAS = True  # type: ignore[attr-defined]


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
