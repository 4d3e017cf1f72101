"""A publication on an object store: built on a disk, under a lease, then uploaded so that nothing half is ever seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from pipeline.base import storage
from pipeline.base.errors import BusyError, StorageError
from pipeline.base.lock import file_lock
from pipeline.base.objects.lease import Lease, leased
from pipeline.base.progress import ProgressCallback, stage
from pipeline.base.staging import Staging
from pipeline.format.identity import Identity
from pipeline.format.manifest import Manifest, read_manifest
from pipeline.publishing.output import lock_path
from pipeline.publishing.publication import (
    Publication,
    remove_abandoned,
    staging_of,
    telling_what_is_kept,
    undone,
    what_is_kept,
)
from pipeline.publishing.stored.place import StoredPlace
from pipeline.publishing.stored.uploads import Uploads
from pipeline.publishing.stored.version import put_dataset

log = logging.getLogger(__name__)

_KEPT = (OSError, BusyError, StorageError)
"""The errors after which finished work stays on the disk and the store, to be taken up."""


@contextmanager
def stored_publication(
    place: StoredPlace, identity: Identity, *, overwrite: bool, base: Manifest | None, progress: ProgressCallback | None
) -> Iterator[Publication]:
    """Hold the lease of an output; what the block leaves in `staging.dataset` is published when it ends.

    overwrite: mend this run where it is damaged; base: what is there and appended to.

    After a fault of a disk or the store, or an interruption, finished work stays on the disk and the store, and the
    same run takes it up; after any other error nothing is left on the disk. Raises as `publication`.
    """
    local, busy = place.local, busy_store(place)
    staging = staging_of(local, identity.run_id)
    with telling_what_is_kept(staging, place.store.url):
        storage.make_folders(local.parent)
        with file_lock(lock_path(local), busy), leased(place.store, busy) as lease:
            log.info("run %s", identity.run_id, extra={"run_id": identity.run_id})
            place.refuse_others(base)
            existing = place.prepare(identity, overwrite=overwrite)
            remove_abandoned(local, but=None if existing else staging)
            try:
                if existing is not None:
                    yield Publication(staging, existing)
                    place.settle(identity.run_id, lease)
                    return
                uploads = Uploads(place.at(identity.run_id), identity.run_id, lease)
                with undone(staging.remove, _KEPT), undone(uploads.forget, _KEPT), closing(uploads):
                    staging.open()
                    yield Publication(replace(staging, mirror=uploads), None)
                    uploads.finish()
                    _upload(place, identity, staging, lease, base, progress)
                    place.settle(identity.run_id, lease)
                    staging.remove()
            except (BusyError, StorageError) as error:
                raise type(error)(f"{error}; {what_is_kept(staging)}") from error


def busy_store(place: StoredPlace) -> str:
    """What is said where another run holds the lease."""
    return f"another run is writing {place.store.url}; wait for it, or choose another --output"


def _upload(
    place: StoredPlace,
    identity: Identity,
    staging: Staging,
    lease: Lease,
    base: Manifest | None,
    progress: ProgressCallback | None,
) -> None:
    manifest = read_manifest(staging.dataset)
    total = sum(entry.bytes for entry in manifest.files.values() if entry.is_shard)
    target, old = place.at(identity.run_id), None if base is None else place.at(base.run_id)
    with stage(progress, "uploading", total, "B") as advance:
        put_dataset(staging.dataset, manifest, target, lease, old, advance)
