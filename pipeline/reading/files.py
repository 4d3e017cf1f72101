"""Input files, wherever they lie."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec

from pipeline.base.errors import BusyError, DataError, TightpackError
from pipeline.base.storage import Step, perform
from pipeline.base.words import in_one_line

_MISSING = "it was removed, or is a link to what is not there"
_WAYS_OUT = {
    errno.EACCES: "let this user read it, or run as one who may",
    errno.EPERM: "let this user read it, or run as one who may",
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: _MISSING,
    errno.ELOOP: "it is a link that leads back to itself",
}
"""What to do where an input is out of reach for good."""

# What a file system says of a remote file's version, the most telling first; without any, nothing is remembered.
_VERSION_MARKS = ("ETag", "Content-MD5", "LastModified", "Last-Modified", "mtime", "created")


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One data file of an input."""

    system: fsspec.AbstractFileSystem
    path: str
    format: str
    """arrow, parquet or json."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """The names that URLs of its file system begin with, the first of which messages show."""
        return _protocols(self.system)

    @property
    def is_local(self) -> bool:
        """Whether it can be mapped where it lies."""
        return "file" in self.protocols

    @property
    def name(self) -> str:
        """Its name without folders."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def shown(self) -> str:
        """How messages name it."""
        return self.path if self.is_local else f"{self.protocols[0]}://{self.path}"

    def version(self) -> str:
        """What changes when the file is written to or replaced; empty where the file system does not tell.

        Of local files size, time of modification and inode: a hard link, or another owner, is the same version.
        """
        if self.is_local:
            _require_utf8(self.path)
            with permitted(self.shown, self.path):
                facts = os.stat(self.path)
            if not stat.S_ISREG(facts.st_mode):
                raise DataError(f"input {self.shown}: a pipe, a device or a folder; write its content to a file")
            return f"size={facts.st_size} mtime_ns={facts.st_mtime_ns} inode={facts.st_ino}"
        with reaching(self.shown, self.system):
            info = self.system.info(self.path)
        mark = next((mark for mark in _VERSION_MARKS if mark in info), None)
        return f"{mark}={info[mark]} size={info.get('size')}" if mark else ""

    def size(self) -> int:
        """Its bytes."""
        with reaching(self.shown, self.system):
            return int(self.system.size(self.path) or 0)


def require_version(file: InputFile, version: str) -> None:
    """Raise `DataError` if a file is not in a version any more."""
    if file.version() != version:
        raise DataError(f"{file.shown}: changed while it was being packed; run again once it is complete")


def _protocols(system: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


@contextmanager
def reaching(name: str, system: fsspec.AbstractFileSystem) -> Iterator[None]:
    """Turn whatever a remote file system's library raises into one message; local faults pass as they are.

    Raises `DataError` for what is missing or forbidden (on a local disk, for the latter), `BusyError` for what may
    pass.
    """
    try:
        perform(Step("look", name), lambda: None)
        yield
    except TightpackError:
        raise
    except Exception as error:
        if "file" in _protocols(system):
            if isinstance(error, OSError) and error.errno in _WAYS_OUT:
                raise _out_of_reach(name, error) from None
            raise
        message = f"input {name}: {in_one_line(error)}"
        final = isinstance(error, FileNotFoundError | PermissionError) or "Credentials" in type(error).__name__
        raise (DataError if final else BusyError)(message) from None


@contextmanager
def permitted(name: str, path: object) -> Iterator[None]:
    """Raise `DataError` where an input may not be read, or is not there; other faults pass, and those of other files.

    name: how messages name it; path: where it is opened, of which only a path on disk is looked at.
    """
    try:
        yield
    except OSError as error:
        if error.filename != path or error.errno not in _WAYS_OUT:
            raise
        raise _out_of_reach(name, error) from None


def _out_of_reach(name: str, error: OSError) -> DataError:
    return DataError(f"input {name}: {error.strerror}; {_WAYS_OUT[error.errno or 0]}")


def _require_utf8(path: str) -> None:
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"input {shown}: its name, or a folder's, is not in UTF-8; rename it, or link to it") from None
