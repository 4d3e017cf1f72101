"""What makes one training run another: the options that decide its result, and the content of shards and model."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.base.digests import hash_file, hash_json
from training.models.adapters import CONFIG, base_of, is_adapter
from training.models.pretrained import WEIGHTS, model_path
from training.options import TrainOptions
from training.shards import Shards

_NOT_IN_RESULT = (
    "shards",
    "output",
    "packs_per_forward",
    "fsdp",
    "gradient_checkpointing",
    "deterministic",
    "save_every",
    "log_every",
    "eval_every",
    "check",
)
"""Options that change at most how the trained weights are rounded, or are named by the shards' `run_id`."""


def run_identity(options: TrainOptions, shards: Shards, eval_shards: Shards | None) -> dict[str, Any]:
    """What tells a run from another, ready for JSON. Raises as `load_model`."""
    decide = {name: value for name, value in dataclasses.asdict(options).items() if name not in _NOT_IN_RESULT}
    if options.lora is not None:
        decide["lora"]["targets"] = list(options.lora.targets)
    evaluated = None if eval_shards is None else _shards_identity(eval_shards)
    return decide | {
        "shards": _shards_identity(shards),
        "model": _model_identity(options.model),
        "eval_shards": evaluated,
    }


def _shards_identity(shards: Shards) -> str:
    """What tells shards from others: the run that wrote them, or the content of their files if no manifest tells."""
    if shards.manifest is not None:
        return shards.manifest.run_id
    return hash_json([hash_file(each) for each in shards.files])


def _model_identity(name: str) -> str:
    """What tells one model from another: its config.json and weights, of a Hub id the id; of an adapter also those of
    the model that it is of. Raises as `load_model`."""
    path = model_path(name)
    if not path.exists():
        return name
    patterns = ("config.json", CONFIG, *WEIGHTS)
    files = [path] if path.is_file() else sorted(each for pattern in patterns for each in path.glob(pattern))
    content = [[each.name if path.is_dir() else "", hash_file(each)] for each in files]
    return hash_json([*content, _model_identity(base_of(path))] if is_adapter(path) else content)
