"""The structure of the code, and that what reads it would see a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import Tree

OURS = Tree(Path(__file__).parents[1])
RULES = [architecture.arrows, architecture.private_names, architecture.circles, architecture.sizes]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_the_structure_holds(rule: Callable[[Tree], list[str]]) -> None:
    assert rule(OURS) == []


def test_every_package_was_read() -> None:
    files = OURS.files()
    for package in (*architecture.PACKAGES, "scripts", "tests"):
        assert sum(name.split(".")[0] == package for name in files) > 5
    assert sum(1 for _ in OURS.imports()) > 500


def planted(folder: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(folder)


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("pipeline/base/x.py", "from pipeline.format import y"),
        ("pipeline/base/x.py", "from strategies.contract import Plan"),
        ("pipeline/format/x.py", "def f():\n    import pipeline.reading.y"),
        ("pipeline/reading/x.py", "if TYPE_CHECKING:\n    from pipeline.packing.y import z"),
        ("pipeline/verifying/x.py", "from pipeline.packing.y import z"),
        ("pipeline/packing/x.py", "from pipeline import pack"),
        ("pipeline/packing/x.py", "from training import y"),
        ("strategies/x.py", "from pipeline.base import y"),
        ("training/x.py", "from pipeline.reading import y"),
        ("training/x.py", "from pipeline import pack"),
        ("training/x.py", "import strategies"),
        ("scripts/x.py", "from tests.conftest import run"),
    ],
)
def test_an_arrow_upwards_shows_with_its_line(tmp_path: Path, importer: str, text: str) -> None:
    tree = planted(tmp_path, {importer: f"import os\n{text}\n"})
    (wrong,) = architecture.arrows(tree)
    assert wrong.startswith(f"{importer}:{2 + text.count(chr(10))}: ")


@pytest.mark.parametrize(
    ("importer", "text"),
    [
        ("pipeline/packing/x.py", "from pipeline.reading import y"),
        ("pipeline/reading/x.py", "from pipeline.reading.decoding import y"),
        ("pipeline/base/x.py", "from strategies.arrays import Int64Array"),
        ("training/compare.py", "from pipeline import pack"),
        ("training/x.py", "from pipeline.format import y"),
        ("scripts/x.py", "from training import y"),
        ("tests/x.py", "from scripts import y"),
    ],
)
def test_an_arrow_downwards_is_none(tmp_path: Path, importer: str, text: str) -> None:
    tree = planted(tmp_path, {importer: text})
    assert list(tree.imports())
    assert architecture.arrows(tree) == []


def test_circles_show_around_corners(tmp_path: Path) -> None:
    files = {
        "strategies/a.py": "from strategies import b",
        "strategies/b.py": "def f():\n    from strategies.c import x",
    }
    assert architecture.circles(planted(tmp_path, {**files, "strategies/c.py": ""})) == []
    (wrong,) = architecture.circles(planted(tmp_path, {"strategies/c.py": "import strategies.a"}))
    assert all(f"strategies.{name}" in wrong for name in "abc")


@pytest.mark.parametrize(
    "text",
    [
        "from strategies.a import _x",
        "from strategies import _a",
        "from strategies import a as b\nb._x",
        "import strategies.a as a\na._x",
    ],
)
def test_private_names_show(tmp_path: Path, text: str) -> None:
    files = {"strategies/__init__.py": "", "strategies/a.py": "_x = 1\n__all__ = ()", "strategies/_a.py": ""}
    (wrong,) = architecture.private_names(planted(tmp_path, {**files, "training/b.py": text}))
    assert wrong.startswith(f"training/b.py:{1 + text.count(chr(10))}: ")
    assert wrong.endswith("is private")
    assert architecture.private_names(planted(tmp_path, {"training/b.py": "from strategies.a import __all__"})) == []


def test_what_is_too_large_shows(tmp_path: Path) -> None:
    long = "def f():\n" + "    x = 1\n" * 60
    files = {
        "pipeline/base/many.py": "x = 1\n" * 351,
        "pipeline/base/long.py": long,
        "pipeline/base/compiled.py": f"@kernel\n{long}",
        **{f"strategies/m{n}.py": "" for n in range(13)},
    }
    assert architecture.sizes(planted(tmp_path, files)) == [
        "pipeline/base/long.py:1: f has 61 lines",
        "pipeline/base/many.py has 351 lines",
        "strategies has 13 modules",
    ]
