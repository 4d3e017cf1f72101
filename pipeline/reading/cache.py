"""What is remembered of input files: their content hashes, and copies of remote ones for the time of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from pipeline.base import storage
from pipeline.base.digests import hash_blocks, hash_file
from pipeline.base.errors import BusyError
from pipeline.base.lock import file_lock
from pipeline.base.storage import write_file
from pipeline.reading.decoding.foreign import compression_of
from pipeline.reading.files import InputFile, permitted, reaching, require_version
from pipeline.reading.remote.ranges import Place, RemoteFile, is_ranged, open_place, unchanged

log = logging.getLogger(__name__)

_COPIED_BYTES = 1 << 23
"""Up to this size a remote file is fetched whole, which is one request for all that is read of it."""

_HASHED_BYTES = 1 << 20

_POLLED_EVERY = 0.2  # seconds

_SETTLED_SECONDS = 2.0  # a file younger than this may change again within the same timestamp


class FileCache:
    """Remembers content hashes under a cache folder, and holds copies of remote files there until it is left."""

    def __init__(self, folder: Path, *, rehash: bool = False) -> None:
        """folder: where it lies; rehash: do not believe the hashes that are remembered, but renew them."""
        self.folder = folder
        self._believes = not rehash
        self._hashes = self.folder / "hashes"
        self._downloads = self.folder / "downloads"
        self._seen: dict[InputFile, str] = {}
        self._copies: dict[InputFile, str] = {}
        self._is_writable = True

    def __enter__(self) -> FileCache:
        return self

    def __exit__(self, *exception: object) -> None:
        for copy in self._copies.values():
            Path(copy).unlink(missing_ok=True)

    def content_hash(self, file: InputFile) -> str:
        """The hash of a file's bytes; remembered by its path and `InputFile.version`.

        A cache that cannot be read or written only costs time.
        """
        entry = self._entry(file)
        if entry is None:
            return self._hashed(file)
        remembered = self._remembered(entry)
        if remembered is not None:
            return remembered
        seen_at = time.time()
        digest = self._hashed(file)
        settled = os.stat(file.path).st_ctime if file.is_local else 0.0
        if seen_at - settled > _SETTLED_SECONDS and self._is_writable:
            self._remember(entry, {"file": file.shown, "xxh3_128": digest})
        return digest

    def _entry(self, file: InputFile) -> Path | None:
        """Where the hash of a file is remembered; None of one whose version is not known."""
        version = self._seen.setdefault(file, file.version())
        if not version:
            return None
        path = os.path.realpath(file.path) if file.is_local else file.shown
        return self._hashes / hashlib.sha256(f"{path} {version}".encode()).hexdigest()[:32]

    def _remembered(self, entry: Path) -> str | None:
        if not self._believes:
            return None
        try:
            return str(json.loads(storage.read_bytes(entry))["xxh3_128"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def shared_hash(self, file: InputFile, *, is_patient: bool) -> str | None:
        """As `content_hash`, but of processes that share a run, and this cache, one hashes a file.

        is_patient: wait for it as long as it lives; otherwise None where another one hashes the file now.
        """
        entry = self._entry(file)
        if entry is None or self._remembered(entry) is not None:
            return self.content_hash(file)
        while True:
            with ExitStack() as held:
                try:
                    storage.make_folders(self._hashes)
                    held.enter_context(file_lock(entry.with_suffix(".claim"), ""))
                except BusyError:
                    if not is_patient:
                        return None
                    time.sleep(_POLLED_EVERY)
                    continue
                except OSError:
                    pass  # a cache that cannot be written only costs time
                return self.content_hash(file)

    def _hashed(self, file: InputFile) -> str:
        place = self.place(file)
        if isinstance(place, RemoteFile):
            log.info("reading %s (%.1f MB) for its content hash", file.shown, place.size / 1e6)
            with unchanged(place), open_place(place) as content:
                return hash_blocks(iter(lambda: content.read(_HASHED_BYTES), b""))
        with permitted(file.shown, place):
            return hash_file(place)

    def _remember(self, entry: Path, content: dict[str, str]) -> None:
        """Write an entry; where that fails, say so once."""
        try:
            storage.make_folders(self._hashes)
            write_file(entry, json.dumps(content).encode(), is_shared=True)
        except OSError as error:
            self._is_writable = False
            log.warning("content hashes of inputs are not remembered: %s", error)

    def local_path(self, file: InputFile) -> str:
        """A path that can be opened and memory-mapped; remote files are fetched once.

        The copy is this run's own, so that runs beside it cannot take it away. Raises `DataError` if what is
        fetched is not the version that was looked at.
        """
        if file.is_local:
            return file.path
        if file not in self._copies:
            self._seen.setdefault(file, file.version())
            storage.make_folders(self._downloads)
            log.info("fetching %s (%.1f MB) into %s", file.shown, file.size() / 1e6, self._downloads)
            descriptor, copy = tempfile.mkstemp(dir=self._downloads)
            os.close(descriptor)
            self._copies[file] = copy
            with reaching(file.shown, file.system):
                file.system.get_file(file.path, copy)
                file.system.invalidate_cache()
                require_version(file, self._seen[file])
        return self._copies[file]

    def place(self, file: InputFile) -> Place:
        """Where a file is opened that is read from one end to the other: a path that can be opened, or a large remote
        file itself, where it can be read by ranges.

        That can be so of parquet, and of JSON that is not compressed, on an object store. Raises as `local_path`.
        """
        if file.is_local or file.format == "arrow" or compression_of(file) or not is_ranged(file):
            return self.local_path(file)
        version, size = self._seen.setdefault(file, file.version()), file.size()
        if not version or size <= _COPIED_BYTES:
            return self.local_path(file)
        return RemoteFile(file=file, version=version, size=size)

    def require_unchanged(self) -> None:
        """Raise `DataError` if a local file was written to or replaced since it was hashed.

        Remote files are packed from a copy, or looked at again whenever something was read of them.
        """
        for file in self._seen:
            if file.is_local:
                require_version(file, self._seen[file])
