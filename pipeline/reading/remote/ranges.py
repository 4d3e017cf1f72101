"""Places where input files are opened: on disk, or ranges of remote ones, with what comes next on its way already."""

from __future__ import annotations

import functools
import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import BusyError
from pipeline.base.storage import Step, arrow_file, perform
from pipeline.reading.files import InputFile, reaching, require_version

_BLOCK_BYTES = 1 << 22
"""What is asked for at once of what is read from its beginning to its end, but for the first time."""

_FIRST_BYTES = 1 << 20
"""What is asked for first, as nothing may be read after; answers up to this size are remembered, of the last few."""

_AHEAD = 3
"""Blocks that are on their way behind the one that is read."""

_RANGED = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss")
"""Protocols of object stores, all of which answer to ranges."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of an object store that is read by ranges, as long as it is the version that was looked at."""

    file: InputFile
    version: str
    size: int

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes start..stop-1, in one request. Raises as `reaching`."""
        return (_remembered if stop - start <= _FIRST_BYTES else _fetched)(self, start, stop)

    def require_same(self) -> None:
        """Raise `DataError` if it is another version now."""
        self.file.system.invalidate_cache()
        require_version(self.file, self.version)


Place = str | RemoteFile
"""Where a file is opened: the path of the file or of a copy, or the remote file itself."""


def is_ranged(file: InputFile) -> bool:
    """Whether ranges of a remote file can be asked for."""
    return any(protocol in _RANGED for protocol in file.protocols)


def open_place(place: Place, spans: Sequence[range] | None = None, num_streams: int = 1) -> pa.NativeFile:
    """Open a file for Arrow, which reads it piece by piece.

    spans: what will be read of it, each from its beginning to its end, so many of them in turn, None for all of it;
    nothing else of a remote file is fetched unasked. Raises as `reaching`.
    """
    if isinstance(place, str):
        return arrow_file(place)
    return pa.PythonFile(_Ranges(place, [range(place.size)] if spans is None else spans, num_streams), mode="r")


def head_of(place: Place, size: int) -> bytes:
    """The first bytes of a file."""
    with open_place(place, []) as opened:
        return bytes(opened.read(size))


def size_of(place: Place) -> int:
    """The bytes of a file."""
    return os.stat(place).st_size if isinstance(place, str) else place.size


@contextmanager
def unchanged(place: Place) -> Iterator[None]:
    """Raise `DataError` where a remote file is another version after what was read of it, whatever came of that."""
    try:
        yield
    except Exception:
        if isinstance(place, RemoteFile):
            place.require_same()
        raise
    if isinstance(place, RemoteFile):
        place.require_same()


def _fetched(remote: RemoteFile, start: int, stop: int) -> bytes:
    shown, system, path = remote.file.shown, remote.file.system, remote.file.path
    with reaching(shown, system):
        content: bytes = perform(Step("get", shown), lambda: system.cat_file(path, start=start, end=stop))
    if len(content) != stop - start:
        raise BusyError(f"input {shown}: {len(content):,} bytes came where {stop - start:,} were asked for; run again")
    return content


_remembered = functools.lru_cache(maxsize=16)(_fetched)  # heads and footers, which several steps look at


class _Ranges(io.RawIOBase):
    """A remote file as one that can be read anywhere."""

    def __init__(self, remote: RemoteFile, spans: Sequence[range], num_streams: int) -> None:
        self._remote = remote
        self._blocks = [block for span in _joined(spans) for block in _blocks_of(span)]
        self._starts = [block.start for block in self._blocks]
        self._most = (_AHEAD + 2) * num_streams
        self._coming: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where reading goes on."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go on elsewhere."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._remote.size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, all that are asked for unless the file ends."""
        end = self._remote.size if size is None or size < 0 else min(self._at + size, self._remote.size)
        parts = []
        while self._at < end:
            parts.append(self._part(self._at, end))
            self._at += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Wait for nothing that is on its way."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _part(self, at: int, end: int) -> bytes:
        """Some of bytes at..end-1, from the first on."""
        number = bisect_right(self._starts, at) - 1
        if number >= 0 and at in self._blocks[number]:
            start = self._blocks[number].start
            return self._block(number)[at - start : end - start]
        stop = self._starts[number + 1] if number + 1 < len(self._starts) else end
        return self._remote.fetch(at, min(end, stop))

    def _block(self, number: int) -> bytes:
        """A block; those behind it come after, once there is one that was read to its end."""
        is_first = number not in self._coming and number - 1 not in self._coming
        last = number if is_first else min(number + _AHEAD, len(self._blocks) - 1)
        for one in range(number, last + 1):
            if one not in self._coming:
                self._coming[one] = self._submit(self._blocks[one])
            self._coming.move_to_end(one)
        self._coming.move_to_end(number)
        while len(self._coming) > self._most:
            self._coming.popitem(last=False)
        return self._coming[number].result()

    def _submit(self, block: range) -> Future[bytes]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AHEAD + 1, thread_name_prefix="tightpack-ranges")
        return self._pool.submit(self._remote.fetch, block.start, block.stop)


def _joined(spans: Sequence[range]) -> Iterator[range]:
    """Spans in their order, those that touch as one."""
    whole: range | None = None
    for span in sorted(spans, key=lambda span: span.start):
        if whole is None or span.start > whole.stop:
            if whole is not None:
                yield whole
            whole = span
        else:
            whole = range(whole.start, max(whole.stop, span.stop))
    if whole is not None:
        yield whole


def _blocks_of(span: range) -> Iterator[range]:
    start, size = span.start, _FIRST_BYTES
    while start < span.stop:
        yield range(start, min(start + size, span.stop))
        start, size = start + size, _BLOCK_BYTES
