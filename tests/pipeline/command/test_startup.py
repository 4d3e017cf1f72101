"""What a command imports, and what it needs to begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.command.processes import call_main, not_imported, python


def test_help_imports_nothing_heavy() -> None:
    heavy = not_imported("torch", "datasets", "numba", "pyarrow", "numpy", "transformers")
    ended = python("-c", call_main("--help", after=heavy))
    assert ended.returncode == 0, ended.stderr
    assert "pack" in ended.stdout


def test_pack_imports_neither_torch_nor_datasets(tmp_path: Path, source: Path) -> None:
    heavy = not_imported("torch", "datasets", "transformers", "pandas", "scipy.linalg")
    ended = python("-c", call_main("pack", source, "--output", tmp_path / "out", "--max-length", 60, after=heavy))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.needs("scipy")
def test_numba_finds_blas_all_the_same() -> None:
    code = """
from strategies.compiled import ready
ready()
import numba, numpy, sys
assert "scipy.linalg" not in sys.modules
assert numba.njit(lambda a: numpy.dot(a, a))(numpy.ones(3)) == 3
"""
    ended = python("-c", code)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.soak  # it compiles every kernel
def test_a_read_only_install_without_a_home_still_packs(tmp_path: Path, source: Path) -> None:
    no_place = "import numba.core.caching as caching\ncaching.CacheImpl._locator_classes = []\n"
    ended = python("-c", no_place + call_main("pack", source, "--output", tmp_path / "out", "--max-length", 60))
    assert ended.returncode == 0, ended.stderr
    assert "packed" in ended.stdout
