"""One run at a time, resumable, all or nothing: an output is built beside its place and takes its name in one step."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import BusyError, StorageError
from pipeline.base.lock import file_lock
from pipeline.base.staging import Staging
from pipeline.base.storage import sync_folder
from pipeline.format.identity import Identity
from pipeline.format.manifest import Manifest
from pipeline.publishing.existing import existing_run
from pipeline.publishing.output import busy_message, lock_path

log = logging.getLogger(__name__)

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100


@dataclass(frozen=True)
class Publication:
    """A run that holds the place of its output."""

    staging: Staging
    """Where it is built."""

    existing: Manifest | None
    """What is there already, if this run was done before: then nothing is published."""


@contextmanager
def publication(output: Path, identity: Identity, *, overwrite: bool) -> Iterator[Publication]:
    """Hold the lock of an output; what the block leaves in `staging.dataset` is published when it ends.

    After a storage fault or an interruption finished work stays in staging, and the same run takes it up; after any
    other error nothing is left. Raises `BusyError` if another run holds the lock, `ConfigError` if something else is
    in the output's place, `StorageError` for storage faults.
    """
    staging = Staging(output.parent / f".{output.name}.staging-{identity.run_id[:8]}")
    try:
        with _parents(output.parent), file_lock(lock_path(output), busy_message(output)):
            log.info("run %s", identity.run_id, extra={"run_id": identity.run_id})
            existing = existing_run(output, identity, overwrite=overwrite)
            _remove_abandoned(output, but=None if existing else staging)
            try:
                if existing is None:
                    staging.open()
                yield Publication(staging, existing)
                if existing is None:
                    _publish(staging.dataset, output)
                    staging.remove()
            except (OSError, BusyError):
                raise
            except Exception:
                staging.remove()
                raise
    except KeyboardInterrupt as interruption:
        interruption.add_note(_what_is_kept(staging))
        raise
    except OSError as error:
        where = error.filename or output
        raise StorageError(f"{where}: {error.strerror or error}; {_what_is_kept(staging)}") from error


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make missing folders, and remove again those that stay empty."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
        yield
    finally:
        for path in missing:
            try:
                path.rmdir()
            except OSError:
                break  # not empty: the output or its staging is there


def _remove_abandoned(output: Path, but: Staging | None) -> None:
    """Remove the staging of earlier runs for the same output; whoever holds the lock may."""
    name = re.compile(re.escape(f".{output.name}.staging-") + "[0-9a-f]{8}")
    for path in list(output.parent.iterdir()):
        if name.fullmatch(path.name) and (but is None or path != but.folder):
            log.info("removing the staging of an abandoned run: %s", path)
            Staging(path).remove()


def _what_is_kept(staging: Staging) -> str:
    if not staging.folder.exists():
        return "nothing was written"
    return f"finished work is kept in {staging.folder}, and the same command resumes it"


def _publish(dataset: Path, output: Path) -> None:
    """Give `dataset` the name `output`, in one step; a directory that had the name is then at `dataset`.

    Raises `OSError` when the file system refuses.
    """
    for folder, _, _ in os.walk(dataset):
        sync_folder(Path(folder))
    if output.exists() and any(output.iterdir()):
        _exchange(dataset, output)
    else:
        os.rename(dataset, output)
    sync_folder(output.parent)


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
