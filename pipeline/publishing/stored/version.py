"""A dataset on an object store: what is there of it, and how it gets there.

Shards, whose names are a run's own, go first. Then every other name is made on condition that it is not there:
`manifest.json` first, which claims the place for its run, and last what readers look for, its mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.digests import hash_bytes
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.objects.concurrency import side_by_side
from pipeline.base.objects.lease import LEASE, Lease
from pipeline.base.objects.store import Listed, ObjectStore
from pipeline.base.storage import FileFacts, read_bytes
from pipeline.format.manifest import MANIFEST, Manifest, ManifestError, parse_manifest, to_bytes
from pipeline.format.records import FileEntry

MARKS = ("dataset_dict.json", "state.json")
"""What readers look for first: who finds neither finds no dataset."""

_SHARD = re.compile(r"(?:.*/)?data-[0-9a-f]{8}-[^/]*\.arrow")


@dataclass(frozen=True, kw_only=True)
class Version:
    """What is there of a dataset."""

    store: ObjectStore
    objects: dict[str, Listed]
    """All but the lease, by name."""

    manifest: Manifest | None
    wrong: str = ""
    """Why its manifest cannot be read; empty if it can, or there is none."""

    unfinished: list[str] = field(default_factory=list)
    """What else is there of runs that never published."""

    is_damaged: bool = False
    """Whether it is published, and not as its manifest says."""

    @property
    def is_published(self) -> bool:
        """Whether readers find a dataset."""
        return any(mark in self.objects for mark in MARKS)

    def fault(self, *, by_checksum: bool) -> str | None:
        """The first file of its manifest that is missing or not as it should be; None if it is whole.

        by_checksum: whether not sizes alone are compared, but also the checksum that every object was made with.
        """
        assert self.manifest is not None, "it was claimed"
        for name, entry in self.manifest.files.items():
            if name not in self.objects or self.objects[name].bytes != entry.bytes:
                return name
            if by_checksum and not self.store.holds(name, _facts(entry)):
                return name
        mark = mark_of(self.manifest)
        content = self.store.get(mark)
        return None if content and hash_bytes(content.data) == self.manifest.files[mark].xxh3_128 else mark

    def remove(self) -> None:
        """Leave nothing; the mark goes first, the manifest last, so that what is left at any moment is unfinished."""
        self.store.delete([name for name in MARKS if name in self.objects])
        self.store.delete([name for name in self.objects if name not in (*MARKS, MANIFEST)])
        self.store.delete([name for name in (MANIFEST,) if name in self.objects])


def mark_of(manifest: Manifest) -> str:
    """Which of `MARKS` a dataset has."""
    return next(name for name in MARKS if name in manifest.files)


def look_at(store: ObjectStore) -> Version:
    """What is there below a store's prefix. Raises `ConfigError` for what is no dataset of ours, or part of one."""
    objects = store.listed()
    objects.pop(LEASE, None)
    content = store.get(MANIFEST) if MANIFEST in objects else None
    if content is None:
        shards = [name for name in objects if _SHARD.fullmatch(name)]
        other = next((name for name in objects if name not in shards), None)
        if other is not None:
            raise ConfigError(
                f"--output {store.url} holds {other} and no {MANIFEST}, so it is no dataset of ours; choose another"
            )
        return Version(store=store, objects=objects, manifest=None, unfinished=shards)
    try:
        manifest = parse_manifest(content.data, f"{store.url}/{MANIFEST}")
    except ManifestError as error:
        return Version(store=store, objects=objects, manifest=None, wrong=str(error))
    known = {MANIFEST, *manifest.files}
    strays = [name for name in objects if name not in known and _SHARD.fullmatch(name)]
    return Version(store=store, objects=objects, manifest=manifest, unfinished=strays)


def put_dataset(
    folder: Path,
    manifest: Manifest,
    store: ObjectStore,
    lease: Lease,
    old: ObjectStore | None,
    advance: Callable[[int], None],
) -> None:
    """Publish what stands in a folder.

    old: where the shards are that the folder has not, to be copied by the store; advance: is called with the bytes of
    each shard that is there. Raises `BusyError` where the lease is lost, and as the store.
    """
    entries = manifest.files
    there = store.listed()
    shards = {name: entry for name, entry in entries.items() if entry.is_shard}

    def put_shard(name: str) -> None:
        lease.require()
        entry = shards[name]
        if name not in there or not store.holds(name, _facts(entry)):
            if old is not None and not (folder / name).exists():
                store.copy(old, name, entry.bytes)
            else:
                store.upload(folder / name, name, _facts(entry))
        advance(entry.bytes)

    side_by_side(put_shard, shards)
    content = to_bytes(manifest)
    _claim(store, MANIFEST, content, FileFacts(bytes=len(content), xxh3_128=hash_bytes(content)), lease)
    mark = mark_of(manifest)
    for name in [*sorted(set(entries) - set(shards) - {mark}), mark]:
        _claim(store, name, read_bytes(folder / name), _facts(entries[name]), lease)


def _claim(store: ObjectStore, name: str, content: bytes, facts: FileFacts, lease: Lease) -> None:
    """Make an object of a fixed name, on condition that there is none; or mend what a run left there that is gone.

    Raises `BusyError` if another run is faster.
    """
    lease.require()
    if store.create(name, content, facts) is not None:
        return
    there = store.get(name)
    lease.require()
    if there is None or name == MANIFEST or store.replace(name, content, there.etag, facts) is None:
        raise BusyError(f"{store.url}/{name}: another run wrote it meanwhile; run the same command again")


def _facts(entry: FileEntry) -> FileFacts:
    return FileFacts(bytes=entry.bytes, xxh3_128=entry.xxh3_128)
