"""`python -m training probe`."""

from __future__ import annotations

from typing import Any

import click

from pipeline.base.errors import ExitCode
from pipeline.base.harness import Decorator, end_with, flags, print_result, result_options
from training.command.flags import COMPUTE_FLAGS, MODEL_FLAG
from training.options import ProbeOptions

_ALL_FLAG: list[Decorator] = [
    click.option(
        "--all",
        "all_ways",
        is_flag=True,
        help="Probe it by positions alone, with usual mistakes, and with each backend, too.",
    )
]


@click.command()
@flags(MODEL_FLAG, _ALL_FLAG, COMPUTE_FLAGS)
@result_options
def probe(as_json: bool, **values: Any) -> None:
    """Ask a model whether one sample of a pack sees another.

    It is given our batch, and the backend computes attention. The exit code is 4 if samples see each other.
    """
    from training.checking.commands import run_probe
    from training.command.tables import probe_table

    result = run_probe(ProbeOptions(**values))
    print_result(*probe_table(result), as_json)
    if not result.passed:
        end_with(ExitCode.CHECK)
