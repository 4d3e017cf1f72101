"""A lease on a place of an object store, for one run at a time: what a kernel lock is on a disk.

Its object is made where there is none, and written anew four times in the time that it is good for. Who finds one that
stays as it is for that time takes it over. Clocks are not compared: each run counts seconds of its own.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.base.errors import BusyError, TightpackError
from pipeline.base.objects.store import ObjectStore

log = logging.getLogger(__name__)

LEASE = ".lease"
"""The name of its object."""

SECONDS = 60.0
"""How long a lease is good for after it was written."""

RENEWED_AFTER = 15.0
"""Seconds from one writing to the next."""

_PATIENCE = 5.0  # seconds to wait for its end


class Lease:
    """A lease that this run holds."""

    def __init__(self, store: ObjectStore, busy: str) -> None:
        """busy: what to say where another run holds it."""
        self._store = store
        self._busy = busy
        self._run = uuid.uuid4().hex
        self._number = 0
        self._etag: str | None = None
        self._good_until = 0.0
        self._is_over = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self) -> None:
        """Take it, at once if there is none, and where another run's is not renewed any more. Raises `BusyError`."""
        while not self._wrote(lambda content: self._store.create(LEASE, content)):
            there = self._store.get(LEASE)
            if there is None:
                continue
            if self.watch(there.etag):
                if not self._rewrote(there.etag):
                    raise BusyError(self._busy)
                log.warning("%s: the run that held the lease is gone; it is taken over", self._store.url)
                break
        self._renewing.start()

    def require(self) -> None:
        """Raise `BusyError` if the lease may be another run's by now."""
        if time.monotonic() >= self._good_until:
            raise BusyError(
                f"{self._store.url}: the lease could not be renewed in time, and another run may have taken it over;"
                " run the same command again"
            )

    def release(self) -> None:
        """Give it back; what cannot be is told, and ends by itself."""
        self._is_over.set()
        giving = threading.Thread(target=self._give_back, name="lease", daemon=True)
        giving.start()
        giving.join(_PATIENCE)  # a store that does not answer does not keep the process

    def _give_back(self) -> None:
        self._renewing.join()
        if time.monotonic() >= self._good_until:
            return
        try:
            self._store.delete([LEASE])
        except TightpackError as error:
            log.warning("the lease is not given back, and is good for %g s more (%s)", SECONDS, error)

    def watch(self, etag: str) -> bool:
        """Wait as long as a lease is good for; False if there is none any more. Raises `BusyError` if it is renewed.

        etag: of what another run wrote.
        """
        log.info("%s: another run holds the lease, or was killed; watching it for %g s", self._store.url, SECONDS)
        until = time.monotonic() + SECONDS
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, RENEWED_AFTER / 3))
            there = self._store.get(LEASE)
            if there is None:
                return False
            if there.etag != etag:
                raise BusyError(self._busy)
        return True

    def _wrote(self, write: Callable[[bytes], str | None]) -> bool:
        began = time.monotonic()
        self._number += 1
        etag = write(json.dumps({"run": self._run, "number": self._number}).encode())
        if etag is None:
            return False
        self._etag, self._good_until = etag, began + SECONDS
        return True

    def _rewrote(self, etag: str) -> bool:
        return self._wrote(lambda content: self._store.replace(LEASE, content, etag))

    def _own_etag(self) -> str:
        """The ETag by which it is ours, where the answer to an earlier writing was lost; empty if it is another's."""
        there = self._store.get(LEASE)
        return there.etag if there is not None and self._run.encode() in there.data else ""

    def _renew(self) -> None:
        """Write it anew, until it is over or lost."""
        while not self._is_over.wait(RENEWED_AFTER):
            etag = self._etag
            assert etag is not None, "it was taken"
            try:
                if not self._rewrote(etag) and not ((own := self._own_etag()) and self._rewrote(own)):
                    self._good_until = 0.0
                    return
            except TightpackError as error:
                log.warning("the lease is not renewed yet (%s)", error)


class NoLease:
    """What stands for a lease where several processes write different objects, as long as nobody has one."""

    def __init__(self, store: ObjectStore, busy: str) -> None:
        self._store, self._busy = store, busy

    def require(self) -> None:
        """Raise `BusyError` if a run holds the lease: what it publishes is not to be written again."""
        if self._store.get(LEASE) is not None:
            raise BusyError(self._busy)


def refuse_leased(store: ObjectStore, busy: str) -> None:
    """Raise `BusyError` if a run holds the lease of a place, which takes a minute to see of one that was killed."""
    there = store.get(LEASE)
    if there is not None:
        Lease(store, busy).watch(there.etag)


@contextmanager
def leased(store: ObjectStore, busy: str) -> Iterator[Lease]:
    """Hold the lease of a place. busy: what to say where another run holds it. Raises `BusyError` with it."""
    lease = Lease(store, busy)
    lease.take()
    try:
        yield lease
    finally:
        lease.release()
