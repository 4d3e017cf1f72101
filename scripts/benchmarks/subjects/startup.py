"""Start-up: a job of ten rows and `--help` as processes, beside importing what no job can do without."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.inputs import write_arrow
from benchmarks.measuring import Case, Cost, case, in_turn, of_process
from benchmarks.parts import Part, Setting, folder_in, pack_command, removed

NEEDED = "numpy, pyarrow, numba"


def small(setting: Setting, rounds: int) -> dict[str, Case]:
    """Ten rows, after a first job that compiled."""
    with folder_in(setting.tmpfs) as folder:
        source, out = write_arrow(folder / "in", np.full(10, 100)), folder / "out"

        def pack() -> Cost:
            removed(out, folder / "cache")
            return of_process(pack_command(source, out))

        pack()
        ways: dict[str, Callable[[], Cost]] = {
            "pack": pack,
            f"importing {NEEDED}": partial(of_process, [sys.executable, "-c", f"import {NEEDED}"]),
            "pipeline --help": partial(of_process, [sys.executable, "-m", "pipeline", "--help"]),
        }
        return {"ten rows": case(in_turn(ways, rounds))}


PARTS = (Part(name="small", measure=small, rounds=15, minutes=0.5),)
