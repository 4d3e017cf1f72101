"""Checking one shard against the format, and its tokens against their source.

Written apart from what gathers and writes packs, so that one mistake cannot stand on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.arrays import as_numpy, list_offsets
from pipeline.base.storage import map_file
from pipeline.format.columns import PACK_COLUMNS, PACK_SCHEMA, SOURCE_COLUMNS, SOURCED_PACK_SCHEMA
from pipeline.format.labels import IGNORE
from pipeline.reading.rows import LABELS, NO_TARGET_COLUMN, Addresses, Rows, read_values
from pipeline.reading.windows import Window
from pipeline.verifying.account import is_target
from strategies.arrays import BoolArray, Int32Array, Int64Array
from strategies.compiled import kernel

_PER_TOKEN = ("input_ids", "labels", "position_ids")
_PER_SEGMENT = ("seq_lengths", "sample_ids", "sample_offsets", "target_counts", *SOURCE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What a shard holds. The arrays have shape (num_segments,)."""

    problem: str | None
    """The first thing that is wrong with it, in words; what comes after that is not looked at."""

    packs: int
    tokens: int
    targets: int
    sample: Int64Array
    """The segment's sample."""

    start: Int64Array
    """Where in its sample the segment begins."""

    length: Int64Array
    """Tokens of the segment."""

    pack: Int64Array
    """Number of the segment's pack in the shard."""

    masked_cut: BoolArray
    """Whether the segment continues a sample, and its source says that its first token is a target."""


@dataclass(frozen=True, kw_only=True)
class WindowSource:
    """The rows that a window was packed from."""

    rows: Rows
    first_row: int
    """The number of the first of them in its split."""

    sources: Mapping[str, Int64Array]
    """By column of packs: of which raw row each was made, and the turn that ends it; empty where they do not tell.
    # shape: (num_rows,)"""


def check_shard(
    path: Path, capacity: int, source: WindowSource | None, max_segments: int | None = None
) -> ShardContent:
    """Check every pack of a shard, and compare its tokens with their source, if there is one.

    max_segments: the segments that a pack may hold; None for any number.
    Raises `pa.ArrowException` or `OSError` if the file cannot be read.
    """
    parts: list[tuple[npt.NDArray[Any], ...]] = []
    packs, tokens, targets, problem = 0, 0, 0, None
    with map_file(path) as file, pa.ipc.open_stream(file) as reader:
        if not _is_schema(reader.schema, source):
            problem = f"the columns are {', '.join(reader.schema.names)}, or have other types than the format's"
        while problem is None:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                break
            problem = _check_batch(batch, capacity, max_segments, packs)
            if problem is not None:
                break
            sample, start, length, counts = (
                _values(batch, name).astype(np.int64)
                for name in ("sample_ids", "sample_offsets", "seq_lengths", "target_counts")
            )
            pack = packs + np.repeat(np.arange(batch.num_rows), np.diff(list_offsets(batch.column("seq_lengths"))))
            masked = np.zeros(len(sample), np.bool_)
            if source is not None:
                problem = _compare(batch, source, sample, start, length, pack, masked)
            parts.append((sample, start, length, pack, masked))
            packs += batch.num_rows
            tokens += int(length.sum())
            targets += int(counts.sum())
    nothing = np.zeros(0, np.int64)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [nothing] * 5
    return ShardContent(
        problem=problem,
        packs=packs,
        tokens=tokens,
        targets=targets,
        **dict(zip(("sample", "start", "length", "pack", "masked_cut"), columns, strict=True)),
    )


def _is_schema(schema: pa.Schema, source: WindowSource | None) -> bool:
    """Whether a shard has the columns of the format; those that tell of raw rows just where the source does."""
    if source is not None:
        return bool(schema.equals(SOURCED_PACK_SCHEMA if source.sources else PACK_SCHEMA))
    return bool(schema.equals(PACK_SCHEMA) or schema.equals(SOURCED_PACK_SCHEMA))


def _values(batch: pa.RecordBatch, name: str) -> npt.NDArray[Any]:
    """All values of a list column, end to end."""
    array = batch.column(name)
    offsets = list_offsets(array)
    return as_numpy(array.values)[offsets[0] : offsets[-1]]


def _check_batch(batch: pa.RecordBatch, capacity: int, max_segments: int | None, first_pack: int) -> str | None:
    for name in batch.schema.names:
        array = batch.column(name)
        if array.null_count or array.flatten().null_count:
            return f"column {name!r} has nulls"
    offsets = {name: list_offsets(batch.column(name)) for name in batch.schema.names}
    offsets = {name: values - values[0] for name, values in offsets.items()}
    same = [(name, _PER_TOKEN[0], 0) for name in _PER_TOKEN[1:]] + [
        (name, _PER_SEGMENT[0], 0) for name in _PER_SEGMENT[1:] if name in offsets
    ]
    for name, other, more in [*same, ("boundaries", _PER_SEGMENT[0], 1)]:
        wrong = np.flatnonzero(np.diff(offsets[name]) != np.diff(offsets[other]) + more)
        if len(wrong):
            return f"pack {first_pack + wrong[0]}: {name} and {other} do not have matching lengths"
    over = np.flatnonzero(np.diff(offsets["seq_lengths"]) > (max_segments or np.inf))
    if len(over):
        return f"pack {first_pack + over[0]}: it holds more than {max_segments} segments"
    code, pack, segment = _find_fault(
        offsets["input_ids"],
        offsets["seq_lengths"],
        capacity,
        *(_values(batch, name) for name in PACK_COLUMNS if name != "sample_ids"),
    )
    return f"pack {first_pack + pack}, segment {segment}: {_FAULTS[code]}" if code else None


_FAULTS = {
    1: "the pack is empty",
    2: "the pack is over capacity",
    3: "boundaries do not begin at 0",
    4: "boundaries do not rise",
    5: "seq_lengths are not the differences of boundaries",
    6: "boundaries do not end at the pack's length",
    7: "position_ids do not count up from 0",
    8: "the first label is not -100",
    9: "a token id is negative",
    10: "a label is neither -100 nor a token id",
    11: "target_counts is not the number of targets",
    12: "the segment's start is negative",
}


@kernel
def _find_fault(
    token_offsets: Int64Array,
    segment_offsets: Int64Array,
    capacity: int,
    input_ids: Int32Array,
    labels: Int32Array,
    position_ids: Int32Array,
    boundaries: Int32Array,
    seq_lengths: Int32Array,
    sample_offsets: Int32Array,
    target_counts: Int32Array,
) -> tuple[int, int, int]:
    """(code of the fault, pack, segment); code 0 for none."""
    for pack in range(token_offsets.shape[0] - 1):
        base = token_offsets[pack]
        size = token_offsets[pack + 1] - base
        first = segment_offsets[pack]
        num_segments = segment_offsets[pack + 1] - first
        edges = boundaries[first + pack : first + pack + num_segments + 1]
        if num_segments < 1:
            return 1, pack, 0
        if size > capacity:
            return 2, pack, 0
        if edges[0] != 0:
            return 3, pack, 0
        for s in range(num_segments):
            if edges[s + 1] <= edges[s]:
                return 4, pack, s
            if seq_lengths[first + s] != edges[s + 1] - edges[s]:
                return 5, pack, s
            if sample_offsets[first + s] < 0:
                return 12, pack, s
        if edges[num_segments] != size:
            return 6, pack, num_segments - 1
        for s in range(num_segments):
            begin, end = base + edges[s], base + edges[s + 1]
            positions, ids, targets = position_ids[begin:end], input_ids[begin:end], labels[begin:end]
            wrong = np.int64(0)
            negative = np.int32(0)
            bad_label = np.int32(0)
            num_targets = 0
            for i in range(end - begin):
                wrong |= positions[i] ^ i
                negative |= ids[i]
                bad_label |= 0 if targets[i] == IGNORE else targets[i]
                num_targets += targets[i] != IGNORE
            if wrong != 0:
                return 7, pack, s
            if targets[0] != IGNORE:
                return 8, pack, s
            if negative < 0:
                return 9, pack, s
            if bad_label < 0:
                return 10, pack, s
            if num_targets != target_counts[first + s]:
                return 11, pack, s
    return 0, 0, 0


def _compare(
    batch: pa.RecordBatch,
    source: WindowSource,
    sample: Int64Array,
    start: Int64Array,
    length: Int64Array,
    pack: Int64Array,
    masked: BoolArray,
) -> str | None:
    """Compare a batch with its source, and fill `masked`."""
    rows, first_row = source.rows, source.first_row
    outside = np.flatnonzero((sample < first_row) | (sample >= first_row + len(rows)))
    if len(outside):
        at = outside[0]
        return f"pack {pack[at]}: sample {sample[at]} is not in the shard's window"
    for name, told in source.sources.items():
        wrong = np.flatnonzero(_values(batch, name) != told[sample - first_row])
        if len(wrong):
            at = wrong[0]
            return f"pack {pack[at]}: {name} of sample {sample[at]} is not that of the source"
    code, segment, position = _find_difference(
        rows.addresses, sample - first_row, start, length, _values(batch, "input_ids"), _values(batch, "labels"), masked
    )
    if not code:
        return None
    what = {1: "token", 2: "label", 3: "reach"}[code]
    where = f"pack {pack[segment]}: sample {sample[segment]}, token {start[segment] + position}"
    return f"{where}: the source ends before" if code == 3 else f"{where}: the {what} is not that of the source"


_BLOCK = 1024


@kernel
def _find_difference(
    rows: Addresses,
    row: Int64Array,
    start: Int64Array,
    length: Int64Array,
    input_ids: Int32Array,
    labels: Int32Array,
    masked: BoolArray,
) -> tuple[int, int, int]:
    """(1 token, 2 label, 3 too short; segment, position); code 0 for none."""
    token = np.empty(_BLOCK, np.int64)
    target = np.empty(_BLOCK, np.int64)
    mask = np.ones(_BLOCK, np.int64)
    at = 0
    for s in range(row.shape[0]):
        r = row[s]
        form = rows.target_form[r]
        has_mask = rows.mask[r] != 0
        # Without padding the segment's place in the row is known; with it, kept tokens are counted from the first.
        read = 0 if has_mask else int(start[s])
        position = -int(start[s]) if has_mask else 0
        while position < length[s]:
            count = min(_BLOCK, int(rows.length[r]) - read)
            if not has_mask:
                count = min(count, int(length[s]) - position)
            if count <= 0:
                return 3, s, max(position, 0)
            read_values(rows.token[r], rows.token_width[r], read, token[:count])
            if form != NO_TARGET_COLUMN:
                read_values(rows.target[r], rows.target_width[r], read, target[:count])
            if has_mask:
                read_values(rows.mask[r], rows.mask_width[r], read, mask[:count])
            for i in range(count):
                if mask[i] == 0:
                    continue
                if 0 <= position < length[s]:
                    expected = token[i] if is_target(form, target[i]) else IGNORE
                    if form == LABELS:
                        expected = target[i]
                    if input_ids[at + position] != token[i]:
                        return 1, s, position
                    if position == 0:
                        masked[s] = start[s] > 0 and expected != IGNORE
                    elif labels[at + position] != expected:
                        return 2, s, position
                position += 1
            read += count
        at += int(length[s])
    return 0, 0, 0


def misplaced_sample(shards: list[tuple[str, ShardContent]], window: Window) -> tuple[str | None, Int64Array]:
    """Does each sample of a window stand in its shards once, in pieces that follow each other from its beginning?

    shards: name and content of each. Returns (problem, packed tokens of each row); the latter has shape (num_rows,).
    """
    first_row, num_rows = window.first_row, window.num_rows
    packed = np.zeros(num_rows, np.int64)
    if not shards:
        return None, packed
    sample, start, length = (
        np.concatenate([getattr(check, name) for _, check in shards]) for name in ("sample", "start", "length")
    )

    def described(at: int, what: str) -> str:
        for name, check in shards:
            if at < len(check.sample):
                return f"{name}, pack {check.pack[at]}: sample {check.sample[at]} {what}"
            at -= len(check.sample)
        raise IndexError(at)

    outside = np.flatnonzero((sample < first_row) | (sample >= first_row + num_rows))
    if len(outside):
        return described(int(outside[0]), "is not in the shard's window"), packed
    packed = np.bincount(sample - first_row, weights=length, minlength=num_rows).astype(np.int64)
    order = np.lexsort((start, sample))
    sample, start, length = sample[order], start[order], length[order]
    goes_on = np.concatenate([[False], sample[1:] == sample[:-1]])
    expected = np.where(goes_on, np.concatenate([[0], (start + length)[:-1]]), 0)
    wrong = np.flatnonzero(start != expected)
    if len(wrong):
        at = int(wrong[0])
        what = (
            "stands in it twice" if start[at] < expected[at] else f"misses its tokens {expected[at]} to {start[at] - 1}"
        )
        return described(int(order[at]), what), packed
    return None, packed
