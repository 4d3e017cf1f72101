"""The packs that training reads: what `python -m pipeline pack` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from pipeline.base.errors import ConfigError, DataError
from pipeline.base.words import first_line
from pipeline.format.manifest import MANIFEST, ManifestError, OldFormatError, PackManifest, read_manifest
from training.packs import segment_lengths, tokens_per_pack

COLUMNS = ("input_ids", "labels", "position_ids", "boundaries", "target_counts")

SEE_VERIFY = "see `python -m pipeline verify {}`"


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

    manifest: PackManifest | None
    """What the run that wrote them says of them; None where it is not there."""


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

    Raises `ConfigError` for a split that does not exist, `DataError` for what are no packs.
    """
    folder = Path(path)
    if not folder.is_dir():
        wrong = "a file, not the directory of the shards" if folder.exists() else "no such directory"
        raise DataError(f"shards {path}: {wrong}")
    manifest = _manifest(folder)
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        wrong = f"state.json is missing; {SEE_VERIFY.format(path)}" if manifest else "no dataset"
        raise DataError(f"shards {path}: {wrong}; training reads what `python -m pipeline pack` writes")
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # whatever datasets makes of it
        said = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"shards {path} cannot be read ({said}); {SEE_VERIFY.format(path)}") from error
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
        raise DataError(
            f"shards {path}: no column {missing[0]!r}; training reads what `python -m pipeline pack` writes"
        )
    packs = found.select_columns(list(COLUMNS))
    longest_pack, longest, most = _extents(packs, path)
    capacity = longest_pack if manifest is None else manifest.capacity
    return Shards(path, packs.with_format("numpy"), capacity, longest, most, manifest)


def _manifest(folder: Path) -> PackManifest | None:
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except OldFormatError as error:
        raise DataError(str(error)) from None
    except ManifestError as error:
        raise DataError(f"{error}; {SEE_VERIFY.format(folder)}") from None
    if not isinstance(manifest, PackManifest):
        raise DataError(
            f"shards {folder}: it is tokenised, not packed; training reads what `python -m pipeline pack` writes"
        )
    return manifest


def _extents(packs: datasets.Dataset, path: str) -> tuple[int, int, int]:
    """(tokens of the longest pack, tokens of the longest segment, segments of the pack that has most).

    Raises `DataError` for boundaries that cannot be, and where there is nothing to train.
    """
    longest_pack = longest = most = num_targets = 0
    damaged = damaged_packs(path, "boundaries of a pack are no rising numbers")
    for table in packs.select_columns(["boundaries", "target_counts"]).with_format("arrow").iter(4096):
        try:
            table.validate(full=True)
        except pa.ArrowInvalid as error:
            raise damaged from error
        if pc.min(pc.list_value_length(table["boundaries"])).as_py() < 2:
            raise damaged
        lengths, counts = segment_lengths(table)
        if lengths.min() < 1:
            raise damaged
        longest_pack = max(longest_pack, int(tokens_per_pack(lengths, counts).max()))
        longest, most = max(longest, int(lengths.max())), max(most, int(counts.max()))
        num_targets += pc.sum(pc.list_flatten(table["target_counts"])).as_py() or 0
    if num_targets == 0:
        raise DataError(f"shards {path}: there is not a single target, so nothing to train")
    return longest_pack, longest, most


def damaged_packs(path: str, what: str) -> DataError:
    """The error of packs whose columns cannot be."""
    return DataError(f"shards {path}: {what}; pack the samples again with `python -m pipeline pack`")
