"""What the benchmarks share: the reference input, the machine's name, medians, and keeping figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CAPACITY = 4096


def reference_lengths(count: int) -> npt.NDArray[np.int64]:
    """Lognormal(5.2, 0.9) clipped to 8..4096, seed 0.  # shape: (count,)"""
    draws = np.random.default_rng(0)
    return np.clip(np.exp(draws.normal(5.2, 0.9, count)), 8, CAPACITY).astype(np.int64)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": ", ".join(sorted(names)),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, middle and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def keep(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures, and write them to `path` if there is one."""
    text = json.dumps({"machine": machine(), **figures}, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
