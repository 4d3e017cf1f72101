"""Opening tokenised inputs as rows that can be addressed: mapped where possible, decoded once where not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pipeline.base.dealing.stages import Kind, Stage, TaskContext
from pipeline.base.errors import ConfigError
from pipeline.base.staging import Staging
from pipeline.base.storage import free_bytes
from pipeline.base.words import counted
from pipeline.format.columns import SOURCE_COLUMNS, SOURCE_ROW
from pipeline.reading.columns import Selection
from pipeline.reading.decoding.batches import parquet_metadata, reading
from pipeline.reading.decoding.beside import tell_unread, unread_columns
from pipeline.reading.decoding.foreign import refuse_foreign
from pipeline.reading.decoding.spool import DecodeTask, decode, decode_tasks
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import Input
from pipeline.reading.mapped import MappedFile, empty_file, map_file
from pipeline.reading.remote.ranges import Place, size_of
from pipeline.reading.windows import SplitRows
from pipeline.reading.workspace import Workspace

log = logging.getLogger(__name__)

# Spooled bytes for each byte of a file, where only its size is known.
_GROWTH = {".gz": 3, ".zst": 3, ".json": 1, ".jsonl": 1, ".arrow": 4}


@dataclass(frozen=True, kw_only=True)
class InputRows:
    """Inputs as rows that can be addressed."""

    splits: Mapping[str, SplitRows]
    rows_of_files: Mapping[str, Sequence[int]]
    """Rows of each data file, by split."""

    tells_sources: bool
    """Whether every row says of which raw row it was made, and the turn that ends it."""


def open_inputs(inputs: list[Input], selection: Selection, work: Workspace) -> InputRows:
    """Open tokenised inputs; what is decoded lies in staging.

    Raises `DataError` for content that cannot be read or lacks the columns, `OSError` for storage faults.
    """
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    paths = {file: work.cache.local_path(file) if selection.unpack else work.cache.place(file) for file in files}
    opened: dict[InputFile, list[MappedFile]] = {}
    whole: list[DecodeTask] = []
    for number, file in enumerate(files):
        path = paths[file]
        refuse_foreign(file, path)
        mapped = None if selection.unpack else _map_in_place(file, path, selection.names)
        if mapped is None:
            spool = work.staging.work / f"spool-{number:05d}.arrow"
            whole.append(DecodeTask(file=file, path=path, selection=selection, spool=spool))
        else:
            opened[file] = [mapped]
    others = dict.fromkeys(file for entry in inputs if entry.manifest is None for file in entry.files())
    unread = unread_columns([(file, paths[file]) for file in others], selection)
    if whole:
        tasks = [task for of_file in work.engine.map(decode_tasks, whole) for task in of_file]
        _announce(tasks, work.staging.work)
        for task, rows in zip(tasks, work.results(DecodeStage(), tasks), strict=True):
            before = opened.setdefault(task.file, [])
            before.append(replace(rows, first_row=sum(piece.num_rows for piece in before)))
    every = [piece for pieces in opened.values() for piece in pieces]
    if selection.unpack:
        _tell_unpacked(every)
    tell_unread(unread)
    files_of = {s: [opened[file] for entry in inputs for file in entry.splits[s]] for s in inputs[0].splits}
    return InputRows(
        splits={s: SplitRows([piece for pieces in files for piece in pieces]) for s, files in files_of.items()},
        rows_of_files={
            s: [sum(piece.num_source_rows for piece in pieces) for pieces in files] for s, files in files_of.items()
        },
        tells_sources=_tell_sources([piece for piece in every if piece.num_rows]),
    )


def _map_in_place(file: InputFile, path: Place, names: Mapping[str, str]) -> MappedFile | None:
    """Map an input file in place; None if it has to be decoded. Raises `DataError`."""
    if file.format != "arrow":
        return None
    assert isinstance(path, str), "Arrow is mapped"
    with reading(file.shown, path):
        return map_file(path, names, file.shown)


def _tell_sources(files: list[MappedFile]) -> bool:
    """Whether the rows of all files say of which raw rows they were made; if only some do, say that it is lost."""
    silent = [file for file in files if not file.tells_sources]
    if silent and len(silent) < len(files):
        log.warning(
            "%s has no columns %s, others have: packs do not tell the raw rows",
            silent[0].name,
            " and ".join(SOURCE_COLUMNS.values()),
        )
    return bool(files) and not silent


def _tell_unpacked(files: list[MappedFile]) -> None:
    """Say which files were no packs. Raises `ConfigError` if none was, unless there is no row at all."""
    plain = [file for file in files if file.num_rows and file.row_base is None]
    if plain and len(plain) == sum(1 for file in files if file.num_rows):
        raise ConfigError(
            f"--unpack has no effect: no column of {plain[0].name} tells of several samples in a row; leave it out, or"
            " name the attention mask that tells with --column attention_mask=NAME"
        )
    if plain:
        log.warning(
            "%s, among them %s, read as they are: no column tells of several samples in a row",
            counted(len(plain), "input file"),
            plain[0].name,
        )


def _announce(tasks: list[DecodeTask], folder: Path) -> None:
    """Say beforehand what decoding will take on disk."""
    files = {task.file: task.path for task in tasks}
    size = sum(_spooled_bytes(file, path) for file, path in files.items())
    free = free_bytes(folder)
    what = f"{counted(len(files), 'input file')} to be decoded once, because only plain Arrow of samples can be mapped"
    log.log(
        logging.WARNING if size > free else logging.INFO,
        f"{what}: about {size / 1e6:,.1f} MB in {folder} for the time of the run, {free / 1e6:,.0f} MB are free",
    )


def _spooled_bytes(file: InputFile, path: Place) -> int:
    if file.format == "parquet":
        with reading(file.shown, path):
            metadata = parquet_metadata(path)
            columns = [
                metadata.row_group(g).column(c)
                for g in range(metadata.num_row_groups)
                for c in range(metadata.num_columns)
            ]
        return sum(4 * c.num_values for c in columns if c.physical_type in ("INT32", "INT64"))
    growth = next(factor for ending, factor in _GROWTH.items() if file.name.lower().endswith(ending))
    return growth * size_of(path)


class DecodeStage(Stage[DecodeTask, MappedFile]):
    """Decoding files, or pieces of them: each task gives its rows."""

    kind: ClassVar[Kind] = "decode"
    title: ClassVar[str] = "decoding inputs"
    noun: ClassVar[str] = "piece"
    unit: ClassVar[str] = "piece"
    is_common: ClassVar[bool] = True
    is_claimed: ClassVar[bool] = True

    def units(self, task: DecodeTask) -> int:
        """One piece."""
        return 1

    def name(self, task: DecodeTask) -> str:
        """The name of the file with what was decoded."""
        return task.spool.name

    def words(self, task: DecodeTask) -> str:
        """Its file."""
        return task.file.shown

    def finished(self, task: DecodeTask, staging: Staging) -> MappedFile | None:
        """As of `Stage`."""
        record = staging.finished(task.spool)
        return None if record is None else _mapped(task, record["rows"])

    def do(self, task: DecodeTask, context: TaskContext) -> MappedFile:
        """Raises as `decode`."""
        facts, num_rows = decode(task, lambda _: context.monitor(0))
        context.staging.record(task.spool, facts, rows=num_rows)
        context.monitor(1)
        return _mapped(task, num_rows)


def _mapped(task: DecodeTask, num_rows: int) -> MappedFile:
    """What was decoded, as rows."""
    if num_rows == 0:
        if task.piece is None:
            log.warning("%s: there is no row in it", task.file.shown)
        return empty_file(str(task.spool), task.file.shown)
    mapped = map_file(str(task.spool), task.selection.names, task.file.shown)
    assert mapped is not None, "what is decoded can be mapped"
    return replace(mapped, row_base=0 if task.selection.unpack and SOURCE_ROW in mapped.schema.names else None)
