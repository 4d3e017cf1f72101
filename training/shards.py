"""The packs that training reads: what `python -m pipeline pack` wrote, checked before anything is trained."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from training.collator import IGNORE
from training.digests import file_hash, hash_of
from training.errors import ConfigError, ShardError, first_line

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]

COLUMNS = ("input_ids", "labels", "position_ids", "boundaries", "target_counts")

log = logging.getLogger("training")

_CHECKED_AT_ONCE = 256
"""Packs."""

_SEE_VERIFY = "see `python -m pipeline verify {}`"


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

    manifest: dict[str, Any]
    """What the run that wrote them says of them; empty if it is not there."""


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

    Raises `ConfigError` for a split that does not exist, `ShardError` for what are no packs.
    """
    folder = Path(path)
    if not folder.is_dir():
        wrong = "a file, not the directory of the shards" if folder.exists() else "no such directory"
        raise ShardError(f"shards {path}: {wrong}")
    manifest = _manifest(folder)
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        wrong = f"state.json is missing; {_SEE_VERIFY.format(path)}" if manifest else "no dataset"
        raise ShardError(f"shards {path}: {wrong}; training reads what `python -m pipeline pack` writes")
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # whatever datasets makes of it
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ShardError(f"shards {path} cannot be read ({said}); {_SEE_VERIFY.format(path)}") from error
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
    packs = found.select_columns(list(COLUMNS))
    longest_pack, longest, most = _extents(packs, path)
    capacity = int(manifest.get("capacity") or longest_pack)
    return Shards(path, packs.with_format("numpy"), capacity, longest, most, manifest)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ShardError(f"{path} is damaged; {_SEE_VERIFY.format(folder)}")
    return manifest


def _extents(packs: datasets.Dataset, path: str) -> tuple[int, int, int]:
    """(tokens of the longest pack, tokens of the longest segment, segments of the pack that has most).

    Raises `ShardError` for boundaries that cannot be, and where there is nothing to train.
    """
    longest_pack = longest = most = num_targets = 0
    damaged = _damaged(path, "boundaries of a pack are no rising numbers")
    for table in packs.select_columns(["boundaries", "target_counts"]).with_format("arrow").iter(4096):
        try:
            table.validate(full=True)
        except pa.ArrowInvalid as error:
            raise damaged from error
        if pc.min(pc.list_value_length(table["boundaries"])).as_py() < 2:
            raise damaged
        lengths, counts = _segments(table)
        if lengths.min() < 1:
            raise damaged
        longest_pack = max(longest_pack, int(_per_pack(lengths, counts).max()))
        longest, most = max(longest, int(lengths.max())), max(most, int(counts.max()))
        num_targets += pc.sum(pc.list_flatten(table["target_counts"])).as_py() or 0
    if num_targets == 0:
        raise ShardError(f"shards {path}: there is not a single target, so nothing to train")
    return longest_pack, longest, most


def _segments(packs: pa.Table) -> tuple[Integers, Integers]:
    """(lengths, counts): tokens of each segment, segments of each pack.  # shapes: (num_segments,), (num_packs,)"""
    boundaries = packs.column("boundaries").combine_chunks()
    num_bounds = np.diff(boundaries.offsets.to_numpy()).astype(np.int64)
    last = np.cumsum(num_bounds) - 1
    return np.delete(np.diff(boundaries.flatten().to_numpy()), last[:-1]), num_bounds - 1


def _per_pack(lengths: Integers, counts: Integers) -> Integers:
    """Tokens of each pack.  # shape: (num_packs,)"""
    return np.add.reduceat(lengths, np.cumsum(counts) - counts, dtype=np.int64)


def _damaged(path: str, what: str) -> ShardError:
    return ShardError(f"shards {path}: {what}; pack the samples again with `python -m pipeline pack`")


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


def check_content(shards: Shards, model: PreTrainedModel, rank: int = 0, num_ranks: int = 1) -> None:
    """Raise `ShardError` if a file is not what the run wrote, by its manifest's checksum, or as `check_packs`.

    Ranks share the work, and everything is read. The dataset card is anyone's to edit.
    """
    names = [name for name in shards.manifest.get("files", {}) if not name.endswith(".md")][rank::num_ranks]
    if not shards.manifest:
        log.warning("shards %s: no manifest.json, so nothing tells whether they are as they were packed", shards.path)
    packs = shards.packs.with_format("arrow")
    firsts = range(rank * _CHECKED_AT_ONCE, len(packs), num_ranks * _CHECKED_AT_ONCE)
    total = len(names) + len(firsts)
    with tqdm(total=total, desc="checking", disable=True if rank else None, leave=False) as bar:
        for name in names:
            path = Path(shards.path) / name
            if not path.is_file():
                raise ShardError(f"{path} is missing; {_SEE_VERIFY.format(shards.path)}")
            if file_hash(path) != shards.manifest["files"][name].get("xxh3_128"):
                raise ShardError(f"{path} was changed after it was packed; {_SEE_VERIFY.format(shards.path)}")
            bar.update()
        for first in firsts:
            check_packs(packs[first : first + _CHECKED_AT_ONCE], model, shards)
            bar.update()


def check_packs(packs: pa.Table, model: PreTrainedModel, shards: Shards) -> None:
    """Raise `ShardError` for packs whose columns do not fit each other, or whose ids the model does not have."""
    columns = {name: packs.column(name).combine_chunks() for name in COLUMNS}
    values = {name: column.flatten().to_numpy() for name, column in columns.items()}
    lengths, counts = _segments(packs)
    starts, tokens = np.cumsum(lengths) - lengths, _per_pack(lengths, counts)
    for name, expected in (
        ("input_ids", tokens),
        ("labels", tokens),
        ("position_ids", tokens),
        ("target_counts", counts),
    ):
        if not np.array_equal(np.diff(columns[name].offsets.to_numpy()), expected):
            raise _damaged(shards.path, f"{name} and boundaries of a pack do not fit each other")
    targets = values["labels"] != IGNORE
    if not np.array_equal(values["position_ids"], np.arange(len(targets)) - np.repeat(starts, lengths)):
        raise _damaged(shards.path, "position_ids and boundaries of a pack do not fit each other")
    if not np.array_equal(values["target_counts"], np.add.reduceat(targets, starts)) or targets[starts].any():
        raise _damaged(shards.path, "target_counts and labels of a pack do not fit each other")
    size = model.config.get_text_config().vocab_size
    for name, ids in (("token", values["input_ids"]), ("label", values["labels"][targets])):
        wrong = ids[(ids < 0) | (ids >= size)]
        if len(wrong):
            raise ShardError(
                f"shards {shards.path}: {name} {wrong[0]}, but the model has {size} ids: packed with another tokenizer?"
            )


def shards_identity(shards: Shards) -> str:
    """What tells shards from others: the run that wrote them, or the content of their files if no manifest tells."""
    found: str | None = shards.manifest.get("run_id")
    return found or hash_of(file_hash(Path(each["filename"])) for each in shards.packs.cache_files)


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
    lengths, counts = _segments(packs)
    attending = _per_pack(lengths, counts) if joint else lengths
    targets = packs.column("target_counts").combine_chunks().flatten().to_numpy().sum()
    return Costs(int(lengths.sum()), int(targets), float((attending.astype(np.float64) ** 2).sum()))


def pack_order(num_packs: int, epoch: int, seed: int) -> Integers:
    """A permutation of the packs, for each epoch another.  # shape: (num_packs,)"""
    return np.random.default_rng([seed, epoch]).permutation(num_packs)


def packs_to_compare(shards: Shards, num_packs: int, seed: int) -> list[int]:
    """Some packs with several samples, as one sample is as if alone whatever the model does.

    Raises `ShardError` if there are none.
    """
    boundaries = shards.packs.with_format("arrow").select_columns(["boundaries"])[:]["boundaries"]
    shared = np.flatnonzero(pc.list_value_length(boundaries).to_numpy() > 2)
    if len(shared) == 0:
        raise ShardError(f"shards {shards.path}: every pack holds one sample alone, so there is nothing to compare")
    return [int(each) for each in shared[pack_order(len(shared), 0, seed)[:num_packs]]]


def packs_of_step(num_packs: int, step: int, packs_per_step: int, seed: int) -> list[int]:
    """Which packs are trained in a step, counted from 0: epochs run on through steps, so a step may span two."""
    first = step * packs_per_step
    wanted = np.arange(first, first + packs_per_step)
    orders = {epoch: pack_order(num_packs, epoch, seed) for epoch in np.unique(wanted // num_packs).tolist()}
    return [int(orders[at // num_packs][at % num_packs]) for at in wanted.tolist()]
