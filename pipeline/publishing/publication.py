"""One run at a time, resumable, all or nothing: an output is built beside its place and takes its name in one step."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import storage
from pipeline.base.errors import BusyError, StorageError
from pipeline.base.lock import file_lock
from pipeline.base.staging import Staging
from pipeline.format.identity import Identity
from pipeline.format.manifest import Manifest
from pipeline.publishing.output import busy_message, lock_path
from pipeline.publishing.place import Place

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """A run that holds the place of its output."""

    staging: Staging
    """Where it is built."""

    existing: Manifest | None
    """What is there already, if this run was done before: then nothing is published."""


@contextmanager
def publication(
    place: Place, identity: Identity, *, overwrite: bool, base: Manifest | None = None, may_fail: bool = False
) -> Iterator[Publication]:
    """Hold the lock of an output; what the block leaves in `staging.dataset` is published when it ends.

    base: what is there and appended to; may_fail: clear away what other runs left unfinished only once this one is
    published.

    After a storage fault or an interruption finished work stays in staging, and the same run takes it up; after any
    other error nothing is left. Raises `BusyError` if another run holds the lock, `ConfigError` if something else is
    in the output's place, `StorageError` for storage faults.
    """
    output, folder = place.output, place.folder(identity.run_id)
    staging = staging_of(output, identity.run_id)
    with (
        telling_what_is_kept(staging, output),
        parents(output.parent),
        file_lock(lock_path(output), busy_message(output)),
        parents(folder.parent),
    ):
        log.info("run %s", identity.run_id, extra={"run_id": identity.run_id})
        place.refuse_others(base)
        _put_back(output, folder)
        existing = place.existing(identity, overwrite=overwrite, base=base)
        if existing or not may_fail:
            remove_abandoned(output, but=None if existing else staging)
        with undone(staging.remove, but=(OSError, BusyError)):
            if existing is None:
                staging.open()
            yield Publication(staging, existing)
            if existing is None:
                staging.sweep()
                _publish(staging.dataset, folder)
            place.settle(identity.run_id)
            if existing is None:
                remove_abandoned(output, but=staging)
                staging.remove()


@contextmanager
def telling_what_is_kept(staging: Staging, output: Path | str) -> Iterator[None]:
    """Say, where the block is interrupted or storage fails, what is kept. Raises `StorageError` for storage faults."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(what_is_kept(staging))
        raise
    except OSError as error:
        where = error.filename or output
        raise StorageError(f"{where}: {error.strerror or error}; {what_is_kept(staging)}") from error


@contextmanager
def undone(undo: Callable[[], None], but: tuple[type[Exception], ...]) -> Iterator[None]:
    """Undo what the block did after an error in it. but: the errors after which it is kept, to be taken up."""
    try:
        yield
    except but:
        raise
    except Exception:
        undo()
        raise


@contextmanager
def parents(folder: Path) -> Iterator[None]:
    """Make missing folders, and remove again those that stay empty."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    try:
        for path in reversed(missing):
            storage.make_folder(path)
            storage.sync_folder(path.parent)
        yield
    finally:
        for path in missing:
            try:
                storage.remove_folder(path)
            except OSError:
                break  # not empty: the output or its staging is there


def _put_back(output: Path, folder: Path) -> None:
    """Give a dataset its name again, if a run was killed between the two renames that were to replace it."""
    if folder.exists():
        return
    for staging in stagings(output):
        aside = _aside(staging.dataset)
        if aside.exists():
            log.warning("%s: the run that was replacing it was killed; the old version is put back first", folder)
            storage.rename(aside, folder)
            return


def remove_abandoned(output: Path, but: Staging | None) -> None:
    """Remove the staging of earlier runs for the same output; whoever holds the lock may."""
    for staging in stagings(output):
        if staging != but:
            log.info("removing the staging of an abandoned run: %s", staging.folder)
            staging.remove()


def staging_of(output: Path, run_id: str) -> Staging:
    """Where a run builds an output."""
    return Staging(output.parent / f".{output.name}.staging-{run_id[:8]}")


def stagings(output: Path) -> list[Staging]:
    """The staging folders of all runs for an output."""
    name = re.compile(re.escape(f".{output.name}.staging-") + "[0-9a-f]{8}")
    return [Staging(path) for path in storage.list_folder(output.parent) if name.fullmatch(path.name)]


def what_is_kept(staging: Staging) -> str:
    """What a message says of the work that was finished."""
    if not staging.folder.exists():
        return "nothing was written"
    return f"finished work is kept in {staging.folder}, and the same command resumes it"


def _publish(dataset: Path, output: Path) -> None:
    """Give `dataset` the name `output`, in one step; a directory that had the name is then at `dataset`.

    Its content is durable before, and its name after. Raises `OSError` where that fails, with all as it was before.
    """
    for folder, _, _ in os.walk(dataset):
        storage.sync_folder(Path(folder))
    is_taken = output.exists() and bool(storage.list_folder(output))
    if is_taken:
        _exchange(dataset, output)
    else:
        storage.rename(dataset, output)
    try:
        storage.sync_folder(output.parent)
        storage.sync_folder(dataset.parent)
    except OSError:
        if is_taken:
            _exchange(dataset, output)
        else:
            storage.rename(output, dataset)
        raise


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories; by renames where the kernel or file system cannot swap."""
    if storage.exchange(new, old):
        return
    aside = _aside(new)
    if aside.exists():
        storage.remove_tree(aside)
    storage.rename(old, aside)
    try:
        storage.rename(new, old)
        try:
            storage.rename(aside, new)
        except OSError:
            storage.rename(old, new)
            raise
    except OSError:
        storage.rename(aside, old)
        raise


def _aside(dataset: Path) -> Path:
    """Where the old version is between the renames."""
    return dataset.with_name("replaced")
