"""Flags that several commands have."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

from pipeline.base.errors import ConfigError
from pipeline.base.harness import Decorator, flag
from training.options import LoraOptions, ModelOptions, ShardOptions

_LORA: dict[str, Callable[[str], Any]] = {
    "r": int,
    "alpha": float,
    "dropout": float,
    "targets": re.compile("[|,]").split,
}
"""Options of an adapter, and how they are read."""


class Lora(click.ParamType[LoraOptions]):
    """Options of an adapter, as in r=16,alpha=32,targets=q_proj|v_proj."""

    name = "lora"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LoraOptions:
        """Options, from text."""
        given: dict[str, Any] = {}
        for part in re.split(r",(?=\w+=)", str(value)):  # a comma may stand between targets, too
            name, _, text = part.partition("=")
            if name not in _LORA or name in given:
                wrong = f"{part!r} is none of {', '.join(_LORA)}, or stands there twice"
                self.fail(f"{wrong}; write for instance r=16,alpha=32,targets=q_proj|v_proj", param, ctx)
            try:
                given[name] = _LORA[name](text)
            except ValueError as error:
                self.fail(f"{name}: {error}", param, ctx)
        try:
            return LoraOptions(**given)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


SHARD_FLAGS: list[Decorator] = [
    flag(
        ShardOptions,
        "shards",
        "Read what `python -m pipeline pack` wrote to this directory or URL.",
        metavar="DIR",
    ),
    flag(ShardOptions, "split", "Read this split; it is needed where the shards have several.", metavar="NAME"),
]

MODEL_FLAG: list[Decorator] = [
    flag(
        ModelOptions,
        "model",
        "Load this directory (of a model or an adapter) or Hub id, or make random weights for this config.json.",
        metavar="PATH_OR_CONFIG",
    ),
]

COMPUTE_FLAGS: list[Decorator] = [
    flag(ModelOptions, "backend", "Compute attention by this backend; auto takes the fastest that runs."),
    flag(ModelOptions, "dtype", "Compute the forward pass in this precision; auto is bfloat16 on a GPU."),
    flag(ModelOptions, "seed", "Draw everything that is random from this seed."),
]
