"""The folder where a run builds its output, and what tells finished tasks from unfinished ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.base import storage
from pipeline.base.digests import is_whole
from pipeline.base.storage import FileFacts, write_file

log = logging.getLogger(__name__)


Record = dict[str, Any]
"""What is known of a finished task's file; under `file` its size and checksum."""


class Mirror(Protocol):
    """Where finished files of a dataset are, too, before the dataset is published."""

    def keep(self, name: str, path: Path, record: Record) -> None:
        """Be told of a finished file. name: its path in the dataset. May raise what an earlier one failed with."""

    def record_of(self, name: str) -> Record | None:
        """The record of a file that is there."""


@dataclass(frozen=True)
class Staging:
    """A folder with two parts: `dataset` will be published, `work` never.

    Each task leaves one file and, after it, a record with its checksum; a record without its file, or the
    other way round, counts for nothing. After a crash of the machine either may be lost, or be what was never written,
    in any order: no name is synced before the dataset is published, so what is there is believed by its checksum alone.
    """

    folder: Path
    mirror: Mirror | None = field(default=None, compare=False)
    believes_sizes: bool = field(default=False, compare=False)
    """Whether a file counts as finished that has its recorded size, whatever its content."""

    @property
    def dataset(self) -> Path:
        """Where the files to be published are built."""
        return self.folder / "dataset"

    @property
    def work(self) -> Path:
        """Where tasks leave what other tasks need."""
        return self.folder / "work"

    def open(self, *, is_shared: bool = False) -> None:
        """Make the folders, and drop what an earlier run left half-written, or without a record in `dataset`.

        is_shared: whether other processes may be writing there now; then nothing is dropped.
        """
        for folder in (self.folder, self.dataset, self.work):
            storage.make_folder(folder)
        if is_shared:
            return
        records = set(storage.list_folder(self.work))
        self._drop(self.dataset, lambda file: self._record(file) not in records)
        self._drop(self.work, _is_part)

    def sweep(self) -> None:
        """Drop what workers that died left half-written in `dataset`."""
        self._drop(self.dataset, _is_part)

    def _drop(self, folder: Path, is_unwanted: Callable[[Path], bool]) -> None:
        for path in storage.list_folder(folder):
            if path.is_dir() and not path.is_symlink():
                self._drop(path, is_unwanted)
            elif is_unwanted(path):
                storage.remove(path)

    def finished(self, file: Path) -> Record | None:
        """The record of a task that an earlier run finished, if its file still has the recorded checksum.

        The file may be in the mirror alone. Raises as `Mirror.keep`.
        """
        record = self._finished_here(file)
        if self.mirror is None or not file.is_relative_to(self.dataset):
            return record
        name = file.relative_to(self.dataset).as_posix()
        if record is None:
            return self.mirror.record_of(name)
        self.mirror.keep(name, file, record)
        return record

    def _finished_here(self, file: Path) -> Record | None:
        try:
            record: Record = json.loads(storage.read_bytes(self._record(file)))
            facts = FileFacts(bytes=record["file"]["bytes"], xxh3_128=record["file"]["xxh3_128"])
            is_finished = file.stat().st_size == facts.bytes if self.believes_sizes else is_whole(file, facts)
            return record if is_finished else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # what cannot be read is made again

    def forget(self, file: Path) -> None:
        """Let a task count as not finished."""
        storage.remove(self._record(file))

    def record(self, file: Path, facts: FileFacts, **more: Any) -> None:
        """Note that the task which wrote `file` is finished. Raises as `Mirror.keep`."""
        record = {"file": asdict(facts), **more}
        write_file(self._record(file), json.dumps(record).encode(), is_shared=True)
        if self.mirror is not None and file.is_relative_to(self.dataset):
            self.mirror.keep(file.relative_to(self.dataset).as_posix(), file, record)

    def _record(self, file: Path) -> Path:
        return self.work / ("-".join(file.relative_to(self.folder).parts) + ".done")

    def remove(self) -> None:
        """Leave nothing; what cannot be removed is told, and left to the next run of the same output."""
        try:
            if self.folder.exists():
                storage.remove_tree(self.folder)
        except OSError as error:
            log.warning("%s could not be removed (%s); the next run removes it", error.filename, error.strerror)


def _is_part(file: Path) -> bool:
    return file.suffix == ".part"
