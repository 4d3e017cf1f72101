"""Which tests run: not those that need what is not installed and, with `--fast`, not those that take long to begin."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDERS = {"training": ("torch", "transformers"), "pipeline/tokenizing": ("transformers",)}
"""Folders whose modules import something that not every environment has."""

FIXTURES = {"tokenizer_dir": ("transformers",), "words": ("transformers",)}
"""Fixtures that import something that not every environment has."""

SLOW_TO_IMPORT = {"torch", "transformers", "sentence_transformers"}


def why_not(modules: tuple[str, ...], *, fast: bool) -> str | None:
    """Why tests that need these modules do not run, if they do not."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    slow = [module for module in modules if module in SLOW_TO_IMPORT]
    return f"--fast leaves out what needs {', '.join(slow)}" if fast and slow else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help=f"Leave out tests marked slow, and those that need {', '.join(sorted(SLOW_TO_IMPORT))}.",
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    reasons = {folder: why_not(modules, fast=config.getoption("fast")) for folder, modules in FOLDERS.items()}
    return [f"without tests/{folder}: {reason}" for folder, reason in reasons.items() if reason is not None]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    for folder, modules in FOLDERS.items():
        if collection_path == Path(__file__).parent / folder and why_not(modules, fast=config.getoption("fast")):
            return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    fast: bool = config.getoption("fast")
    chosen, left_out = [], []
    for item in items:
        modules = [str(module) for marker in item.iter_markers("needs") for module in marker.args]
        for fixture in getattr(item, "fixturenames", ()):
            modules += FIXTURES.get(fixture, ())
        reason = why_not(tuple(modules), fast=fast)
        if fast and (reason is not None or item.get_closest_marker("slow")):
            left_out.append(item)
            continue
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        chosen.append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen
