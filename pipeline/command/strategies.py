"""`python -m pipeline strategies`."""

from __future__ import annotations

import click

from pipeline.base.harness import print_result, result_options


@click.command()
@result_options
def strategies(as_json: bool) -> None:
    """List the strategies, when to use which, and their options."""
    from pipeline.command.tables import strategies_table

    print_result(*strategies_table(), as_json)
