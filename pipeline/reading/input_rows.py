"""Opening tokenised inputs as rows that can be addressed: mapped where possible, decoded once where not."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.engine import Monitor
from pipeline.base.storage import FileFacts, HashingFile, free_bytes
from pipeline.base.words import counted
from pipeline.reading.columns import Selection, find_columns
from pipeline.reading.decoding.batches import addressable, arrow_batches, json_batches, parquet_batches, reading
from pipeline.reading.decoding.foreign import refuse_foreign
from pipeline.reading.decoding.json_lines import open_text
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import Input
from pipeline.reading.mapped import MappedFile, empty_file, map_file
from pipeline.reading.windows import SplitRows
from pipeline.reading.workspace import Workspace

log = logging.getLogger(__name__)

# Spooled bytes for each byte of a file, where only its size is known.
_GROWTH = {".gz": 6, ".zst": 6, ".json": 2, ".jsonl": 2, ".arrow": 4}


@dataclass(frozen=True, kw_only=True)
class InputRows:
    """Inputs as rows that can be addressed."""

    splits: Mapping[str, SplitRows]
    rows_of_inputs: list[int]
    """Rows of each input, in all its splits."""


@dataclass(frozen=True, kw_only=True)
class DecodeTask:
    """A file that has to be decoded into one that can be mapped."""

    file: InputFile
    path: str
    """Where the file, or a copy of it, can be opened."""

    selection: Selection
    spool: Path
    """The file to be written."""


def open_inputs(inputs: list[Input], selection: Selection, work: Workspace) -> InputRows:
    """Open tokenised inputs; what is decoded lies in staging.

    Raises `DataError` for content that cannot be read or lacks the columns, `OSError` for storage faults.
    """
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    opened: dict[InputFile, MappedFile] = {}
    tasks = []
    for number, file in enumerate(files):
        path = work.cache.local_path(file)
        refuse_foreign(file, path)
        mapped = _map_in_place(file, path, selection.names)
        if mapped is None:
            spool = work.staging.work / f"spool-{number:05d}.arrow"
            tasks.append(DecodeTask(file=file, path=path, selection=selection, spool=spool))
        else:
            opened[file] = mapped
    if tasks:
        _announce(tasks, work.staging.work)
        with work.stage("decoding inputs", len(tasks), "file") as advance:
            for task, rows in zip(tasks, work.engine.map(lambda task: _decoded(task, work), tasks), strict=True):
                opened[task.file] = rows
                advance(1)
    return InputRows(
        splits={s: SplitRows([opened[file] for entry in inputs for file in entry.splits[s]]) for s in inputs[0].splits},
        rows_of_inputs=[sum(opened[file].num_rows for file in entry.files()) for entry in inputs],
    )


def _map_in_place(file: InputFile, path: str, names: Mapping[str, str]) -> MappedFile | None:
    """Map an input file in place; None if it has to be decoded. Raises `DataError`."""
    if file.format != "arrow":
        return None
    with reading(file.shown):
        return map_file(path, names, file.shown)


def _announce(tasks: list[DecodeTask], folder: Path) -> None:
    """Say beforehand what decoding will take on disk."""
    size = sum(_spooled_bytes(task.file, task.path) for task in tasks)
    free = free_bytes(folder)
    what = f"{counted(len(tasks), 'input file')} to be decoded once, because only plain Arrow can be memory-mapped"
    log.log(
        logging.WARNING if size > free else logging.INFO,
        f"{what}: about {size / 1e6:,.1f} MB in {folder} for the time of the run, {free / 1e6:,.0f} MB are free",
    )


def _spooled_bytes(file: InputFile, path: str) -> int:
    if file.format == "parquet":
        with reading(file.shown):
            metadata = pq.read_metadata(path)
            columns = [
                metadata.row_group(g).column(c)
                for g in range(metadata.num_row_groups)
                for c in range(metadata.num_columns)
            ]
        return sum(8 * c.num_values for c in columns if c.physical_type in ("INT32", "INT64"))
    growth = next(factor for ending, factor in _GROWTH.items() if file.name.lower().endswith(ending))
    return growth * Path(path).stat().st_size


def _decoded(task: DecodeTask, work: Workspace) -> MappedFile:
    """A file decoded now, or by an earlier run."""
    record = work.staging.finished(task.spool)
    if record is None:
        facts, num_rows = decode(task, work.engine.monitor(lambda _: None))
        work.staging.record(task.spool, facts, rows=num_rows)
    else:
        num_rows = record["rows"]
    if num_rows == 0:
        log.warning("%s: there is no row in it", task.file.shown)
        return empty_file(str(task.spool), task.file.shown)
    mapped = map_file(str(task.spool), task.selection.names, task.file.shown)
    assert mapped is not None, "what is decoded can be mapped"
    return mapped


def decode(task: DecodeTask, monitor: Monitor) -> tuple[FileFacts, int]:
    """Decode an input file into an Arrow stream with what is read of it, durably; returns its rows as well.

    monitor: called with rows. Raises `DataError` for content that cannot be read, `OSError` for storage faults.
    """
    spool = HashingFile(task.spool)
    num_rows = 0
    try:
        with reading(task.file.shown):
            batches = _batches(task)
            batch = next(batches, None)
            schema = pa.schema([("input_ids", pa.list_(pa.int32()))]) if batch is None else batch.schema
            with pa.ipc.new_stream(pa.PythonFile(spool, mode="w"), schema) as writer:
                while batch is not None:
                    writer.write_batch(batch)
                    num_rows += batch.num_rows
                    monitor(batch.num_rows)
                    batch = next(batches, None)
        return spool.finish(), num_rows
    finally:
        spool.discard()


def _batches(task: DecodeTask) -> Iterator[pa.RecordBatch]:
    file, path, selection = task.file, task.path, task.selection
    if file.format == "parquet":
        batches = parquet_batches(path, selection, file.shown)
    elif file.format == "json":
        batches = json_batches(lambda: open_text(file, path), selection, file.shown)
    else:
        batches = arrow_batches(path)
    columns = None
    for batch in batches:
        columns = columns or find_columns(batch.schema, selection.names, file.shown)
        yield from addressable(batch, columns, selection)
