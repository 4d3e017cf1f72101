"""Tokenised rows on disk: the shards of one split, written in the order of the rows, resumable shard by shard."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import as_arrow
from pipeline.base.errors import DataError, TightpackError
from pipeline.format.columns import SOURCE_ROW, SOURCE_TURN, tokenized_schema
from pipeline.format.labels import IGNORE
from pipeline.format.options import TokenizeOptions
from pipeline.reading.cache import FileCache
from pipeline.reading.decoding.raw import RawFile, open_raw
from pipeline.reading.inputs import Input
from pipeline.reading.workspace import Workspace
from pipeline.tokenizing.chats.template import EXCEEDS
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.gathering import blocks_of
from pipeline.tokenizing.shard import ShardBuilder, TokenizedShard, finished_shard
from pipeline.tokenizing.tally import RowTally
from pipeline.tokenizing.tokenization import Tokenization
from pipeline.tokenizing.workers import EncodeTask, encode_all

_LOOKED_AT = 1000
"""Rows of a split in which faults are counted that are like the first."""

SHARD_BYTES = 1 << 28
"""About how large a shard is: what an interrupted run loses at most."""


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """The raw rows of a split: its files, in order, that have any."""

    name: str
    files: list[RawFile]
    formats: list[Format]
    """How the rows of each file are read.  # length: num_files"""

    places: list[int]
    """The number of each among all files of the split, those without rows included.  # length: num_files"""

    num_files: int
    """All files of the split."""

    def rows_of_files(self, tally: RowTally) -> list[int]:
        """Rows of each file of the split. tally: of the whole split."""
        rows = [0] * self.num_files
        for number, num_rows in tally.file_rows.items():
            rows[self.places[number]] = num_rows
        return rows


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """Which shards tokenised rows become.

    For a dataset of its own a row left out is not there, and `source_row` tells which are. For packing it is a sample
    without tokens, so that none is lost from the account, and no shard holds rows of two files.
    """

    folder: Path
    """The folder of the shards, inside staging."""

    prefix: str
    """What their names begin with."""

    schema: pa.Schema
    """The columns of the shards."""

    for_packing: bool

    first_row: int = 0
    """Rows of the split that came before these, in what is appended to."""

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"{self.prefix}{number:04d}.arrow"


def dataset_schema(raw: Sequence[RawSplit], options: TokenizeOptions) -> pa.Schema:
    """The columns of a tokenised dataset."""
    is_several = gives_several(raw, options)
    return tokenized_schema(
        text=options.keep_text, source_row=is_several or options.on_error == "drop", source_turn=is_several
    )


def packing_schema(raw: Sequence[RawSplit], options: TokenizeOptions) -> pa.Schema:
    """The columns of rows that are tokenised to be packed."""
    is_several = gives_several(raw, options)
    return tokenized_schema(text=options.keep_text, source_row=is_several, source_turn=is_several)


def gives_several(raw: Sequence[RawSplit], options: TokenizeOptions) -> bool:
    """Whether a row may give several samples, or be a part of some."""
    return options.history == "expand" or any(format_.name == "tree" for split in raw for format_ in split.formats)


def open_raw_inputs(inputs: list[Input], tokenization: Tokenization, cache: FileCache) -> list[RawSplit]:
    """Look at every file of raw rows, and decide how it is read.

    Raises `DataError` for damaged content and for columns that do not say what a row is, `ConfigError` for options that
    do not fit them.
    """
    opened = {file: open_raw(file, cache.place(file)) for entry in inputs for file in entry.files()}
    files = [file for file in opened.values() if not file.is_empty]
    formats = dict(zip((file.file for file in files), tokenization.formats_of(files), strict=True))
    splits = []
    for name in inputs[0].splits:
        every = [file for entry in inputs for file in entry.splits[name]]
        used = [(place, file) for place, file in enumerate(every) if file in formats]
        splits.append(
            RawSplit(
                name=name,
                files=[opened[file] for _, file in used],
                formats=[formats[file] for _, file in used],
                places=[place for place, _ in used],
                num_files=len(every),
            )
        )
    return splits


def write_shards(
    split: RawSplit, layout: ShardLayout, tokenization: Tokenization, work: Workspace, advance: Callable[[int], None]
) -> list[TokenizedShard]:
    """Tokenise a split; those of an interrupted run included, and without any row one shard without rows.

    advance: called with the bytes of input done. Raises `DataError` for content that cannot be read, and for a row
    that cannot be used unless such rows are dropped; `OSError` for storage faults.
    """
    options = tokenization.options
    shards = _finished_shards(layout, work)
    at = shards[-1].end if shards else (0, 0)
    tasks = _tasks(split, sum(shard.num_blocks for shard in shards), advance)
    size = sum(file.file.size() for file in split.files)
    encoded = encode_all(tokenization, work.engine, tasks, size)
    shard: ShardBuilder | None = None
    try:
        for task, encoded_block in encoded:
            if task.file != at[0]:
                at = (task.file, 0)
            if shard is not None and (shard.num_bytes >= SHARD_BYTES or (layout.for_packing and not at[1])):
                shards.append(shard.finish())
                shard = None
            if shard is None:
                rows_before = layout.first_row + sum(one.tally.rows for one in shards)
                shard = ShardBuilder(layout.path(len(shards)), layout.schema, work.staging, at, rows_before)
            file_begin = shard.next_row - at[1]
            counted_from = (task.file, 0 if encoded_block.counts_in_file else at[1])
            exceeds = any(fault.reason == EXCEEDS for fault in encoded_block.faults)
            if options.on_error == "error" or exceeds:
                seen = shard.next_row - layout.first_row
                _refuse_faults(encoded_block, split, counted_from, file_begin - layout.first_row, seen, encoded)
            _drop_faults(shard, encoded_block, split, counted_from, file_begin)
            batch = _batch(encoded_block, layout.schema, file_begin + counted_from[1], all_rows=layout.for_packing)
            tally = tally_of(encoded_block, split.files[task.file].where, counted_from)
            at = (task.file, at[1] + encoded_block.num_rows)
            shard.write(batch, tally, at)
            advance(task.block.bytes_read)
        if shard is None and not shards:
            shard = ShardBuilder(layout.path(0), layout.schema, work.staging, at, layout.first_row)
        if shard is not None:
            shards.append(shard.finish())
        return shards
    finally:
        if shard is not None:
            shard.discard()


def _finished_shards(layout: ShardLayout, work: Workspace) -> list[TokenizedShard]:
    """The shards that an earlier run left, from the first on without a gap."""
    shards: list[TokenizedShard] = []
    while (shard := finished_shard(layout.path(len(shards)), work.staging)) is not None:
        shards.append(shard)
    return shards


def _tasks(split: RawSplit, num_done: int, advance: Callable[[int], None]) -> Iterator[EncodeTask]:
    """The blocks of all files in order, without the first `num_done`."""
    for number, (file, format_) in enumerate(zip(split.files, split.formats, strict=True)):
        for block in blocks_of(file, format_):
            if num_done:
                num_done -= 1
                advance(block.bytes_read)
            else:
                yield EncodeTask(number, format_, block)


def _refuse_faults(
    encoded_block: EncodedBlock,
    split: RawSplit,
    at: tuple[int, int],
    file_begin: int,
    rows_before: int,
    later: Iterator[tuple[EncodeTask, EncodedBlock]],
) -> None:
    """Raise `DataError` for the first row of a block that cannot be used, with how many of the first rows are like it.

    at and file_begin: see `_drop_faults`; rows_before: of the split, in earlier blocks; later: the blocks that follow,
    which are looked at as far as that takes.
    """
    fault = next((fault for fault in encoded_block.faults if fault.is_error), None)
    if fault is None:
        return
    where = f"{split.files[at[0]].where}, row {at[1] + fault.row}: {fault.detail}"
    if fault.reason == EXCEEDS:
        raise DataError(where)
    until = max(_LOOKED_AT, file_begin + at[1] + fault.row + 1)
    alike, file, seen = 0, at[0], rows_before
    blocks = itertools.chain([(file, encoded_block)], ((task.file, block) for task, block in later))
    with contextlib.suppress(TightpackError):  # of what comes later: this fault is told first
        for number, block in blocks:
            if number != file:
                file, file_begin = number, seen
            begin = file_begin if block.counts_in_file else seen
            rows = [begin + other.row for other in block.faults if other.is_error and other.reason == fault.reason]
            alike += sum(row < until for row in rows)
            seen += block.num_rows
            if seen >= until:
                break
    others = f" (so it is in at least {alike:,} of the first {min(seen, until):,} rows)" if alike > 1 else ""
    raise DataError(f"{where}{others}. Leave out such rows, counted and listed, with --on-error drop")


def _drop_faults(
    shard: ShardBuilder, encoded_block: EncodedBlock, split: RawSplit, at: tuple[int, int], file_begin: int
) -> None:
    """List the rows of a block that give no sample.

    at: the file's number, and the row in it from which the block's are counted; file_begin: the number of the file's
    first row in its split.
    """
    file, first_row = split.files[at[0]], at[1]
    for fault in encoded_block.faults:
        shard.drop(
            ({"split": split.name} if split.name else {})
            | {"row": file_begin + first_row + fault.row, "file": file.file.name, "file_row": first_row + fault.row}
            | {"reason": fault.reason, "detail": fault.detail}
        )


def _batch(encoded_block: EncodedBlock, schema: pa.Schema, first_row: int, *, all_rows: bool) -> pa.RecordBatch:
    """A block as it is written.

    first_row: the number in its split of the row from which the block's are counted; all_rows: whether rows left out
    are samples without tokens.
    """
    rows, turns, lengths = (
        np.array(values, np.int64) for values in (encoded_block.rows, encoded_block.turns, encoded_block.lengths)
    )
    prompts = encoded_block.prompts
    if all_rows:
        bare = np.array([fault.row for fault in encoded_block.faults], np.int64)
        is_in_order = not encoded_block.counts_in_file
        places = np.searchsorted(rows, bare) if is_in_order else np.full(len(bare), len(rows))
        rows = np.insert(rows, places, bare)
        turns, lengths = (np.insert(values, places, 0) for values in (turns, lengths))
        prompts = np.insert(np.array(prompts, object), places, "").tolist() if prompts else [""] * len(rows)
    offsets = as_arrow(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    content: dict[str, pa.Array] = {
        name: pa.ListArray.from_arrays(offsets, as_arrow(values, pa.int32()))
        for name, values in (("input_ids", encoded_block.input_ids), ("labels", encoded_block.labels))
    }
    if "text" in schema.names:
        content["text"] = pa.array(prompts, pa.string())
    if SOURCE_ROW in schema.names:
        content[SOURCE_ROW] = as_arrow(first_row + rows, pa.int64())
    if SOURCE_TURN in schema.names:
        content[SOURCE_TURN] = as_arrow(turns, pa.int64())
    return pa.record_batch([content[name] for name in schema.names], schema=schema)


def tally_of(encoded_block: EncodedBlock, where: str, at: tuple[int, int]) -> RowTally:
    """Counts of a block. where: words naming its file; at: its file's number, and the row from which it counts."""
    number, first_row = at
    return RowTally(
        rows=encoded_block.num_rows,
        samples=len(encoded_block.rows),
        tokens=len(encoded_block.input_ids),
        targets=int(np.count_nonzero(encoded_block.labels != IGNORE)),
        kinds=encoded_block.kinds,
        turns=encoded_block.turn_counts,
        dropped=Counter(fault.reason for fault in encoded_block.faults),
        unread=encoded_block.unread,
        unread_keys=encoded_block.unread_keys,
        notes=Counter({note: len(rows) for note, rows in encoded_block.notes.items() if rows}),
        first_noted={note: f"{where}, row {first_row + rows[0]}" for note, rows in encoded_block.notes.items() if rows},
        file_rows=Counter({number: encoded_block.num_rows}),
    )
