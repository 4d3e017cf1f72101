"""One part, done in this process: whatever ends it, what was planned and did not come is absent."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from gpu.numerics import check_kernels, check_parity, check_probe
from gpu.report import Report
from gpu.running import check_train
from gpu.worth import check_bench
from pipeline.base.errors import ExitCode
from pipeline.base.words import first_line
from training.attention.backends import BACKENDS, choose_backend
from training.measuring.versions import machine

DTYPE = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for."""

    backends: Sequence[str]
    """Empty for all that run."""

    layouts: Sequence[str]
    rounds: int
    small: bool


def do(part: str, path: Path | None, asked: Asked) -> Report:
    """Do a part, and write what came of it. Ends the process with 2 where there is no GPU, unless it is a small try."""
    transformers.logging.set_verbosity_error()
    if not torch.cuda.is_available() and not asked.small:
        print("there is no GPU; --small tries the script itself on a CPU", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    if part == "train":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins, for --deterministic
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    states = {name: each.why_not(device) or "runs" for name, each in BACKENDS.items()}
    known = {"small": asked.small, "backends": states, "auto": choose_backend("auto", device)[0]}
    report = Report(path, machine(device) | known, judged=not asked.small)
    running = _running(report, states, asked.backends, device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if not running:
                raise RuntimeError("no backend runs")
            _check(report, part, running, device, Path(folder), asked)
            report.check(part, True)
        except Exception as error:
            report.check(part, False, reason=f"{type(error).__name__}: {first_line(error)}")
            report.abandon(f"{part} ended before it")
    report.write()
    return report


def _running(report: Report, states: dict[str, str], asked: Sequence[str], device: torch.device) -> list[str]:
    """Backends to check: those that run. What should run and does not has failed: what was asked for, and on a GPU
    kernels that are there."""
    wanted = set(asked)
    if not asked and device.type == "cuda":
        wanted = {"torch-varlen"} | ({"flash-attn"} if find_spec("flash_attn") is not None else set())
    for name, state in states.items():
        if name in wanted:
            report.check(f"{name} runs", state == "runs", reason=state)
    return [name for name, state in states.items() if state == "runs" and (not asked or name in asked)]


def _check(report: Report, part: str, running: Sequence[str], device: torch.device, folder: Path, asked: Asked) -> None:
    trained = [name for name in running if name != "sdpa"] or list(running)
    if part == "kernels":
        check_kernels(report, running, device, DTYPE, small=asked.small)
    elif part == "probe":
        check_probe(report, running, device, DTYPE)
    elif part == "parity":
        check_parity(report, running, device, DTYPE, small=asked.small)
    elif part == "bench":
        check_bench(
            report, trained, device, DTYPE, folder, layouts=asked.layouts, rounds=asked.rounds, small=asked.small
        )
    else:
        check_train(report, trained[0], device, folder, small=asked.small)


if __name__ == "__main__":
    do(sys.argv[1], Path(sys.argv[2]), Asked(**json.loads(sys.argv[3])))
