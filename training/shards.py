"""The packs that training reads: what `python -m pipeline pack` wrote."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from pipeline.base.errors import BusyError, ConfigError, DataError
from pipeline.base.lock import SharedLock
from pipeline.base.objects.copies import kept_copy
from pipeline.base.objects.store import is_url
from pipeline.base.words import first_line, leads_out
from training.packs import Integers, extents, segment_lengths, tokens_per_pack

if TYPE_CHECKING:
    from pipeline.format.manifest import PackManifest

COLUMNS = ("input_ids", "labels", "position_ids", "boundaries", "target_counts")

SEE_VERIFY = "see `python -m pipeline verify {}`"

_MANIFEST = "manifest.json"

_LOOKS, _LOOKS_AGAIN_AFTER = 20, 0.05
"""How often, and after how many seconds, a version is looked at that somebody has locked."""

log = logging.getLogger(__name__)


class Packs(Dataset[Any]):
    """Packs in Arrow files that are mapped: what is not asked for is not read.

    `packs[number]` is a row, a mapping of `COLUMNS` to arrays of int64. A `DataLoader` gets every batch as one table,
    more than three times as fast as row by row.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
        self._schema = schema
        self._batches = [each for each in batches if each.num_rows]
        self._starts = np.cumsum([0, *(each.num_rows for each in self._batches)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, number: int) -> dict[str, np.ndarray[Any, Any]]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        row = self.table([number])
        return {name: row.column(name).chunk(0).flatten().to_numpy().astype(np.int64) for name in row.column_names}

    def __getitems__(self, numbers: list[int]) -> list[pa.Table]:
        return [self.table(numbers)]

    def table(self, numbers: Sequence[int]) -> pa.Table:
        """Some packs, in this order; nothing is copied."""
        at = np.asarray(numbers, np.int64)
        batch = np.searchsorted(self._starts, at, side="right") - 1
        ends = np.flatnonzero((np.diff(at) != 1) | (np.diff(batch) != 0)) + 1
        runs = [
            self._batches[batch[first]].slice(at[first] - self._starts[batch[first]], last - first)
            for first, last in zip([0, *ends], [*ends, len(at)], strict=True)
            if last > first
        ]
        return pa.Table.from_batches(runs, self._schema)

    def select(self, numbers: Sequence[int]) -> Packs:
        """Some packs, in this order, as packs of their own."""
        return Packs(self.table(numbers).to_batches(), self._schema)

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """Some columns of all packs, part by part."""
        for each in self._batches:
            yield pa.Table.from_batches([each.select(list(columns))])

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all packs."""
        return pa.chunked_array([each.column(name) for each in self._batches], self._schema.field(name).type)


@dataclass(frozen=True)
class Shards:
    """Packs on disk."""

    path: str
    packs: Packs
    files: list[Path]
    """What they are read from."""

    capacity: int
    """Tokens that a pack may have."""

    longest: int
    """Tokens of the longest segment."""

    most_segments: int
    """Segments of the pack that has most."""

    manifest: PackManifest | None
    """What the run that wrote them says of them; None where it is not there."""

    lock: SharedLock | None = field(default=None, repr=False)
    """Held as long as this is, so that no run of `pack --keep` removes the version that is read."""

    def extents(self, *, joint: bool) -> tuple[Integers, Integers, Integers]:
        """As `packs.extents`, of all packs.  # shapes: (num_packs,)"""
        return extents(pa.table({"boundaries": self.packs.column("boundaries")}), joint=joint)


def open_shards(path: str, split: str | None = None, *, option: str = "--split") -> Shards:
    """Open a directory that `python -m pipeline pack` wrote, or a copy of one on an object store, kept in the cache.

    A link, such as the one to the latest version, is followed once: what it leads to then is what is read.

    split: needed where it holds several. option: by which a user chooses it.

    Raises `ConfigError` for a split that does not exist, `DataError` for what are no packs, `BusyError` for a version
    that is being removed, and as `kept_copy`.
    """
    if is_url(path):
        path = str(kept_copy(path, "--shards"))
    folder = Path(path)
    if not folder.is_dir():
        wrong = "a file, not the directory of the shards" if folder.exists() else "no such directory"
        raise DataError(f"shards {path}: {wrong}")
    folder, lock = _held(folder)
    path = str(folder)
    manifest = _manifest(folder)
    if not any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        wrong = f"state.json is missing; {SEE_VERIFY.format(path)}" if manifest else "no dataset"
        raise DataError(f"shards {path}: {wrong}; training reads what `python -m pipeline pack` writes")
    try:
        files = _files(folder, split, option)
        batches, schema = _mapped(files)
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"shards {path} cannot be read ({said}); {SEE_VERIFY.format(path)}") from error
    for column in COLUMNS:
        if column not in schema.names:
            raise DataError(
                f"shards {path}: no column {column!r}; training reads what `python -m pipeline pack` writes"
            )
        if not _holds_integers(schema.field(column).type):
            raise damaged_packs(path, f"{column} of a pack are no integers")
    packs = Packs(batches, schema)
    longest_pack, longest, most = _extents(packs, path)
    capacity = longest_pack if manifest is None else manifest.capacity
    return Shards(path, packs, files, capacity, longest, most, manifest, lock)


def _held(path: Path) -> tuple[Path, SharedLock | None]:
    """A folder by the name that is its own, and the lock of its manifest, None where it has none.

    Raises `BusyError` where somebody has that lock alone.
    """
    for _ in range(_LOOKS):
        folder = Path(os.path.realpath(path)) if path.is_symlink() else path
        try:
            lock = SharedLock(folder / _MANIFEST)
        except FileNotFoundError:
            if folder.is_dir():
                return folder, None
        except BlockingIOError:
            pass
        except OSError as error:
            log.warning("%s cannot be held (%s): a run with --keep may remove it", folder, error.strerror)
            return folder, None
        else:
            if folder != path:
                log.info("%s is %s", path, folder)
            return folder, lock
        time.sleep(_LOOKS_AGAIN_AFTER)  # the link moves on before a version that it led to goes
    raise BusyError(
        f"shards {path}: being removed, or somebody has the lock of its manifest; run the same command again"
    )


def _files(folder: Path, split: str | None, option: str) -> list[Path]:
    """The files of a dataset, or of its split, in their order. Raises `ConfigError`, `LookupError`, `ValueError`."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        if split is None and len(splits) > 1:
            raise ConfigError(f"shards {folder}: choose one of the splits with {option}: {', '.join(splits)}")
        name = split or splits[0]
        if name not in splits:
            raise ConfigError(f"shards {folder}: no split {name!r}, but {', '.join(splits)}")
        if leads_out(str(name)):
            raise ValueError("its dataset_dict.json names a split outside of it")
        folder = folder / name
    elif split is not None:
        raise ConfigError(f"shards {folder}: there are no splits, so no {split!r}")
    state = json.loads((folder / "state.json").read_bytes())
    if state.get("_indices_data_files"):
        raise ValueError("its rows are chosen by indices: save it again with flatten_indices()")
    names = [str(each["filename"]) for each in state["_data_files"]]
    if any("/" in name or leads_out(name) for name in names):
        raise ValueError("its state.json names files outside of it")
    return [folder / name for name in names]


def _mapped(files: Sequence[Path]) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """What stands in files, all of `COLUMNS` that there are. Raises `OSError`, `ValueError`."""
    batches: list[pa.RecordBatch] = []
    schema: pa.Schema | None = None
    for file in files:
        with pa.ipc.open_stream(pa.memory_map(str(file))) as stream:
            kept = [name for name in COLUMNS if name in stream.schema.names]
            found = pa.schema([stream.schema.field(name) for name in kept])
            if schema is not None and schema != found:
                raise ValueError(f"{file.name} has other columns than {files[0].name}")
            schema = found
            batches += [batch.select(kept) for batch in stream]
    if schema is None:
        raise ValueError("it lists no data files")
    return [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in batches], schema


def _holds_integers(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_integer(kind.value_type))


def _manifest(folder: Path) -> PackManifest | None:
    if not (folder / _MANIFEST).is_file():
        return None
    from pipeline.format.manifest import (  # noqa: PLC0415 - packs without one are trained where msgspec is missing
        ManifestError,
        OldFormatError,
        PackManifest,
        read_manifest,
    )

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


def _extents(packs: Packs, path: str) -> tuple[int, int, int]:
    """(tokens of the longest pack, tokens of the longest segment, segments of the pack that has most).

    Raises `DataError` for boundaries that cannot be, and where there is no target.
    """
    longest_pack = longest = most = num_targets = 0
    damaged = damaged_packs(path, "boundaries of a pack are no rising numbers")
    for table in packs.tables("boundaries", "target_counts"):
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
        raise DataError(f"shards {path}: there is not a single target")
    return longest_pack, longest, most


def damaged_packs(path: str, what: str) -> DataError:
    """The error of packs whose columns cannot be."""
    return DataError(f"shards {path}: {what}; pack the samples again with `python -m pipeline pack`")
