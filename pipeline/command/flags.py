"""Flags that several commands have, with their help texts."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import click

from pipeline.base.harness import Decorator, flag
from pipeline.base.options import EngineOptions, RunOptions, option_types
from pipeline.command.job_file import load_job
from pipeline.format.options import InputOptions, TokenizeOptions

log = logging.getLogger(__name__)

_UNITS = {"": 1, "B": 1}
for _power, _prefix in enumerate("KMGT", 1):
    _UNITS[f"{_prefix}B"] = _UNITS[_prefix] = 1000**_power
    _UNITS[f"{_prefix}IB"] = 1024**_power


class Size(click.ParamType[int]):
    """Bytes, as in 512MB (powers of 1000) or 512MiB (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, from text."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size; write for instance 512MB or 1GiB", param, ctx)
        size = int(float(match[1]) * _UNITS[match[2].upper()])
        if size < 1:
            self.fail("a size must be at least one byte", param, ctx)
        return size


class RenamedChoice(click.Choice[str]):
    """Choices, one of which had another name in the version before."""

    def __init__(self, choices: tuple[str, ...], old: str, new: str) -> None:
        super().__init__(choices)
        self._old, self._new = old, new

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The choice, under its name of today."""
        if value == self._old:
            name = param.opts[0] if param else "this option"
            log.warning("%s %s is now called %s; the next version will refuse it", name, self._old, self._new)
            value = self._new
        return super().convert(value, param, ctx)


def size_text(size: int) -> str:
    """A size as `Size` reads it."""
    return f"{size // 1000**2}MB"


def pairs_flag(name: str, help_text: str, metavar: str = "KEY=VALUE") -> Decorator:
    """A flag of a mapping, which may be repeated."""
    return click.option(f"--{name}", name.replace("-", "_"), multiple=True, metavar=metavar, help=help_text)


def input_and_output(without: str) -> list[Decorator]:
    """INPUT and --output, which may be missing with the flags named in `without`."""
    return [
        click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
        click.option(
            "--output",
            type=click.Path(path_type=str),
            metavar="DIR",
            help=f"Publish the result as this directory or s3:// URL. It may be missing with {without} alone.",
        ),
    ]


INPUT_FLAGS: list[Decorator] = [
    flag(InputOptions, "split", "Read this split alone, as a dataset without splits.", metavar="NAME"),
    flag(InputOptions, "subset", "Read this configuration of a Hub dataset.", metavar="NAME"),
    flag(InputOptions, "revision", "Read this revision of a Hub dataset.", metavar="REV"),
]

TOKENIZE_FLAGS: list[Decorator] = [
    flag(TokenizeOptions, "format", "Say what a row is; auto tells by the columns and the first rows."),
    flag(TokenizeOptions, "paths", "Choose which paths of dialogue trees are samples; best follows the ranks."),
    flag(
        TokenizeOptions,
        "train_on",
        "Choose which tokens are targets. [default: assistant for chats, completion for pairs, all for text]",
    ),
    click.option(
        "--chat-template",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Render chats by this Jinja template. [default: the tokenizer's]",
    ),
    pairs_flag(
        "map",
        "Name the column that holds a field, as in prompt=question,completion=answer. It may be repeated.",
        "FIELD=COLUMN,...",
    ),
    flag(
        TokenizeOptions,
        "on_error",
        "Choose what becomes of rows that cannot be used; those dropped are listed in dropped.jsonl.",
        type=RenamedChoice(option_types(TokenizeOptions)["on_error"].choices, "skip", "drop"),
    ),
    flag(
        TokenizeOptions,
        "max_row_bytes",
        "Let a row have so many bytes of text; one with more cannot be used.",
        size_text,
        type=Size(),
    ),
    flag(TokenizeOptions, "history", "Choose what becomes of chats whose earlier turns the template rewrites."),
    flag(TokenizeOptions, "reasoning", "Choose whether reasoning is trained, masked or taken out."),
    flag(
        TokenizeOptions,
        "reasoning_inline",
        "Put reasoning in front of the content, in marks, where the template has no place for it.",
    ),
    flag(
        TokenizeOptions,
        "reasoning_marks",
        "Take what stands between these marks in front of the content for reasoning.",
        metavar="OPEN,CLOSE",
    ),
    flag(TokenizeOptions, "tool_calls", "Choose whether tool calls are trained."),
    flag(
        TokenizeOptions,
        "inserted",
        "Choose whether what the template inserts into a turn is trained; auto: what follows the generation prompt.",
    ),
    flag(TokenizeOptions, "turn_end", "Choose what ends turns for which the template writes no special token."),
    flag(TokenizeOptions, "unsaid", "Choose whether a template may leave out tools and system turns."),
    flag(
        TokenizeOptions,
        "special_in_text",
        "Choose what becomes of samples whose words hold special tokens; split encodes them there as plain text.",
    ),
    pairs_flag("template-kwargs", "Tell the chat template this too, as in enable_thinking=false; values are JSON."),
    flag(
        TokenizeOptions,
        "template_date",
        "Have the chat template read this day; needed where it reads the clock.",
        metavar="YYYY-MM-DD",
    ),
    pairs_flag("keys", "Name the keys of a turn, as in role=speaker,content=text.", "KEY=NAME,..."),
    pairs_flag("roles", "Name the speakers of a role, as in user=human|customer,assistant=bot.", "ROLE=NAMES,..."),
    flag(TokenizeOptions, "append_eos", "Put the end token after texts, pairs and turns that have none."),
    click.option(
        "--show",
        type=click.IntRange(1),
        metavar="N",
        help="Print N samples in blocks of one kind, with what is trained bright and the rest dim.",
    ),
    click.option(
        "--show-row",
        type=click.IntRange(0),
        multiple=True,
        metavar="ID",
        help="Print the samples of the row with this number, counted from 0 over all INPUTs. It may be repeated.",
    ),
]

PUBLISH_FLAGS: list[Decorator] = [
    click.option(
        "--config",
        type=click.Path(),
        is_eager=True,
        callback=load_job,
        metavar="JOB.YAML",
        help="Read options by their names from this file; flags win over it.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace another run's dataset at --output."),
    click.option(
        "--append",
        is_flag=True,
        help="Add the files of all INPUTs that the dataset at --output does not have yet.",
    ),
    click.option(
        "--versioned", is_flag=True, help="Publish as --output/RUN_ID, to which the link --output/latest points then."
    ),
    click.option(
        "--keep",
        type=click.IntRange(0),
        metavar="N",
        help="With --versioned, let the newest N other versions stay. [default: all]",
    ),
    click.option(
        "--unchanged-exit-code",
        type=click.IntRange(0, 125),
        default=0,
        show_default=True,
        metavar="N",
        help="Exit with this where the output is up to date already.",
    ),
]

ENGINE_FLAGS: list[Decorator] = [
    flag(EngineOptions, "engine", "Choose who does the tasks: this machine, or the workers of a Ray cluster."),
    flag(EngineOptions, "ray_address", "Use this cluster. [default: start one on this machine]", metavar="ADDRESS"),
    pairs_flag(
        "resources",
        "Give each task of a stage (decode, embed, plan, write) so much, as in embed=gpu:1. It may be repeated.",
        "STAGE=gpu:N",
    ),
    flag(
        EngineOptions,
        "task_index",
        "Do the share of this task of an array job, counted from 0, and publish nothing.",
        metavar="I",
    ),
    flag(EngineOptions, "task_count", "Let so many tasks share the run.", metavar="N"),
    flag(EngineOptions, "wait", "Wait so long for what the other tasks have to do first.", metavar="SECONDS"),
    flag(EngineOptions, "finish", "Publish what the tasks of an array job left."),
]

RUN_FLAGS: list[Decorator] = [
    flag(RunOptions, "num_workers", "Run so many tasks side by side. [default: the cores]", metavar="N"),
    flag(
        RunOptions,
        "cache_dir",
        "Remember content hashes and embeddings there. [default: under $XDG_CACHE_HOME]",
        metavar="DIR",
    ),
    flag(RunOptions, "rehash", "Read and hash every input, also where its hash is remembered."),
]
