"""The files of benchmarks/results: one a subject, with its parts, each with the machine and versions it ran with."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.measuring import Case

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("numpy", "numba", "pyarrow", "datasets", "transformers", "tokenizers", "trl", "lightbinpack")


def path_of(subject: str, folder: Path = RESULTS, cores: int | None = None) -> Path:
    """The file of a subject; cores: of the machine that measured, None for this one."""
    return folder / f"{subject}-{cores or len(os.sched_getaffinity(0))}-cores.json"


def parts_in(path: Path) -> dict[str, Any]:
    """The parts that a file has, by name; none where there is no file."""
    if not path.exists():
        return {}
    parts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["parts"]
    return parts


def keep(subject: str, part: str, cases: Mapping[str, Case], measured: Mapping[str, Any], folder: Path) -> None:
    """Put a part into the file of its subject, and leave the others there as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(subject, folder)
    parts = {**parts_in(path), part: {"measured": measured, "cases": cases}}
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps({"subject": subject, "parts": parts}, indent=1) + "\n", encoding="utf-8")
    whole.replace(path)


def machine() -> dict[str, Any]:
    """What figures are measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": ", ".join(sorted(names)),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
    }


def versions() -> dict[str, str]:
    """Of Python, of the packages that matter and are there, and ours as a commit, `+` where files differ from it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"commit": _commit()}


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "pipeline", "strategies", "training", "scripts")
        return git("rev-parse", "--short=10", "HEAD").strip() + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
