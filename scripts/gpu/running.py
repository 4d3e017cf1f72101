"""`train` itself, on generated packs: it learns, is stopped and goes on, alone and as a rank of torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpu.made import CAPACITY, TINY, TRAINED, packed, write_shards
from gpu.report import Report
from pipeline.base.errors import Termination
from pipeline.base.words import first_line
from training.models.pretrained import load_model
from training.options import TrainOptions
from training.running import checkpoint
from training.running.train import train

STEPS, STOPPED_AFTER = 12, 5

MOST_DIFFERENCE = 0.05
"""Between weights that differ by rounding, as a part of what training changed: Adam makes much of little."""

_MEMORY = "train: memory with gradient checkpointing"

Weights = dict[str, torch.Tensor]


class Runs:
    """Training runs of one model on the same packs."""

    def __init__(self, folder: Path, backend: str, *, small: bool) -> None:
        config = TINY if small else TRAINED
        self.folder, self._backend = folder, backend
        self.model = folder / "llama.json"
        config.to_json_file(self.model)
        rows = packed(
            "gsm8k-like", 16, 64, 128 if small else CAPACITY
        )  # few tokens, so that there is something to learn
        self._shards = write_shards(rows, folder / "shards")
        self.untrained: Weights = load_model(str(self.model)).state_dict()

    def options(self, name: str, **more: Any) -> TrainOptions:
        """Parameters in float32, the forward pass in bfloat16, no bit by chance."""
        given: dict[str, Any] = {
            "shards": str(self._shards),
            "model": str(self.model),
            "output": self.folder / name,
            "steps": STEPS,
            "packs_per_step": 2,
            "learning_rate": 3e-3,
            "backend": self._backend,
            "dtype": "bfloat16",
            "deterministic": True,
        }
        return TrainOptions(**(given | more))

    def trained(self, name: str) -> Weights:
        """The weights that a run has written."""
        return load_file(self.folder / name / "model/model.safetensors")

    def log(self, name: str) -> list[dict[str, Any]]:
        """The lines of a run's log."""
        return [json.loads(line) for line in (self.folder / name / "log.jsonl").read_text().splitlines()]

    def difference(self, name: str, other: str) -> float:
        """Of the weights of two runs, as a part of what the second changed."""
        one, two = self.trained(name), self.trained(other)
        return _norm(one, two) / _norm(two, self.untrained)


def check_train(
    report: Report, backend: str, device: torch.device, folder: Path, *, small: bool, launch: bool = True
) -> None:
    """Train, and hold every way to do it against the plain one. launch: also what torchrun starts."""
    checks = _IN_PROCESS | (_LAUNCHED if launch else {})
    report.plan(f"train: {name}" for name in checks)
    if device.type == "cuda":
        report.plan([_MEMORY])
    runs = Runs(folder, backend, small=small)
    for name, check in checks.items():
        try:
            check(report, f"train: {name}", runs, device)
        except Exception as error:  # of this one alone
            report.absent(f"train: {name}", f"{type(error).__name__}: {first_line(error)}")
        report.keep(
            "train", {each.name: runs.log(each.name) for each in folder.iterdir() if (each / "log.jsonl").is_file()}
        )


def _learns(report: Report, name: str, runs: Runs, device: torch.device) -> None:
    train(runs.options("plain"))
    losses = [line["loss"] for line in runs.log("plain")]
    first, last = losses[0], losses[-1]
    report.check(name, last < 0.9 * first, last, f"below {0.9 * first:.3f}", f"the loss went from {first} to {last}")


def _goes_on(report: Report, name: str, runs: Runs, device: torch.device) -> None:
    options = runs.options("stopped", check=False)
    with _stopped_after(STOPPED_AFTER), suppress(Termination):
        train(options)
    kept = runs.folder / "stopped" / checkpoint.NAME
    done = runs.log("stopped")[-1]["step"]
    if not kept.is_file() or done != STOPPED_AFTER:
        report.check(
            name, False, reason=f"no checkpoint was left by a signal after {STOPPED_AFTER} steps, but {done} steps"
        )
        return
    train(options)
    difference = runs.difference("stopped", "plain")
    report.check(name, difference == 0, difference, "exactly 0", f"the weights are off by {difference:.1e}")


def _stays_float32(report: Report, name: str, runs: Runs, device: torch.device) -> None:
    """In bfloat16 most weights would not move at all."""
    trained = runs.trained("plain")
    others = [key for key, each in trained.items() if each.dtype != torch.float32]
    layers = [key for key in trained if ".layers." in key]
    moved = sum(int((trained[key] != runs.untrained[key]).sum()) for key in layers)
    part = moved / sum(trained[key].numel() for key in layers)
    reason = f"{others[0]} is {trained[others[0]].dtype}" if others else f"{part:.1%} of the weights of layers changed"
    report.check(name, not others and part > 0.98, part, "0.98 of the weights of layers changed", reason)


def _checkpoints(report: Report, name: str, runs: Runs, device: torch.device) -> None:
    train(runs.options("checkpointing", gradient_checkpointing=True, check=False))
    difference = runs.difference("checkpointing", "plain")
    report.check(name, difference <= MOST_DIFFERENCE, difference, f"at most {MOST_DIFFERENCE}")
    if device.type == "cuda":
        peaks = [max(line["peak_memory_bytes"] for line in runs.log(each)) for each in ("checkpointing", "plain")]
        report.hold(_MEMORY, peaks[0] / peaks[1], below=1.0)


def _under_torchrun(report: Report, name: str, runs: Runs, device: torch.device) -> None:
    """As the only rank, which exchanges its gradients with nobody, by the library that would."""
    _launch(report, name, runs, device, "torchrun")


def _divided(report: Report, name: str, runs: Runs, device: torch.device) -> None:
    """Divided over one rank: every weight is gathered and every gradient scattered, as among many."""
    _launch(report, name, runs, device, "fsdp", "--fsdp")


_Checks = dict[str, Callable[[Report, str, Runs, torch.device], None]]

_IN_PROCESS: _Checks = {
    "learns": _learns,
    "goes on after it was stopped": _goes_on,
    "parameters stay in float32": _stays_float32,
    "gradient checkpointing": _checkpoints,
}
_LAUNCHED: _Checks = {"torchrun": _under_torchrun, "torchrun --fsdp": _divided}


def _launch(report: Report, name: str, runs: Runs, device: torch.device, output: str, *more: str) -> None:
    options = runs.options(output)
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "training", "train"]
    flags = []
    for field in ("shards", "model", "output", "steps", "packs_per_step", "learning_rate", "backend", "dtype"):
        flags += [f"--{field.replace('_', '-')}", str(getattr(options, field))]
    done = subprocess.run(
        [sys.executable, *launched, *flags, "--deterministic", "--no-check", *more],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    library = "nccl" if device.type == "cuda" else "gloo"
    if done.returncode != 0 or library not in done.stderr:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        said = (errors or done.stderr.strip().splitlines()[-1:] or ["nothing"])[0]
        report.check(name, False, reason=f"it ended with {done.returncode}, without {library} perhaps, and said {said}")
        return
    difference = runs.difference(output, "plain")
    report.check(name, difference <= MOST_DIFFERENCE, difference, f"at most {MOST_DIFFERENCE}, by {library}")


@contextmanager
def _stopped_after(steps: int) -> Iterator[None]:
    """Send this process SIGTERM after so many optimizer steps."""
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        if done == steps:
            signal.raise_signal(signal.SIGTERM)

    handle = register_optimizer_step_post_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _norm(one: Weights, other: Weights) -> float:
    squares = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return float(squares**0.5)
