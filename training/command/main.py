"""`python -m training`: the commands. What they do lives elsewhere and is imported when one is called."""

from __future__ import annotations

import os
from typing import NoReturn

import click

from pipeline.base.harness import Program, run
from pipeline.base.words import first_line
from training.command.bench import bench
from training.command.parity import parity
from training.command.probe import probe
from training.command.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tightpack", prog_name="tightpack")
def commands() -> None:
    """Train on packed shards, and check that what is trained is what was packed."""


for _command in (train, probe, parity, bench):
    commands.add_command(_command)


def _too_little_memory(error: Exception) -> str | None:
    """What to say where memory did not suffice; torch, which says so, is not imported for that."""
    if type(error).__name__ not in ("OutOfMemoryError", "MemoryError") and "DefaultCPUAllocator" not in str(error):
        return None
    ways = "in train, take fewer --packs-per-forward, --gradient-checkpointing, or --fsdp on several GPUs"
    return f"memory does not suffice ({first_line(error)}): {ways}; or pack with a smaller --max-length"


def main() -> NoReturn:
    """Run a command; every way in which it can end has its exit code."""
    rank = os.environ.get("RANK")  # torchrun tells its processes
    extras = {"torch": "train", "transformers": "train", "peft": "lora"}
    program = Program(
        name="python -m training",
        extras=extras,
        fault=_too_little_memory,
        rank=None if rank is None else int(rank),
    )
    run(commands, program)
