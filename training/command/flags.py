"""Flags that several commands have."""

from __future__ import annotations

from pipeline.base.harness import Decorator, flag
from training.options import ModelOptions, ShardOptions

SHARD_FLAGS: list[Decorator] = [
    flag(ShardOptions, "shards", "Read what `python -m pipeline pack` wrote to this directory.", metavar="DIR"),
    flag(ShardOptions, "split", "Read this split; it is needed where the shards have several.", metavar="NAME"),
]

MODEL_FLAG: list[Decorator] = [
    flag(
        ModelOptions,
        "model",
        "Load this directory or Hub id, or make random weights for this config.json.",
        metavar="PATH_OR_CONFIG",
    ),
]

COMPUTE_FLAGS: list[Decorator] = [
    flag(ModelOptions, "backend", "Compute attention by this backend; auto takes the fastest that runs."),
    flag(ModelOptions, "dtype", "Compute the forward pass in this precision; auto is bfloat16 on a GPU."),
    flag(ModelOptions, "seed", "Draw everything that is random from this seed."),
]
