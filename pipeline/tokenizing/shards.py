"""Tokenised rows on disk: the shards of one split, written in the order of the rows, resumable shard by shard."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import DataError
from pipeline.base.storage import FileFacts, HashingFile
from pipeline.format.dataset_files import schema_of
from pipeline.publishing.publication import Staging
from pipeline.reading.decoding.raw import open_raw
from pipeline.reading.files import FileCache, InputFile
from pipeline.reading.rows import IGNORE, as_arrow
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.tokenizing.options import TokenizeOptions
from pipeline.tokenizing.tokenization import Tokenization
from pipeline.tokenizing.workers import EncodeTask, encode_all

SHARD_BYTES = 1 << 28
"""Of a shard, about: what an interrupted run loses at most."""


@dataclass(kw_only=True)
class Tally:
    """What became of rows."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""

    notes: Counter[str] = field(default_factory=Counter)
    """Samples about which something is to be said, by what."""

    first_noted: dict[str, str] = field(default_factory=dict)
    """Where the first of them is."""

    file_rows: Counter[int] = field(default_factory=Counter)
    """Rows by the number of their file."""

    def add(self, other: Tally) -> None:
        """Count the rows of `other`, which come later."""
        for name in ("rows", "samples", "tokens", "targets"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped += other.skipped
        self.notes += other.notes
        self.file_rows += other.file_rows
        self.first_noted = other.first_noted | self.first_noted

    @staticmethod
    def from_json(value: dict[str, Any]) -> Tally:
        """Read what `vars` gave, from JSON."""
        file_rows = Counter({int(number): rows for number, rows in value["file_rows"].items()})
        counters = {name: Counter(value[name]) for name in ("skipped", "notes")} | {"file_rows": file_rows}
        return Tally(**value | counters)


@dataclass(frozen=True, kw_only=True)
class TokenizedShard:
    """A finished shard."""

    path: Path
    facts: FileFacts
    begin: tuple[int, int]
    """File and row in it of the first row."""

    end: tuple[int, int]
    """The same, after the last row."""

    num_blocks: int
    tally: Tally
    skipped: Path
    """JSON lines, one for each row left out."""


_COLUMNS = {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())}
_TOKENS = schema_of(_COLUMNS)
_TOKENS_AND_TEXT = schema_of(_COLUMNS | {"text": pa.string()})


def tokenized_schema(options: TokenizeOptions) -> pa.Schema:
    """Of a tokenised dataset."""
    columns = dict(_COLUMNS)
    if options.keep_text:
        columns["text"] = pa.string()
    if options.on_error == "skip":
        columns["source_row"] = pa.int64()
    return schema_of(columns)


class ShardWriter:
    """Tokenises the files of one split.

    Two ways: for a dataset of its own, where a row left out is not there and `source_row` tells which are; and for
    packing, where it is a sample without tokens, so that rows keep their numbers, and no shard holds rows of two files.
    """

    def __init__(
        self,
        tokenization: Tokenization,
        cache: FileCache,
        engine: LocalEngine,
        staging: Staging,
        *,
        split: str,
        path: Callable[[int], Path],
        for_packing: bool,
    ) -> None:
        """path: of the n-th shard, inside staging."""
        self._tokenization, self._cache, self._engine, self._staging = tokenization, cache, engine, staging
        self._split, self._path, self._for_packing = split, path, for_packing
        self._skips = tokenization.options.on_error == "skip"
        self._schema = tokenized_schema(tokenization.options)
        if for_packing:
            self._schema = _TOKENS_AND_TEXT if tokenization.options.keep_text else _TOKENS

    def write(self, files: Sequence[InputFile], advance: Callable[[int], object]) -> list[TokenizedShard]:
        """All shards, those of an interrupted run included; without any row there is one without rows.

        advance: called with the bytes of input done. Raises `DataError` for content that cannot be read, and for a row
        that cannot be used unless such rows are skipped; `OSError` for storage faults.
        """
        shards = self._finished()
        at = shards[-1].end if shards else (0, 0)
        tasks = self._tasks(files, sum(shard.num_blocks for shard in shards), advance)
        size = sum(file.size() for file in files)
        shard: _OpenShard | None = None
        try:
            for task, encoded in encode_all(self._tokenization, self._engine, tasks, size):
                if task.file != at[0]:
                    at = (task.file, 0)
                if shard is not None and (shard.num_bytes >= SHARD_BYTES or (self._for_packing and not at[1])):
                    shards.append(shard.finish())
                    shard = None
                if shard is None:
                    rows_before = sum(one.tally.rows for one in shards)
                    shard = _OpenShard(self._path(len(shards)), self._schema, self._staging, at, rows_before)
                self._append(shard, encoded, files[task.file], at)
                at = (task.file, at[1] + encoded.num_rows)
                shard.end = at
                advance(task.block.bytes_read)
            if shard is None and not shards:
                shard = _OpenShard(self._path(0), self._schema, self._staging, at, 0)
            if shard is not None:
                shards.append(shard.finish())
            return shards
        finally:
            if shard is not None:
                shard.discard()

    def _tasks(
        self, files: Sequence[InputFile], num_done: int, advance: Callable[[int], object]
    ) -> Iterator[EncodeTask]:
        """The blocks of all files in order, without the first `num_done`."""
        for number, file in enumerate(files):
            raw = open_raw(file, self._cache.local_path(file))
            if raw.is_empty:
                continue
            format_ = self._tokenization.format_of(raw)
            for block in raw.blocks(list(dict.fromkeys(format_.columns.values()))):
                if num_done:
                    num_done -= 1
                    advance(block.bytes_read)
                else:
                    yield EncodeTask(number, format_, block)

    def _append(self, shard: _OpenShard, encoded: EncodedBlock, file: InputFile, at: tuple[int, int]) -> None:
        """Add a block. at: number of its file, and its first row there."""
        first_row = at[1]
        if encoded.faults and not self._skips:
            fault = encoded.faults[0]
            raise DataError(
                f"{file.shown}, row {first_row + fault.row}: {fault.detail}."
                " Leave out such rows, counted and listed, with --on-error skip"
            )
        for fault in encoded.faults:
            shard.skip(
                ({"split": self._split} if self._split else {})
                | {"row": shard.next_row + fault.row, "file": file.name, "file_row": first_row + fault.row}
                | {"reason": fault.reason, "detail": fault.detail}
            )
        lengths, rows = np.array(encoded.lengths, np.int64), np.array(encoded.rows, np.int64)
        if self._for_packing:
            lengths = np.bincount(rows, lengths, encoded.num_rows).astype(np.int64)
        offsets = as_arrow(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        content: dict[str, pa.Array] = {
            name: pa.ListArray.from_arrays(offsets, as_arrow(values, pa.int32()))
            for name, values in (("input_ids", encoded.input_ids), ("labels", encoded.labels))
        }
        if "text" in self._schema.names:
            prompts = encoded.prompts
            if self._for_packing:
                by_row = dict(zip(encoded.rows, prompts, strict=True))
                prompts = [by_row.get(row, "") for row in range(encoded.num_rows)]
            content["text"] = pa.array(prompts, pa.string())
        if "source_row" in self._schema.names:
            content["source_row"] = as_arrow(shard.next_row + rows, pa.int64())
        shard.write(
            pa.record_batch([content[name] for name in self._schema.names], schema=self._schema),
            Tally(
                rows=encoded.num_rows,
                samples=len(encoded.rows),
                tokens=len(encoded.input_ids),
                targets=int(np.count_nonzero(encoded.labels != IGNORE)),
                skipped=Counter(fault.reason for fault in encoded.faults),
                notes=Counter({note: len(noted) for note, noted in encoded.notes.items() if noted}),
                first_noted={
                    note: f"{file.shown}, row {first_row + noted[0]}" for note, noted in encoded.notes.items() if noted
                },
                file_rows=Counter({at[0]: encoded.num_rows}),
            ),
        )

    def _finished(self) -> list[TokenizedShard]:
        """The shards that an earlier run left, from the first on without a gap."""
        shards: list[TokenizedShard] = []
        while True:
            path = self._path(len(shards))
            record = self._staging.finished(path)
            if record is None:
                return shards
            shards.append(
                TokenizedShard(
                    path=path,
                    facts=FileFacts(**record["file"]),
                    begin=tuple(record["begin"]),
                    end=tuple(record["end"]),
                    num_blocks=record["num_blocks"],
                    tally=Tally.from_json(record["tally"]),
                    skipped=_skipped_path(self._staging, path),
                )
            )


class _OpenShard:
    """A shard that is being written."""

    def __init__(
        self, path: Path, schema: pa.Schema, staging: Staging, begin: tuple[int, int], rows_before: int
    ) -> None:
        self._path, self._staging, self._begin, self._rows_before = path, staging, begin, rows_before
        self._file = HashingFile(path)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), schema)
        self._skipped = HashingFile(_skipped_path(staging, path))
        self._num_blocks = 0
        self._tally = Tally()
        self.num_bytes = 0
        self.end = begin

    @property
    def next_row(self) -> int:
        """In the split."""
        return self._rows_before + self._tally.rows

    def skip(self, entry: dict[str, Any]) -> None:
        """List a row that is left out."""
        self.num_bytes += self._skipped.write((json.dumps(entry) + "\n").encode())

    def write(self, batch: pa.RecordBatch, tally: Tally) -> None:
        """Append a block."""
        self._writer.write_batch(batch)
        self._tally.add(tally)
        self._num_blocks += 1
        self.num_bytes += batch.nbytes

    def finish(self) -> TokenizedShard:
        """Give the shard its name, and note that it is finished."""
        self._writer.close()
        self._skipped.finish()
        facts = self._file.finish()
        shard = TokenizedShard(
            path=self._path,
            facts=facts,
            begin=self._begin,
            end=self.end,
            num_blocks=self._num_blocks,
            tally=self._tally,
            skipped=_skipped_path(self._staging, self._path),
        )
        self._staging.record(
            self._path,
            facts,
            begin=shard.begin,
            end=shard.end,
            num_blocks=shard.num_blocks,
            tally=vars(shard.tally),
        )
        return shard

    def discard(self) -> None:
        """Leave nothing; does nothing after `finish`."""
        self._file.discard()
        self._skipped.discard()


def _skipped_path(staging: Staging, shard: Path) -> Path:
    return staging.work / ("-".join(shard.relative_to(staging.folder).parts) + ".skipped.jsonl")
