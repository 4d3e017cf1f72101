"""Options that several commands have."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import click

from pipeline.base.errors import StorageError
from pipeline.command.options import load_job
from pipeline.tokenizing.options import FORMATS, TRAIN_ON

log = logging.getLogger("pipeline")

Command = Callable[..., None]
Decorator = Callable[[Command], Command]


def options(*groups: list[Decorator]) -> Decorator:
    """Give a command groups of options, in their order."""

    def decorate(function: Command) -> Command:
        for group in reversed(groups):
            for option in reversed(group):
                function = option(function)
        return function

    return decorate


def reads_and_writes(without: str) -> Decorator:
    """INPUT and --output, which may be missing with the flags named in `without`."""
    return options(
        [
            click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
            click.option(
                "--output",
                type=click.Path(path_type=Path),
                metavar="DIR",
                help=f"Directory to publish. Required, except with {without}.",
            ),
        ]
    )


def _log_to(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    try:
        handler = logging.FileHandler(path)
    except OSError as error:
        raise StorageError(f"--log-file {path}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def _log_more(ctx: click.Context, param: click.Parameter, on: bool) -> None:
    if on:
        log.setLevel(logging.DEBUG)


input_options: list[Decorator] = [
    click.option("--split", metavar="NAME", help="This split only, as a dataset without splits."),
    click.option("--subset", metavar="NAME", help="Configuration of a Hub dataset."),
    click.option("--revision", metavar="REV", help="Revision of a Hub dataset."),
]

column_options: list[Decorator] = [
    click.option(
        "--column",
        "column",
        multiple=True,
        metavar="ROLE=NAME",
        help="Column that plays a role: input_ids, attention_mask, and one of labels, completion_mask,"
        " assistant_masks, loss_mask. Repeatable.",
    )
]

tokenize_options: list[Decorator] = [
    click.option(
        "--format",
        type=click.Choice(["auto", *FORMATS]),
        default="auto",
        show_default=True,
        help="What a row is; auto tells by the columns.",
    ),
    click.option(
        "--train-on",
        type=click.Choice(TRAIN_ON),
        help="Which tokens are targets [default: assistant for chats, completion for pairs, all for text].",
    ),
    click.option(
        "--chat-template",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Jinja chat template [default: the tokenizer's].",
    ),
    click.option(
        "--map",
        multiple=True,
        metavar="FIELD=COLUMN,...",
        help="Column that holds a field, as in prompt=question,completion=answer.",
    ),
    click.option(
        "--on-error",
        type=click.Choice(["error", "skip"]),
        default="error",
        show_default=True,
        help="What to do with rows that cannot be used; skipped ones are listed in skipped.jsonl.",
    ),
    click.option("--append-eos", is_flag=True, help="End token after text, pairs and turns that have none."),
    click.option("--show", type=click.IntRange(1), metavar="N", help="Print N samples: targets bright, the rest dim."),
]

run_options: list[Decorator] = [
    click.option("--num-workers", type=click.IntRange(1), metavar="N", help="Parallel tasks [default: the cores]."),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Remembered content hashes and embeddings [default: under $XDG_CACHE_HOME].",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    click.option(
        "--log-file",
        expose_value=False,
        is_eager=True,
        callback=_log_to,
        metavar="FILE",
        help="Write the log there as well.",
    ),
    click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_log_more,
        help="Log more; show the traceback of a bug.",
    ),
]

publish_options: list[Decorator] = [
    click.option(
        "--config",
        type=click.Path(),
        is_eager=True,
        callback=load_job,
        metavar="JOB.YAML",
        help="File with the same options by name; flags win over it.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace another run's dataset at --output."),
]
