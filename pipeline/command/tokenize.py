"""`python -m pipeline tokenize`."""

from __future__ import annotations

from typing import Any

import click

from pipeline.base.errors import ConfigError
from pipeline.base.harness import Decorator, EagerCommand, end_with, flag, flags, print_result, result_options
from pipeline.command.flags import (
    INPUT_FLAGS,
    PUBLISH_FLAGS,
    RUN_FLAGS,
    TOKENIZE_FLAGS,
    input_and_output,
)
from pipeline.command.metrics import METRICS_FLAGS, tally_figures, watch_of
from pipeline.command.raw_rows import load, replacing, run_options, show_samples, tokenize_options
from pipeline.format.options import InputOptions, TokenizeOptions

_TOKENIZER_FLAG: list[Decorator] = [
    click.option(
        "--tokenizer", required=True, metavar="PATH_OR_ID", help="Load this directory, tokenizer.json or Hub id."
    )
]

_KEEP_TEXT_FLAG: list[Decorator] = [
    flag(TokenizeOptions, "keep_text", "Keep what the user said in a column `text`, for embedding.")
]


@click.command(cls=EagerCommand)
@flags(
    input_and_output("--show or --show-row"),
    _TOKENIZER_FLAG,
    TOKENIZE_FLAGS,
    _KEEP_TEXT_FLAG,
    INPUT_FLAGS,
    PUBLISH_FLAGS,
    RUN_FLAGS,
    METRICS_FLAGS,
)
@result_options
@click.pass_context
def tokenize(ctx: click.Context, /, **values: Any) -> None:
    """Turn raw rows (chats, prompts with completions, instructions, text) into tokens and targets, for `pack`."""
    from pipeline.command.tables import tokenize_table
    from pipeline.tokenizing.run import tokenize as run_tokenize

    options = tokenize_options(ctx, values)
    watch = watch_of(ctx)
    if values["output"] is None:
        watch.leave_metrics()
    tokenizer = load(values["tokenizer"])
    assert options is not None and tokenizer is not None, "--tokenizer is required"
    part = InputOptions(split=values["split"], subset=values["subset"], revision=values["revision"])
    if values["show"] or values["show_row"]:
        show_samples(values, part, options, tokenizer)
    elif values["output"] is None:
        raise ConfigError("--output DIR is missing; only --show and --show-row work without it")
    if values["output"] is not None:
        result = run_tokenize(
            values["inputs"],
            values["output"],
            tokenizer,
            options,
            chat_template=values["chat_template"],
            part=part,
            **replacing(values),
            run=run_options(values),
            progress=watch,
        )
        watch.done(result.status, tally_figures(result.manifest.counts), run_id=result.manifest.run_id)
        print_result(*tokenize_table(result), values["as_json"])
        if result.status == "up_to_date":
            end_with(values["unchanged_exit_code"])
