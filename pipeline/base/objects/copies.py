"""Copies, on a disk, of datasets on an object store: for a while, or to be read again."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base import storage
from pipeline.base.digests import hash_json
from pipeline.base.errors import BusyError, ConfigError, DataError, StorageError
from pipeline.base.lock import file_lock
from pipeline.base.objects.concurrency import side_by_side
from pipeline.base.objects.lease import LEASE
from pipeline.base.objects.store import Listed, ObjectStore
from pipeline.base.options import RunOptions
from pipeline.base.words import counted, leads_out

log = logging.getLogger(__name__)

LATEST = "latest"
"""What names the current one among several versions of a dataset: on a disk a link, on a store an object."""

VERSION = re.compile(r"[0-9a-f]{32}")
"""The name of a version."""

_LOOKS_AGAIN_AFTER = 0.2  # seconds, while another process makes the same copy


@contextmanager
def passing_copy(url: str | Path, option: str, run: RunOptions) -> Iterator[Path]:
    """A copy of a dataset, in a folder that is removed again. option: how messages call the URL.

    Raises `ConfigError`, `DataError`, `StorageError` and `BusyError`.
    """
    store = _dataset_at(url, option)
    with _told(), tempfile.TemporaryDirectory(prefix="copy-", dir=_folder(run, "downloads")) as folder:
        _fetch(store, _objects(store), Path(folder))
        yield Path(folder)


def kept_copy(url: str | Path, option: str, run: RunOptions = RunOptions()) -> Path:
    """A copy of a dataset that stays in the cache folder; it is made once, also where several processes want it.

    option: how messages call the URL. Raises as `passing_copy`.
    """
    store = _dataset_at(url, option)
    objects = _objects(store)
    if not objects:
        raise DataError(f"{option} {store.url}: there is nothing")
    etags = {name: [entry.bytes, entry.etag] for name, entry in objects.items()}
    with _told():
        folder = _folder(run, "copies")
        kept = folder / hash_json([store.url, etags])
        while not kept.exists():
            try:
                _keep(store, objects, kept)
            except _MadeElsewhere:
                time.sleep(_LOOKS_AGAIN_AFTER)
    log.info("%s is read from its copy in %s", store.url, kept)
    return kept


class _MadeElsewhere(BusyError):
    """Another process makes the copy."""


def _keep(store: ObjectStore, objects: dict[str, Listed], kept: Path) -> None:
    lock = file_lock(kept.with_name(f".{kept.name}.lock"), "")
    try:
        lock.__enter__()
    except BusyError:
        raise _MadeElsewhere from None
    try:
        if not kept.exists():
            part = kept.with_name(f".{kept.name}.part")
            if part.exists():  # of a process that was killed
                storage.remove_tree(part)
            storage.make_folder(part)
            _fetch(store, objects, part)
            storage.rename(part, kept)
            storage.sync_folder(kept.parent)
    finally:
        lock.__exit__(None, None, None)


def _dataset_at(url: str | Path, option: str) -> ObjectStore:
    """The objects of a dataset; at `LATEST`, those of the version that it names. Raises `ConfigError`."""
    store = ObjectStore.at(url, option)
    above, _, name = store.prefix.rstrip("/").rpartition("/")
    if name != LATEST or not above:
        return store
    versions = ObjectStore(store.bucket, f"{above}/")
    content = versions.get(LATEST)
    if content is None:
        return store
    version = content.data.decode(errors="replace").strip()
    if not VERSION.fullmatch(version):
        raise ConfigError(f"{option} {store.url} names no version")
    log.info("%s is the version %s", store.url, version)
    return versions.inside(version)


def _objects(store: ObjectStore) -> dict[str, Listed]:
    """The objects of a dataset. Raises `ConfigError` for versions, `DataError` for names that lead out of a folder."""
    objects = store.listed()
    objects.pop(LEASE, None)
    if LATEST in objects:
        raise ConfigError(f"{store.url} holds versions; name the current one, {store.url}/{LATEST}")
    for name in objects:
        if leads_out(name):
            raise DataError(f"{store.url}: the name of the object {name!r} leads out of the dataset, or is no file's")
    return objects


def _fetch(store: ObjectStore, objects: dict[str, Listed], folder: Path) -> None:
    """Write objects to a folder, some at once."""
    total = sum(entry.bytes for entry in objects.values())
    log.info("fetching %s from %s (%.1f MB)", counted(len(objects), "object"), store.url, total / 1e6)
    if storage.free_bytes(folder) < total:
        raise StorageError(f"{folder}: {total / 1e9:,.3f} GB are needed for a copy, {storage.free_text(folder)}")
    for parent in sorted({(folder / name).parent for name in objects}):
        storage.make_folders(parent)

    def fetch(name: str) -> None:
        store.download(name, folder / name)

    side_by_side(fetch, objects)


def _folder(run: RunOptions, name: str) -> Path:
    cache = run.resolved().cache_dir
    assert cache is not None
    storage.make_folders(cache / name)
    return cache / name


@contextmanager
def _told() -> Iterator[None]:
    """Turn faults of the disk into `StorageError`."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or 'the copy'}: {error.strerror or error}") from error
