"""`python -m training parity`."""

from __future__ import annotations

from typing import Any

import click

from pipeline.base.errors import ExitCode
from pipeline.base.harness import Decorator, end_with, flag, flags, print_result, result_options
from training.command.flags import COMPUTE_FLAGS, MODEL_FLAG, SHARD_FLAGS
from training.options import ParityOptions

_PACKS_FLAG: list[Decorator] = [flag(ParityOptions, "packs", "Compare so many packs.", metavar="N")]


@click.command()
@flags(SHARD_FLAGS, MODEL_FLAG, _PACKS_FLAG, COMPUTE_FLAGS)
@result_options
def parity(as_json: bool, **values: Any) -> None:
    """Compare packs with their samples one by one.

    Losses and gradients have to agree but for rounding; the exit code is 4 if they differ.
    """
    from training.checking.commands import run_parity
    from training.command.tables import parity_table

    result = run_parity(ParityOptions(**values))
    print_result(*parity_table(result), as_json)
    if not result.passed:
        end_with(ExitCode.CHECK)
