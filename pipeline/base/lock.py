"""A kernel lock on a file, for one run at a time."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.base import storage
from pipeline.base.errors import BusyError

log = logging.getLogger(__name__)


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


def refuse_locked(path: Path, busy: str) -> None:
    """Raise `BusyError` if a process holds the lock of a file now."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return  # there is none, or what is wrong shows when it is locked
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
