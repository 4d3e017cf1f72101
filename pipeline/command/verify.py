"""`python -m pipeline verify`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from pipeline.base.errors import ConfigError, ExitCode
from pipeline.base.harness import EagerCommand, end_with, flags, print_result, result_options
from pipeline.base.objects.store import is_url
from pipeline.command.flags import RUN_FLAGS
from pipeline.command.metrics import METRICS_FLAGS, watch_of
from pipeline.command.raw_rows import run_options

log = logging.getLogger(__name__)


@click.command(cls=EagerCommand)
@click.argument("directory", type=click.Path(path_type=str), metavar="DIR")
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
@flags(RUN_FLAGS, METRICS_FLAGS)
@result_options
@click.pass_context
def verify(ctx: click.Context, /, directory: str, source: tuple[str, ...], **values: Any) -> None:
    """Check a packed or tokenised dataset: checksums, every invariant of the format, with --source every token."""
    from pipeline.command.tables import verify_table
    from pipeline.verifying.verify import verify as run_verify

    for name in ("rehash",) if is_url(directory) else ("cache_dir", "rehash"):
        if values[name] and not source:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect without --source")
    watch = watch_of(ctx)
    result = run_verify(
        directory,
        source=source,
        tokenizer=values["tokenizer"],
        chat_template=values["chat_template"],
        run=run_options(values),
        progress=watch,
    )
    if result.problems:
        for problem in result.problems:
            log.error("%s", problem, extra={"status": result.status})
    else:
        watch.done(result.status, {"tokens": result.tokens, "packs": result.packs}, directory=directory)
    print_result(*verify_table(result), values["as_json"])
    if result.problems:
        end_with(ExitCode.CHECK)
