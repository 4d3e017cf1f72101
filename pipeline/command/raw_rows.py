"""What the commands have in common that read raw rows, and how a run is done."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.errors import ConfigError, DataError
from pipeline.base.options import RunOptions
from pipeline.base.words import counted
from pipeline.command.job_file import merged, source_of
from pipeline.format.options import InputOptions, TokenizeOptions

if TYPE_CHECKING:
    from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

_CHOICES = (
    "format",
    "paths",
    "train_on",
    "on_error",
    "max_row_bytes",
    "append_eos",
    "history",
    "reasoning",
    "reasoning_inline",
    "reasoning_marks",
    "tool_calls",
    "inserted",
    "turn_end",
    "unsaid",
    "special_in_text",
    "template_date",
)
_MAPPINGS = ("map", "keys", "roles")
_NEED_TOKENIZER = (*_CHOICES, *_MAPPINGS, "template_kwargs", "chat_template", "show", "show_row")


def replacing(values: dict[str, Any]) -> dict[str, Any]:
    """Whether what is there is replaced, added to, or stays beside."""
    return {name: values[name] for name in ("overwrite", "append", "versioned", "keep")}


def run_options(values: dict[str, Any]) -> RunOptions:
    """How the run is done."""
    return RunOptions(**{field.name: values[field.name] for field in dataclasses.fields(RunOptions)})


def load(tokenizer: str | None) -> TextTokenizer | None:
    """Load a tokenizer, if one is named."""
    if tokenizer is None:
        return None
    from pipeline.tokenizing.tokens.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    gc.freeze()  # or every collection would walk all of transformers, a tenth of the time
    return loaded


def tokenize_options(ctx: click.Context, values: dict[str, Any]) -> TokenizeOptions | None:
    """How raw rows are tokenised; None without a tokenizer. Raises `ConfigError` for flags that need one."""
    if values["tokenizer"] is None:
        for name in _NEED_TOKENIZER:
            if source_of(ctx, name) != "default" or ctx.meta.get(f"job.{name}"):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is for raw rows and has no effect without --tokenizer")
        return None
    mappings: dict[str, Any] = {name: merged(ctx, name, split_pairs(values[name]))[0] for name in _MAPPINGS}
    kwargs = merged(ctx, "template_kwargs", values["template_kwargs"])[0]
    return TokenizeOptions(
        **{name: values[name] for name in _CHOICES},
        **mappings,
        template_kwargs={name: _template_value(name, value) for name, value in kwargs.items()},
        keep_text=values.get("keep_text", False),
    )


def _template_value(name: str, value: Any) -> Any:
    """What a template is told: the value as JSON, else a text. Raises `ConfigError` for words that Python has."""
    from pipeline.tokenizing.rows.messages import parsed

    words = {"True": "true", "False": "false", "None": "null"}
    if isinstance(value, str) and value in words:
        raise ConfigError(
            f"--template-kwargs {name}={value}: a template would take it for a text, and every text is true;"
            f" write {words[value]}"
        )
    return parsed(value)


def split_pairs(texts: Iterable[str]) -> list[str]:
    """FIELD=COLUMN,... texts as one text a pair."""
    return [pair for text in texts for pair in text.split(",")]


def show_samples(
    values: dict[str, Any], part: InputOptions, options: TokenizeOptions | None, tokenizer: TextTokenizer | None
) -> None:
    """Print the first samples, and those of chosen rows: to stdout, but not into a JSON object; warn as a run.

    Raises `ConfigError` for flags of a result where samples are all that is asked for, and for a row that there is not;
    `DataError` for a chosen row that gives no sample, once the others are printed.
    """
    from pipeline.reading.inputs import resolve
    from pipeline.reading.workspace import cache_of
    from pipeline.tokenizing.showing.blocks import shown_text
    from pipeline.tokenizing.showing.samples import ShownFault, chosen_rows, first_samples
    from pipeline.tokenizing.tally import RowTally, warn_of_rows
    from pipeline.tokenizing.tokenization import load_tokenization

    assert options is not None and tokenizer is not None, "--show needs a tokenizer"
    is_all = values["output"] is None and not values.get("dry_run")
    if is_all:
        for name, flag in (("as_json", "json"), ("overwrite", "overwrite")):
            if values[name]:
                raise ConfigError(f"--{flag} has no effect: without --output samples are shown, and no more is done")
    tokenization = load_tokenization(tokenizer, values["chat_template"], options, tells=is_all)
    to_stderr = values["as_json"]
    color = (sys.stderr if to_stderr else sys.stdout).isatty() and not os.environ.get("NO_COLOR")
    with cache_of(run_options(values)) as cache:
        inputs = resolve(values["inputs"], part)
        numbers, looked_at = values["show_row"], RowTally()
        first = list(first_samples(inputs, tokenization, cache, values["show"], looked_at)) if values["show"] else []
        chosen = list(chosen_rows(inputs, tokenization, cache, numbers, looked_at)) if numbers else []
    shown = [*first, *(one for one in chosen if not isinstance(one, ShownFault))]
    if shown:
        click.echo(shown_text(shown, tokenizer, color=color), err=to_stderr)
    if is_all:  # else the run tells it of all rows
        log.info("%s looked at", counted(looked_at.rows, "row"))
        warn_of_rows(looked_at, are_listed=False)
    for one in chosen:
        if isinstance(one, ShownFault):
            raise DataError(f"{one.title}: {one.fault.detail}")
