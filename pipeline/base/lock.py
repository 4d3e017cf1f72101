"""Kernel locks on files: for one run at a time, or shared by readers."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base import storage
from pipeline.base.errors import BusyError

log = logging.getLogger(__name__)

_TRIED_EVERY = 0.05  # seconds


@contextmanager
def file_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of a file that is made for it, and removed while it is still held.

    A waiting process may thus lock a file that has no name any more: hence open, lock, compare inodes.

    busy: what to say where another process holds the lock. Raises `BusyError` with it, and `OSError`.
    """
    while True:
        try:
            descriptor = storage.lock(path)
        except BlockingIOError:
            raise BusyError(busy) from None
        if _is_named(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        try:
            storage.remove(path)
        except OSError as error:
            log.warning("%s could not be removed (%s); it locks nothing any more", path, error.strerror)
        finally:
            os.close(descriptor)


@contextmanager
def shared_file_lock(path: Path, busy: str, patience: float) -> Iterator[None]:
    """Hold the lock of a file, made for it, together with others who hold it so; the last of them removes it.

    patience: how many seconds to try where a process has it alone, be it for the moment in which it looks whether it is
    the last. busy: what to say then. Raises `BusyError` with it, and `OSError`.
    """
    until = time.monotonic() + patience
    while True:
        try:
            descriptor = storage.lock(path, is_shared=True)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise BusyError(busy) from None
            time.sleep(_TRIED_EVERY)
            continue
        if _is_named(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(descriptor, path):  # another may have had it in between
                storage.remove(path)
        except OSError:
            pass  # others hold it, or it stays, and locks nothing any more
        finally:
            os.close(descriptor)


class SharedLock:
    """The lock of a file, shared with others who read: as long as this object lives, nobody has it alone."""

    def __init__(self, path: Path) -> None:
        """Raises `BlockingIOError` where somebody has it alone, or the file has another name now; and `OSError`."""
        descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not _is_named(descriptor, path):
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))


def refuse_locked(path: Path, busy: str, *, is_shared: bool = False) -> None:
    """Raise `BusyError` if a process holds the lock of a file now. is_shared: one that has it alone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return  # there is none, or what is wrong shows when it is locked
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(busy) from None
    finally:
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)
