"""Opening input files as rows that can be addressed: mapped where possible, decoded once where not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.engine import LocalEngine
from pipeline.base.progress import bar
from pipeline.base.storage import FileFacts, HashingFile
from pipeline.base.words import counted
from pipeline.publishing.publication import Staging
from pipeline.reading.columns import find_columns
from pipeline.reading.decoding.batches import arrow_batches, json_batches, parquet_batches, plain, reading
from pipeline.reading.decoding.json_lines import open_text
from pipeline.reading.files import FileCache, InputFile, free_bytes
from pipeline.reading.inputs import Input
from pipeline.reading.mapped import MappedFile, empty_file, map_file
from pipeline.reading.windows import SplitRows

log = logging.getLogger(__name__)

# Spooled bytes for each byte of a file, where only its size is known.
_GROWTH = {".gz": 6, ".zst": 6, ".json": 2, ".jsonl": 2, ".arrow": 4}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Inputs as rows that can be addressed."""

    splits: dict[str, SplitRows]
    rows: list[int]
    """Of each input, in all its splits."""


def open_inputs(
    inputs: list[Input],
    renamed: Mapping[str, str],
    cache: FileCache,
    engine: LocalEngine,
    staging: Staging,
    beside: str | None = None,
) -> Opened:
    """Open tokenised inputs; what is spooled lies in staging.

    beside: a column that is needed beside the tokens, where a file has it.
    Raises `DataError` for content that cannot be read or lacks the columns.
    """
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    paths = [cache.local_path(file) for file in files]
    opened = {}
    todo = []
    for number, (file, path) in enumerate(zip(files, paths, strict=True)):
        mapped = _map_in_place(file, path, renamed)
        if mapped is None:
            todo.append((number, file, path))
        else:
            opened[file] = mapped
    if todo:
        _announce([(file, path) for _, file, path in todo], staging.work)

        def decode(task: tuple[int, InputFile, str]) -> MappedFile:
            number, file, path = task
            into = staging.work / f"spool-{number:05d}.arrow"
            record = staging.finished(into)
            if record is None:
                facts, num_rows = _spool(file, path, renamed, beside, into, engine.checkpoint)
                staging.record(into, facts, rows=num_rows)
            else:
                num_rows = record["rows"]
            if num_rows == 0:
                return empty_file(file.shown)
            mapped = map_file(str(into), renamed, file.shown)
            assert mapped is not None
            return mapped

        with bar("decoding inputs", len(todo), "file") as advance:
            for (_, file, _), mapped in zip(todo, engine.map(decode, todo), strict=True):
                opened[file] = mapped
                advance(1)
    return Opened(
        splits={s: SplitRows([opened[file] for entry in inputs for file in entry.splits[s]]) for s in inputs[0].splits},
        rows=[sum(opened[file].num_rows for file in entry.files()) for entry in inputs],
    )


def _map_in_place(file: InputFile, path: str, renamed: Mapping[str, str]) -> MappedFile | None:
    """Map an input file in place; None if it has to be spooled. Raises `DataError`."""
    if file.format != "arrow":
        return None
    with reading(file.shown):
        return map_file(path, renamed, file.shown)


def _announce(files: list[tuple[InputFile, str]], folder: Path) -> None:
    """Say beforehand what decoding will take on disk."""
    size = sum(_spooled_bytes(file, path) for file, path in files)
    free = free_bytes(folder)
    told = f"{counted(len(files), 'input file')} to be decoded once, because only plain Arrow can be memory-mapped"
    log.log(
        logging.WARNING if size > free else logging.INFO,
        f"{told}: about {size / 1e6:,.1f} MB in {folder} for the time of the run, {free / 1e6:,.0f} MB are free",
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


def _spool(
    file: InputFile,
    path: str,
    renamed: Mapping[str, str],
    beside: str | None,
    into: Path,
    checkpoint: Callable[[], None],
) -> tuple[FileFacts, int]:
    """Decode an input file into an Arrow stream with its token columns, durably; returns its rows as well.

    Raises `DataError` for content that cannot be read, `OSError` for storage faults.
    """
    target = HashingFile(into)
    num_rows = 0
    try:
        with reading(file.shown):
            batches = _decode(file, path, renamed, beside)
            first = next(batches, None)
            schema = pa.schema([("input_ids", pa.list_(pa.int32()))]) if first is None else first.schema
            with pa.ipc.new_stream(pa.PythonFile(target, mode="w"), schema) as writer:
                while first is not None:
                    writer.write_batch(first)
                    num_rows += first.num_rows
                    checkpoint()
                    first = next(batches, None)
        return target.finish(), num_rows
    finally:
        target.discard()


def _decode(file: InputFile, path: str, renamed: Mapping[str, str], beside: str | None) -> Iterator[pa.RecordBatch]:
    if file.format == "parquet":
        batches = parquet_batches(path, renamed, file.shown, beside)
    elif file.format == "json":
        batches = json_batches(lambda: open_text(file, path), renamed, file.shown, beside)
    else:
        batches = arrow_batches(path)
    columns = None
    for batch in batches:
        columns = columns or find_columns(batch.schema, renamed, file.shown)
        yield from plain(batch, columns, beside)
