"""Runs of `python -m training train`, for tests."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.training.forked import Forked
from tests.training.samples import config_file
from training import StepResult, train_step

ROOT = Path(__file__).parents[2]


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model/model.safetensors")


def equal(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def command(shards: Path, folder: Path, output: Path, *more: object, steps: int = 6) -> list[object]:
    config = config_file(folder)
    return ["train", "--shards", shards, "--model", config, "--steps", steps, "--output", output, *more]


def log_of_complete(output: Path) -> list[str]:
    return [line for line in (output / "log.jsonl").read_text().split("\n") if line.endswith("}")]


def on_two_ranks(*arguments: object) -> subprocess.Popen[str]:
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "training"]
    return subprocess.Popen(
        [*launched, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def terminate(ranks: list[Forked], output: Path, after: int) -> None:
    """Send ranks SIGTERM, as torchrun does, once their log has so many lines."""
    while not (output / "log.jsonl").exists() or len(log_of_complete(output)) < after:
        assert all(rank.is_alive for rank in ranks)
        time.sleep(0.01)
    for rank in ranks:
        rank.send(signal.SIGTERM)


def stopping(after: int) -> Callable[..., StepResult]:
    """A step, and SIGTERM in the midst of so many."""
    steps = itertools.count(1)

    def step(*arguments: Any, **named: Any) -> StepResult:
        if next(steps) == after:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*arguments, **named)

    return step
