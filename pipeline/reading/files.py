"""Input files, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec

from pipeline.base.errors import BusyError, DataError, TightpackError
from pipeline.base.storage import Step, perform
from pipeline.base.words import in_one_line

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
    def is_local(self) -> bool:
        """Whether it can be mapped where it lies."""
        return "file" in _protocols(self.system)

    @property
    def name(self) -> str:
        """Its name without folders."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def shown(self) -> str:
        """How messages name it."""
        return self.path if self.is_local else f"{_protocols(self.system)[0]}://{self.path}"

    def version(self) -> str:
        """What changes when the file is written to or replaced; empty where the file system does not tell.

        Of local files size, time of modification and inode: a hard link, or another owner, is the same version.
        """
        if self.is_local:
            facts = os.stat(self.path)
            return f"size={facts.st_size} mtime_ns={facts.st_mtime_ns} inode={facts.st_ino}"
        with reaching(self.shown, self.system):
            info = self.system.info(self.path)
        mark = next((mark for mark in _VERSION_MARKS if mark in info), None)
        return f"{mark}={info[mark]} size={info.get('size')}" if mark else ""

    def size(self) -> int:
        """Its bytes."""
        with reaching(self.shown, self.system):
            return int(self.system.size(self.path) or 0)


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
            if isinstance(error, PermissionError):
                raise _forbidden(name, error) from None
            raise
        message = f"input {name}: {in_one_line(error)}"
        final = isinstance(error, FileNotFoundError | PermissionError) or "Credentials" in type(error).__name__
        raise (DataError if final else BusyError)(message) from None


@contextmanager
def permitted(name: str, path: str) -> Iterator[None]:
    """Raise `DataError` where an input may not be read; other faults pass, and those of other files.

    name: how messages name it; path: where it is opened.
    """
    try:
        yield
    except PermissionError as error:
        if error.filename != path:
            raise
        raise _forbidden(name, error) from None


def _forbidden(name: str, error: PermissionError) -> DataError:
    return DataError(f"input {name}: {error.strerror}; let this user read it, or run as one who may")
