"""Decoding a file, or a piece of one, into a file that can be mapped."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline.base.engine import Monitor
from pipeline.base.errors import DataError
from pipeline.base.storage import FileFacts, HashingFile
from pipeline.format.columns import SOURCE_ROW
from pipeline.reading.columns import Selection, find_columns
from pipeline.reading.decoding.batches import (
    JSON_BYTES,
    JsonColumns,
    TooWide,
    addressable,
    arrow_batches,
    json_batches,
    json_columns,
    parquet_batches,
    reading,
)
from pipeline.reading.decoding.json_lines import first_block, text_blocks
from pipeline.reading.decoding.packs import refuse_packs
from pipeline.reading.decoding.pieces import Piece, numbered, pieces_of
from pipeline.reading.decoding.unpacking import telling_column, unpacked
from pipeline.reading.files import InputFile
from pipeline.reading.remote.ranges import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DecodeTask:
    """A file, or a piece of one, that has to be decoded into a file that can be mapped."""

    file: InputFile
    path: Place
    """Where it is opened."""

    selection: Selection
    spool: Path
    """The file to be written."""

    piece: Piece | None = None
    """What is decoded, if not the whole file."""

    json: JsonColumns | None = None
    """What the whole file of JSON has, of which this is a piece."""

    is_narrow: bool = True
    """Whether integers are written in the narrow form that valid ones fit, or as the file has them."""


def decode_tasks(whole: DecodeTask) -> list[DecodeTask]:
    """A task cut into those of its pieces; files to be unpacked stay whole, since all of their rows decide together
    what tells of samples.

    Raises `DataError` for content that cannot be read or lacks the columns, as far as it was looked at.
    """
    if whole.selection.unpack:
        return [whole]
    pieces = pieces_of(whole.file, whole.path)
    if len(pieces) == 1:
        return [whole]
    json = None
    if whole.file.format == "json":
        with reading(whole.file.shown, whole.path):
            first = first_block(whole.file, whole.path, JSON_BYTES)
            if not first:
                return [whole]
            json = json_columns(first, whole.selection, whole.file.shown)
    stem = whole.spool.stem
    return [
        replace(whole, piece=piece, json=json, spool=whole.spool.with_stem(f"{stem}-{number:05d}"))
        for number, piece in enumerate(pieces)
    ]


def decode(task: DecodeTask, monitor: Monitor) -> tuple[FileFacts, int]:
    """Decode an input file into an Arrow stream with what is read of it; returns its rows as well.

    Its content is not made durable: what a crash of the machine leaves of it is known by its checksum. A value that
    does not fit, which is refused later unless it is padding, has everything written as it is in the file.

    monitor: called with rows. Raises `DataError` for content that cannot be read, `OSError` for storage faults.
    """
    try:
        return _decode(task, monitor)
    except TooWide:
        return decode(replace(task, is_narrow=False), monitor)
    except DataError:
        if task.piece is None or task.piece.first_row is not None:
            raise
        with reading(task.file.shown, task.path):  # again, to tell the row
            piece = numbered(task.piece, task.file, task.path)
        return decode(replace(task, piece=piece), monitor)


def _decode(task: DecodeTask, monitor: Monitor) -> tuple[FileFacts, int]:
    spool = HashingFile(task.spool, is_shared=True)
    num_rows = 0
    try:
        with reading(task.file.shown, task.path):
            batches = _samples(task)
            batch = next(batches, None)
            schema = pa.schema([("input_ids", pa.list_(pa.int32()))]) if batch is None else batch.schema
            with pa.ipc.new_stream(pa.PythonFile(spool, mode="w"), schema) as writer:
                while batch is not None:
                    writer.write_batch(batch)
                    num_rows += batch.num_rows
                    monitor(batch.num_rows)
                    batch = next(batches, None)
        return spool.finish(is_durable=False), num_rows
    finally:
        spool.discard()


def _samples(task: DecodeTask) -> Iterator[pa.RecordBatch]:
    """What is read of a file, as it can be addressed. Raises `DataError` for packs that are not to be unpacked."""
    where, selection = task.file.shown, task.selection
    columns, column = None, None
    first_row = _first_row(task)
    for batch in _batches(task):
        if columns is None:
            columns = find_columns(batch.schema, selection.names, where)
            column = telling_column(_batches(task), columns) if selection.unpack and columns.packs else None
            if column is not None:
                log.info("%s: packed rows, whose samples column %r tells", where, column.name)
        if column is not None:
            of_rows = replace(selection, extra=SOURCE_ROW)
            for samples in unpacked(batch, columns, column, where, first_row):
                yield from addressable(samples, columns, of_rows, where, is_narrow=task.is_narrow)
        else:
            if not selection.unpack:
                refuse_packs(batch, columns, where, first_row)
            yield from addressable(batch, columns, selection, where, is_narrow=task.is_narrow)
        first_row += batch.num_rows


def _first_row(task: DecodeTask) -> int:
    """The row of the file that messages call the first of the piece."""
    return task.piece.first_row or 0 if task.piece is not None else 0


def _batches(task: DecodeTask) -> Iterator[pa.RecordBatch]:
    file, path, selection, piece = task.file, task.path, task.selection, task.piece
    part = None if piece is None else piece.part
    if file.format == "parquet":
        yield from parquet_batches(path, selection, file.shown, part)
    elif file.format == "json":
        blocks = text_blocks(file, path, JSON_BYTES, part, 0 if piece is None else piece.first_line)
        columns = task.json
        if columns is None:
            first = next(blocks, None)
            if first is None:
                return
            columns, blocks = json_columns(first, selection, file.shown), itertools.chain([first], blocks)
        yield from json_batches(blocks, columns, file.shown, _first_row(task))
    else:
        assert isinstance(path, str), "Arrow is mapped"
        yield from arrow_batches(path, file.shown, part)
