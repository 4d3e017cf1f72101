"""One shard of tokenised rows: written block by block, and known again by a later run once it is finished."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.base.digests import is_whole
from pipeline.base.staging import Staging
from pipeline.base.storage import FileFacts, HashingFile, write_file
from pipeline.tokenizing.tally import RowTally


@dataclass(frozen=True, kw_only=True)
class TokenizedShard:
    """A finished shard."""

    path: Path
    facts: FileFacts
    begin: tuple[int, int]
    """Number of the file, and the row in it, that the shard begins with."""

    end: tuple[int, int]
    """The same for what follows its last row."""

    num_blocks: int
    tally: RowTally
    dropped: Path
    """JSON lines, one for each row left out."""


class ShardBuilder:
    """A shard that is being written."""

    def __init__(
        self, path: Path, schema: pa.Schema, staging: Staging, begin: tuple[int, int], rows_before: int
    ) -> None:
        """begin: see `TokenizedShard`; rows_before: of the split, in earlier shards."""
        self._path, self._staging, self._begin, self._rows_before = path, staging, begin, rows_before
        self._file = HashingFile(path)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), schema)
        self._dropped = HashingFile(_dropped_path(staging, path))
        self._num_blocks = 0
        self._tally = RowTally()
        self.num_bytes = 0
        self.end = begin

    @property
    def next_row(self) -> int:
        """The number that the next row has in its split."""
        return self._rows_before + self._tally.rows

    def drop(self, entry: dict[str, Any]) -> None:
        """List a row that is left out."""
        self.num_bytes += self._dropped.write((json.dumps(entry) + "\n").encode())

    def write(self, batch: pa.RecordBatch, tally: RowTally, end: tuple[int, int]) -> None:
        """Append a block, after which the shard ends at `end`."""
        self._writer.write_batch(batch)
        self._tally.add(tally)
        self._num_blocks += 1
        self.num_bytes += batch.nbytes
        self.end = end

    def finish(self) -> TokenizedShard:
        """Give the shard its name, and note that it is finished."""
        self._writer.close()
        dropped = self._dropped.finish()
        facts = self._file.finish()
        shard = TokenizedShard(
            path=self._path,
            facts=facts,
            begin=self._begin,
            end=self.end,
            num_blocks=self._num_blocks,
            tally=self._tally,
            dropped=_dropped_path(self._staging, self._path),
        )
        self._staging.record(
            self._path,
            facts,
            begin=shard.begin,
            end=shard.end,
            num_blocks=shard.num_blocks,
            tally=vars(shard.tally),
            dropped=asdict(dropped),
        )
        return shard

    def discard(self) -> None:
        """Leave nothing; does nothing after `finish`."""
        self._file.discard()
        self._dropped.discard()


def finished_shard(path: Path, staging: Staging) -> TokenizedShard | None:
    """The shard that an earlier run left under a name, if it is whole."""
    record, dropped = staging.finished(path), _dropped_path(staging, path)
    if record is None or "dropped" not in record:
        return None
    listed = FileFacts(**record["dropped"])
    if not listed.bytes and not dropped.exists():  # the shard is in the mirror, and no row of it was left out
        write_file(dropped, b"")
    if not is_whole(dropped, listed):
        return None
    return TokenizedShard(
        path=path,
        facts=FileFacts(**record["file"]),
        begin=tuple(record["begin"]),
        end=tuple(record["end"]),
        num_blocks=record["num_blocks"],
        tally=RowTally.from_json(record["tally"]),
        dropped=dropped,
    )


def _dropped_path(staging: Staging, shard: Path) -> Path:
    return staging.work / ("-".join(shard.relative_to(staging.folder).parts) + ".dropped.jsonl")
