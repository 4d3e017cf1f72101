"""A strategy written from CONTRIBUTING alone, in a package of its own, passes the suite and packs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from strategies.testing import StrategyConformance

ROOT = Path(__file__).parents[2]

FILE = re.compile(r"^`([\w.]+)`.*?^```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A paragraph of CONTRIBUTING that begins with the name of a file, and the block after it, the content."""


def write_package(folder: Path) -> list[str]:
    """Write the files that CONTRIBUTING shows, and return their names."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a strategy in an hour")[1].split("\n## ")[0]
    files = dict(FILE.findall(section))
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    return list(files)


@pytest.mark.slow
@pytest.mark.needs("hatchling")
def test_a_strategy_written_from_contributing_passes_the_suite_and_packs(tmp_path: Path) -> None:
    package, site, elsewhere, packed = (tmp_path / name for name in ("package", "site", "elsewhere", "packed"))
    elsewhere.mkdir()
    paths = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def python(*arguments: object) -> str:
        command = [sys.executable, *map(str, arguments)]
        env = {**os.environ, **paths}
        ended = subprocess.run(command, check=False, cwd=elsewhere, env=env, capture_output=True, text=True)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    assert write_package(package) == ["pyproject.toml", "shortest_first.py", "test_shortest_first.py"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--disable-pip-version-check"]
    python("-m", "pip", "install", "--quiet", *offline, "--target", site, package)

    test_file = package / "test_shortest_first.py"
    tests = python("-m", "pytest", "--import-mode=importlib", "-p", "no:cacheprovider", test_file)
    num_inherited = sum(name.startswith("test_") for name in dir(StrategyConformance))
    assert f" {num_inherited + 1} passed" in tests, tests

    listed = json.loads(python("-m", "pipeline", "strategies", "--json"))["strategies"]
    (entry,) = (each for each in listed if each["name"] == "shortest-first")
    assert entry["aliases"] == ["sorted-next-fit"]
    assert [option["name"] for option in entry["options"]] == ["reverse"]

    source = tmp_path / "tokens.jsonl"
    source.write_text("".join(json.dumps({"input_ids": list(range(1, 60, step))}) + "\n" for step in range(1, 30)))
    flags = ["--output", packed, "--max-length", 60, "--set", "reverse=true", "--json"]
    for name, status in (("shortest-first", "packed"), ("sorted-next-fit", "up_to_date")):
        ended = json.loads(python("-m", "pipeline", "pack", source, "--strategy", name, *flags))
        assert ended["status"] == status
    assert json.loads((packed / "manifest.json").read_text())["config"]["strategy"] == "shortest-first"
