"""The packs that training reads: what `python -m pipeline pack` wrote, checked before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from training.errors import ConfigError, ShardError, first_line

COLUMNS = ("input_ids", "labels", "position_ids", "boundaries", "target_counts")


@dataclass(frozen=True)
class Shards:
    """Packs on disk."""

    path: str
    packs: datasets.Dataset
    """In numpy format, with `COLUMNS` alone."""

    capacity: int
    """Tokens that a pack may have."""

    longest: int
    """Tokens of the longest segment."""

    most_segments: int
    """Segments of the pack that has most."""

    run_id: str | None
    """Of the run that wrote them; None if there is no manifest."""


class PackTables(Dataset[pa.Table]):
    """Packs for a `DataLoader`, a batch of them as one table: more than three times as fast as row by row."""

    def __init__(self, shards: Shards) -> None:
        self._packs = shards.packs.with_format("arrow")

    def __len__(self) -> int:
        return len(self._packs)

    def __getitems__(self, numbers: list[int]) -> list[pa.Table]:
        return [self._packs[numbers]]


def open_shards(path: str, split: str | None = None) -> Shards:
    """Open a directory that `python -m pipeline pack` wrote.

    split: needed where it holds several.

    Raises `ConfigError` for a path or a split that does not exist, `ShardError` for what are no packs.
    """
    if not Path(path).is_dir():
        raise ConfigError(f"shards {path}: no such directory")
    try:
        found = datasets.load_from_disk(path)
    except (FileNotFoundError, ValueError, OSError) as error:
        raise ShardError(f"shards {path}: {first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        if split is None and len(found) > 1:
            raise ConfigError(f"shards {path}: choose one of the splits with --split: {', '.join(found)}")
        name = split or next(iter(found))
        if name not in found:
            raise ConfigError(f"shards {path}: no split {name!r}, but {', '.join(found)}")
        found = found[name]
    elif split is not None:
        raise ConfigError(f"shards {path}: there are no splits, so no {split!r}")
    missing = [column for column in COLUMNS if column not in found.column_names]
    if missing:
        raise ShardError(
            f"shards {path}: no column {missing[0]!r}; training reads what `python -m pipeline pack` writes"
        )
    if len(found) == 0:
        raise ShardError(f"shards {path}: there are no packs")
    manifest = Path(path) / "manifest.json"
    try:
        told = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    except ValueError as error:
        raise ShardError(f"{manifest} is damaged; see `python -m pipeline verify {path}`") from error
    packs = found.select_columns(list(COLUMNS))
    longest_pack = longest = most = 0
    for table in packs.select_columns(["boundaries"]).with_format("arrow").iter(4096):
        boundaries = table.column("boundaries").combine_chunks()
        ends = boundaries.values.to_numpy()[boundaries.offsets.to_numpy()[1:] - 1]
        longest_pack = max(longest_pack, int(ends.max()))
        longest = max(longest, int(np.diff(boundaries.flatten().to_numpy()).max()))
        most = max(most, int(np.diff(boundaries.offsets.to_numpy()).max()) - 1)
    capacity = int(told.get("capacity") or longest_pack)
    return Shards(path, packs.with_format("numpy"), capacity, longest, most, told.get("run_id"))


def check_fits(shards: Shards, model: PreTrainedModel, *, joint: bool) -> None:
    """Raise `ShardError` if packs have positions that the model does not have."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = shards.capacity if joint else shards.longest
    if positions is not None and longest > positions:
        what = "a pack (attention is joint)" if joint else "a sample"
        raise ShardError(
            f"shards {shards.path}: {what} may have {longest} tokens, but the model has {positions} positions: pack"
            f" with --max-length {positions}"
        )


def check_ids(batch: Mapping[str, Any], model: PreTrainedModel, shards: Shards) -> None:
    """Raise `ShardError` if a batch, still on the CPU, has ids that the model does not have."""
    size = model.config.get_text_config().vocab_size
    highest = int(batch["input_ids"].max())
    if highest >= size:
        raise ShardError(
            f"shards {shards.path}: token id {highest}, but the model has {size} ids: packed with another tokenizer?"
        )


@dataclass(frozen=True)
class Costs:
    """What there is to compute in some packs, padding left out."""

    tokens: int
    targets: int
    sum_length_squared: float

    def __add__(self, other: Costs) -> Costs:
        return Costs(
            self.tokens + other.tokens,
            self.targets + other.targets,
            self.sum_length_squared + other.sum_length_squared,
        )


def costs(packs: pa.Table, *, joint: bool) -> Costs:
    """Of rows of packed shards."""
    boundaries = packs.column("boundaries").combine_chunks()
    offsets, values = boundaries.offsets.to_numpy(), boundaries.values.to_numpy().astype(np.float64)
    ends = values[offsets[1:] - 1]
    lengths = ends if joint else np.diff(values[offsets[0] : offsets[-1]])
    lengths = lengths[lengths > 0]  # not from one pack's end to the next one's beginning
    targets = packs.column("target_counts").combine_chunks().flatten().to_numpy().sum()
    return Costs(int(ends.sum()), int(targets), float((lengths**2).sum()))


def pack_order(num_packs: int, epoch: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A permutation of the packs, for each epoch another.  # shape: (num_packs,)"""
    return np.random.default_rng([seed, epoch]).permutation(num_packs)


def packs_of_step(num_packs: int, step: int, packs_per_step: int, seed: int) -> list[int]:
    """Which packs are trained in a step, counted from 0: epochs run on through steps, so a step may span two."""
    first = step * packs_per_step
    wanted = np.arange(first, first + packs_per_step)
    orders = {epoch: pack_order(num_packs, epoch, seed) for epoch in np.unique(wanted // num_packs).tolist()}
    return [int(orders[at // num_packs][at % num_packs]) for at in wanted.tolist()]
