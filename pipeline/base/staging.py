"""The folder where a run builds its output, and what tells finished tasks from unfinished ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.base.digests import hash_file
from pipeline.base.storage import FileFacts, write_file


@dataclass(frozen=True)
class Staging:
    """A folder with two parts: `dataset` will be published, `work` never.

    Each task leaves one file and, after it, a record with its checksum; a record without its file, or the
    other way round, counts for nothing.
    """

    folder: Path

    @property
    def dataset(self) -> Path:
        """Where the files to be published are built."""
        return self.folder / "dataset"

    @property
    def work(self) -> Path:
        """Where tasks leave what other tasks need."""
        return self.folder / "work"

    def open(self) -> None:
        """Make the folders, and drop files that an earlier run left half-written."""
        self.dataset.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        for part in self.folder.rglob("*.part"):
            part.unlink()

    def finished(self, file: Path) -> dict[str, Any] | None:
        """The record of a task that an earlier run finished, if its file still has the recorded checksum."""
        try:
            record: dict[str, Any] = json.loads(self._record(file).read_text())
            if file.stat().st_size == record["file"]["bytes"] and hash_file(file) == record["file"]["xxh3_128"]:
                return record
        except (OSError, ValueError, KeyError):
            pass
        return None

    def record(self, file: Path, facts: FileFacts, **more: Any) -> None:
        """Note that the task which wrote `file` is finished."""
        write_file(self._record(file), json.dumps({"file": asdict(facts), **more}).encode())

    def _record(self, file: Path) -> Path:
        return self.work / ("-".join(file.relative_to(self.folder).parts) + ".done")

    def remove(self) -> None:
        """Leave nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
