"""`python -m training`: the commands. What they do lives elsewhere and is imported when one is called."""

from __future__ import annotations

import os
from typing import NoReturn

import click

from pipeline.base.harness import Program, run
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


def main() -> NoReturn:
    """Run a command; every way in which it can end has its exit code."""
    rank = os.environ.get("RANK")  # torchrun tells its processes
    extras = {"torch": "train", "transformers": "train", "peft": "lora"}
    run(commands, Program(name="python -m training", extras=extras, rank=None if rank is None else int(rank)))
