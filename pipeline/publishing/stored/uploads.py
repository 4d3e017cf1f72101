"""Shards on their way to an object store while others are still being built."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from pipeline.base.errors import TightpackError
from pipeline.base.objects.concurrency import AT_ONCE
from pipeline.base.objects.lease import Lease, NoLease
from pipeline.base.objects.store import MOST_RECORDED, ObjectStore
from pipeline.base.staging import Record
from pipeline.base.storage import FileFacts

_PATIENCE = 5.0  # seconds for requests under way, after an error


@dataclass(frozen=True)
class _Shard:
    name: str
    path: Path
    record: Record

    @property
    def facts(self) -> FileFacts:
        return FileFacts(bytes=self.record["file"]["bytes"], xxh3_128=self.record["file"]["xxh3_128"])


class Uploads:
    """The mirror of a staging folder: each finished shard is sent at once, with its record as metadata.

    A run on another machine, or after the cache was lost, thus finds what is done already.
    """

    def __init__(self, store: ObjectStore, run_id: str, lease: Lease | NoLease) -> None:
        """store: where the dataset is to be."""
        self._store, self._run_id, self._lease = store, run_id, lease
        self._there = set(store.listed())
        self._sent: dict[str, FileFacts] = {}  # also what is on its way
        self._failed: list[BaseException] = []
        self._queue: SimpleQueue[_Shard | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_over = False

    def keep(self, name: str, path: Path, record: Record) -> None:
        """Send a finished shard, some time soon. Raises what sending an earlier one raised."""
        if self._failed:
            raise self._failed[0]
        shard = _Shard(name, path, record)
        if self._sent.get(name) == shard.facts:
            return
        self._sent[name] = shard.facts
        self._queue.put(shard)
        if len(self._threads) < AT_ONCE:
            thread = threading.Thread(target=self._send_all, name="store", daemon=True)
            self._threads.append(thread)
            thread.start()

    def record_of(self, name: str) -> Record | None:
        """The record of a shard that this run sent before, from here or elsewhere. Raises as the store."""
        if name not in self._there:
            return None
        kept = self._store.recorded(name)
        if kept is None:
            return None
        try:
            record: Record = json.loads(kept.record)
            run_id, facts = record.pop("run_id"), _Shard(name, Path(name), record).facts
        except (ValueError, KeyError, TypeError):
            return None  # it is sent again
        if run_id != self._run_id or facts != FileFacts(bytes=kept.bytes, xxh3_128=kept.xxh3_128):
            return None
        self._sent[name] = facts
        return record

    def finish(self) -> None:
        """Wait until all is sent. Raises what sending raised."""
        self._end_threads()
        for thread in self._threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def close(self) -> None:
        """Send nothing more, and wait for nothing: a store that does not answer would keep the process."""
        self._is_over = True
        self._end_threads()

    def forget(self) -> None:
        """Remove what was sent, as far as that can be; the next run of the same output removes what is left.

        It is closed.
        """
        for thread in self._threads:
            thread.join(_PATIENCE)
        with contextlib.suppress(TightpackError, OSError):
            self._lease.require()
            self._store.delete(self._sent)

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._queue.put(None)

    def _send_all(self) -> None:
        while (shard := self._queue.get()) is not None:
            if self._is_over or self._failed:
                continue
            try:
                self._send(shard)
            except BaseException as error:
                self._failed.append(error)

    def _send(self, shard: _Shard) -> None:
        if shard.name in self._there and self._store.holds(shard.name, shard.facts):
            return
        self._lease.require()
        record = json.dumps({"run_id": self._run_id, **shard.record})
        self._store.upload(shard.path, shard.name, shard.facts, record if len(record) <= MOST_RECORDED else "")
