"""`strategies` costs only what is asked of it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import strategies


def test_array_types_import_numpy_and_nothing_heavy() -> None:
    code = "import sys, strategies.arrays; print(*{'numpy', 'numba', 'faiss', 'hypothesis'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert ended.stdout.split() == ["numpy"]


def test_every_public_name_is_there_and_no_other() -> None:
    for name in strategies.__all__:
        assert getattr(strategies, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'strategies' has no attribute 'pakc'"):
        strategies.pakc  # noqa: B018


def test_the_suite_without_hypothesis_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "strategies.testing", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs hypothesis: pip install 'tightpack\[testing\]'"):
        importlib.import_module("strategies.testing")
