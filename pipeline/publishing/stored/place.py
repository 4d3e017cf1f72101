"""Where a run publishes on an object store: under the output's own name, or as one of several versions inside it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from pipeline.base.digests import hash_bytes
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.objects.copies import LATEST, VERSION
from pipeline.base.objects.lease import Lease
from pipeline.base.objects.store import ObjectStore
from pipeline.base.staging import Staging
from pipeline.base.storage import make_folder
from pipeline.base.words import counted
from pipeline.format.identity import Identity
from pipeline.format.manifest import Manifest
from pipeline.format.records import FileEntry
from pipeline.publishing.existing import another_run, refuse_other_kind
from pipeline.publishing.finishing import Base
from pipeline.publishing.place import OF_DATASETS, Versioning
from pipeline.publishing.stored.version import Version, look_at

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredPlace(Versioning):
    """The place of an output on an object store, where `LATEST` is an object that names the current version."""

    store: ObjectStore
    """Below the URL that the user named."""

    cache: Path
    """The folder where it is built before it is uploaded."""

    @property
    def name(self) -> str:
        """How messages call what is there."""
        return f"{self.store.url}/{LATEST}" if self.versioned else self.store.url

    @property
    def local(self) -> Path:
        """What stands for the output on the disk where it is built."""
        return self.cache / "outputs" / hash_bytes(self.store.url.encode())

    @property
    def scratch(self) -> Path:
        """As of `Place`."""
        return self.local.parent

    def folder(self, run_id: str, _: str | Path | None = None) -> str:
        """Where a run's dataset is to be."""
        return self.at(run_id).url

    def there(self, kind: str) -> Manifest | None:
        """The manifest of the current version, None if there is none. kind: packed or tokenized.

        Raises `ConfigError` for anything but a dataset of that kind.
        """
        current = self._current
        if current is None:
            return None
        version = look_at(self.at(current))
        if version.manifest is None or not version.is_published:
            why = version.wrong or "it is not there"
            raise ConfigError(f"--output {self.store.url}/{LATEST} names {current}, and that is no dataset ({why})")
        refuse_other_kind(version.store.url, version.manifest, kind)
        return version.manifest

    def existing(self, identity: Identity, *, overwrite: bool, base: Manifest | None) -> Manifest | None:
        """The manifest of what is there, if it is this run. Raises as `look`."""
        version = self.look(identity, overwrite=overwrite)
        return version.manifest if version.is_published and not version.is_damaged else None

    def base(self, there: Manifest | None) -> Base | None:
        """What is appended to; None for a first run."""
        return None if there is None else _StoredBase(self.store.url, there, self.at(there.run_id))

    def before(self, there: Manifest | None, staging: Staging) -> Path | None:
        """A folder with the files of what is appended to, but for its shards and manifest; None for a first run.

        Raises as the store.
        """
        if there is None:
            return None
        folder = staging.folder / "before"
        make_folder(folder)
        for name, entry in there.files.items():
            if not entry.is_shard and "/" not in name:
                self.at(there.run_id).download(name, folder / name)
        return folder

    def refuse_others(self, base: Manifest | None) -> None:
        """As of `Place`."""
        names = sorted(self.store.names())
        if not self.versioned:
            if LATEST in names:
                raise ConfigError(f"--output {self.store.url} holds versions; add --versioned, or choose another")
            return
        plain = next((name for name in OF_DATASETS if name in names), None)
        if plain is not None:
            raise ConfigError(
                f"--versioned: {self.store.url} is a dataset itself (it has {plain}); choose another --output for"
                " versions"
            )
        strange = next((name for name in names if not _is_of_versions(name)), None)
        if strange is not None and not any(VERSION.fullmatch(name.rstrip("/")) for name in names):
            raise ConfigError(f"--versioned: {self.store.url} holds {strange} and no version; choose another --output")
        if base is not None:
            if self._current != base.run_id:
                raise BusyError(f"another run replaced {self.store.url}/{LATEST} meanwhile; run the same command again")
            damaged = look_at(self.at(base.run_id)).fault(by_checksum=False)
            if damaged:
                raise ConfigError(f"--output {self.at(base.run_id).url}: {damaged} is damaged; pack all of it anew")

    def look(self, identity: Identity, *, overwrite: bool) -> Version:
        """What is where a run is to publish. Raises `ConfigError` if that is in the way.

        overwrite: whether this run is mended where it is damaged, which is then told by checksums, too.
        """
        version = look_at(self.at(identity.run_id))
        if version.wrong:
            raise ConfigError(
                f"--output {version.store.url} exists and is not what would be written ({version.wrong}); choose"
                " another output"
            )
        there = version.manifest
        if there is None or not version.is_published:
            return version
        if there.run_id != identity.run_id:
            way_out = "choose another output, or keep versions of it with --versioned"
            raise another_run(version.store.url, there, identity, way_out)
        damaged = version.fault(by_checksum=overwrite)
        if damaged and not overwrite:
            way_out = "--overwrite writes it anew" if self.versioned else "remove it, and run the same command again"
            raise ConfigError(f"--output {version.store.url} is this run, but {damaged} is damaged; {way_out}")
        return replace(version, is_damaged=damaged is not None)

    def prepare(self, identity: Identity, *, overwrite: bool) -> Manifest | None:
        """The manifest of what is there, if it is this run; otherwise what runs left unfinished is removed, but for
        the finished shards of this one. Raises as `look`. The lease is held."""
        version = self.look(identity, overwrite=overwrite)
        if version.is_published and not version.is_damaged:
            return version.manifest
        aborted = version.store.abort_uploads()
        if version.manifest is not None and (version.is_damaged or version.manifest.run_id != identity.run_id):
            what = "damaged" if version.is_damaged else "what another run left unfinished"
            log.info("removing %s: %s", what, counted(len(version.objects), "object"))
            version.remove()
            return None
        ours = f"data-{identity.run_id[:8]}-"
        strays = [
            name for name in version.unfinished if not (self.versioned or name.rpartition("/")[2].startswith(ours))
        ]
        if strays or aborted:
            log.info("removing %s that other runs left unfinished", counted(len(strays) + aborted, "object"))
            version.store.delete(strays)
        return None

    def settle(self, run_id: str, lease: Lease) -> None:
        """Let `LATEST` name a run, and remove the versions that are too many, and those that are unfinished."""
        if not self.versioned:
            return
        latest = self.store.get(LATEST)
        content = run_id.encode()
        lease.require()
        if latest is None:
            etag = self.store.create(LATEST, content)
        else:
            etag = latest.etag if latest.data == content else self.store.replace(LATEST, content, latest.etag)
        if etag is None:
            raise BusyError(f"{self.store.url}/{LATEST}: another run wrote it meanwhile; run the same command again")
        self._prune(run_id, lease)

    def _prune(self, run_id: str, lease: Lease) -> None:
        """Remove what runs left unfinished, and all but the newest versions."""
        others = [name.rstrip("/") for name in self.store.names() if name.endswith("/") and name[:-1] != run_id]
        published: list[tuple[datetime, str, Version]] = []
        for name in others:
            if not VERSION.fullmatch(name):
                continue
            version = look_at(self.at(name))
            if version.is_published:
                published.append((max(entry.modified for entry in version.objects.values()), name, version))
            else:
                lease.require()
                log.info("removing the version %s, which was never finished", name)
                version.store.abort_uploads()
                version.remove()
        if self.keep is None:
            return
        for _, name, version in sorted(published, key=lambda each: each[:2], reverse=True)[self.keep :]:
            lease.require()
            version.remove()
            log.info("removed the version %s", name)

    @property
    def _current(self) -> str | None:
        """The version that `LATEST` names. Raises `ConfigError` if it names none."""
        content = self.store.get(LATEST)
        if content is None:
            return None
        name = content.data.decode(errors="replace").strip()
        if not VERSION.fullmatch(name):
            raise ConfigError(f"--output {self.store.url}/{LATEST} names no version; choose another output")
        return name

    def at(self, run_id: str) -> ObjectStore:
        """Where the objects of a run are to be."""
        return self.store.inside(run_id) if self.versioned else self.store


@dataclass(frozen=True)
class _StoredBase(Base):
    """The version that is appended to; its shards are copied by the store, as the new version is published."""

    store: ObjectStore

    def link_shards(self, _: Path, schema: pa.Schema) -> dict[str, FileEntry]:
        """Its shards by path. Raises as of `Base`."""
        entries = {path: entry for path, entry in self.manifest.files.items() if entry.is_shard}
        for path in list(entries)[:1]:  # whatever was appended before has the same columns
            columns = self.store.read(path, lambda body: pa.ipc.open_stream(pa.PythonFile(body, "r")).schema.names)
            self.require_same(columns, schema)
        return entries


def _is_of_versions(name: str) -> bool:
    return name == LATEST or name.startswith(".") or VERSION.fullmatch(name.rstrip("/")) is not None
