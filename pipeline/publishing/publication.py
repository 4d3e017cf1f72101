"""From staging to the output's name in one step, under a lock."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.base.errors import BusyError
from pipeline.base.storage import FileFacts, write_file
from pipeline.reading.files import hash_file

log = logging.getLogger(__name__)

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold the output's kernel lock; parents are made, and removed again if they stay empty.

    The lock file is removed while it is held, so a waiting process may lock a file that has no name any
    more: hence open, lock, compare inodes. Raises `BusyError` if another run holds it.
    """
    made = _make_parents(output.parent)
    path = output.parent / f".{output.name}.lock"
    try:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise BusyError(f"another run is writing {output}; wait for it, or choose another --output") from None
            if _same_file(descriptor, path):
                break
            os.close(descriptor)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for folder in made:
            try:
                folder.rmdir()
            except OSError:
                break  # not empty: the output or its staging is there


def _make_parents(folder: Path) -> list[Path]:
    """Make missing folders; those made, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


class Staging:
    """The hidden folder beside the output where a run is built: `dataset` will be published, `work` never.

    Each task leaves one file and, after it, a record with its checksum; a record without its file, or the
    other way round, counts for nothing.
    """

    def __init__(self, output: Path, run_id: str) -> None:
        self.folder = output.parent / f".{output.name}.staging-{run_id[:8]}"
        self.dataset = self.folder / "dataset"
        self.work = self.folder / "work"

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
            if file.stat().st_size == record["file"]["bytes"] and hash_file(str(file)) == record["file"]["xxh3_128"]:
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


def abandoned(output: Path, but: Path | None) -> list[Path]:
    """Staging of earlier runs for the same output. Whoever holds the lock may remove it."""
    name = re.compile(re.escape(f".{output.name}.staging-") + "[0-9a-f]{8}")
    return [path for path in output.parent.iterdir() if name.fullmatch(path.name) and path != but]


def publish(dataset: Path, output: Path) -> None:
    """Give `dataset` the name `output`, in one step; a directory that had the name is then at `dataset`.

    Raises `OSError` when the file system refuses.
    """
    for folder, _, _ in os.walk(dataset):
        _sync(Path(folder))
    if output.exists() and any(output.iterdir()):
        _exchange(dataset, output)
    else:
        os.rename(dataset, output)
    _sync(output.parent)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories; by two renames where the kernel or file system cannot swap."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(old))
    aside = new.with_name("replaced")
    os.rename(old, aside)
    os.rename(new, old)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
