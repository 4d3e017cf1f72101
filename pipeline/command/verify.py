"""`python -m pipeline verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.base.errors import ConfigError, ExitCode
from pipeline.base.harness import flags, print_result, result_options
from pipeline.base.progress import TerminalBars
from pipeline.command.flags import RUN_FLAGS
from pipeline.command.raw_rows import run_options


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--source",
    multiple=True,
    metavar="INPUT",
    help="Compare every token with this input that it came from. It may be repeated, in the order packed.",
)
@click.option("--tokenizer", metavar="PATH_OR_ID", help="Tokenise a --source of raw rows with it, as it was packed.")
@click.option(
    "--chat-template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Render a --source of raw rows by this template, as it was packed.",
)
@flags(RUN_FLAGS)
@result_options
def verify(directory: Path, source: tuple[str, ...], **values: Any) -> None:
    """Check a packed dataset: checksums, every invariant of the format, and with --source every token."""
    from pipeline.command.tables import verify_table
    from pipeline.verifying.verify import verify as run_verify

    if values["cache_dir"] is not None and not source:
        raise ConfigError("--cache-dir has no effect without --source")
    result = run_verify(
        directory,
        source=source,
        tokenizer=values["tokenizer"],
        chat_template=values["chat_template"],
        run=run_options(values),
        progress=TerminalBars(),
    )
    print_result(*verify_table(result), values["as_json"])
    if result.problems:
        sys.exit(ExitCode.CHECK)
