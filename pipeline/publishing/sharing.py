"""One run in many processes: each holds the output's place beside the others, and leaves its share in staging."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.base import storage
from pipeline.base.errors import BusyError
from pipeline.base.lock import shared_file_lock
from pipeline.base.objects.lease import NoLease, refuse_leased
from pipeline.base.staging import Staging
from pipeline.format.identity import Identity
from pipeline.format.manifest import Manifest
from pipeline.publishing.output import busy_message, lock_path
from pipeline.publishing.place import Place
from pipeline.publishing.publication import Publication, parents, staging_of, stagings, telling_what_is_kept
from pipeline.publishing.stored.place import StoredPlace
from pipeline.publishing.stored.publication import busy_store
from pipeline.publishing.stored.uploads import Uploads
from pipeline.publishing.stored.version import look_at
from pipeline.publishing.target import AnyPlace

log = logging.getLogger(__name__)

_PATIENCE = 2.0
"""Seconds in which a process that is about to end, and looks whether it is the last, lets go of the lock."""


@contextmanager
def contribution(
    place: AnyPlace, identity: Identity, *, overwrite: bool, base: Manifest | None, wait: float
) -> Iterator[Publication]:
    """Hold an output's place together with other processes of the same run. Nothing is published, and nothing removed.

    overwrite, base: as of `publication_at`; wait: how many seconds to wait for a run that has it alone. What the block
    leaves in staging stays there, however it ends. Raises `BusyError` while a run has the place alone, else as
    `publication_at`.
    """
    if isinstance(place, StoredPlace):
        holding = _of_store(place, identity, overwrite=overwrite, base=base, patience=max(wait, _PATIENCE))
    else:
        holding = _of_disk(place, identity, overwrite=overwrite, base=base, patience=max(wait, _PATIENCE))
    with holding as publication:
        yield publication


def require_begun(place: AnyPlace, run_id: str) -> None:
    """Raise `BusyError` where no process left anything of a run: what others left would be cleared away for it."""
    if isinstance(place, StoredPlace):
        left = look_at(place.at(run_id)).unfinished
        is_begun = any(name.rpartition("/")[2].startswith(f"data-{run_id[:8]}-") for name in left)
    else:
        is_begun = staging_of(place.output, run_id).folder.exists()
    if not is_begun:
        raise BusyError(
            f"it is too early for --finish: no task has left anything of run {run_id} beside {place.name}; inputs and"
            " options have to be those of the tasks"
        )


@contextmanager
def _of_disk(
    place: Place, identity: Identity, *, overwrite: bool, base: Manifest | None, patience: float
) -> Iterator[Publication]:
    output = place.output
    staging = staging_of(output, identity.run_id)
    with (
        telling_what_is_kept(staging, output),
        parents(output.parent),
        shared_file_lock(lock_path(output), busy_message(output), patience),
    ):
        _tell_of_others(output, staging)
        yield _opened(place, staging, identity, overwrite=overwrite, base=base)


@contextmanager
def _of_store(
    place: StoredPlace, identity: Identity, *, overwrite: bool, base: Manifest | None, patience: float
) -> Iterator[Publication]:
    local, busy = place.local, busy_store(place)
    staging = staging_of(local, identity.run_id)
    with telling_what_is_kept(staging, place.store.url):
        storage.make_folders(local.parent)
        with shared_file_lock(lock_path(local), busy, patience):
            refuse_leased(place.store, busy)
            opened = _opened(place, staging, identity, overwrite=overwrite, base=base)
            uploads = Uploads(place.at(identity.run_id), identity.run_id, NoLease(place.store, busy))
            with closing(uploads):
                yield replace(opened, staging=replace(staging, mirror=uploads))
                uploads.finish()


def _tell_of_others(output: Path, staging: Staging) -> None:
    """Say where tasks of another run left something of the same output: their inputs or options were others."""
    others = [other.folder.name.rpartition("-")[2] for other in stagings(output) if other != staging]
    if others:
        own = staging.folder.name.rpartition("-")[2]
        log.warning(
            "this is run %s, and of run %s something lies beside %s, too: tasks that share a run have the same inputs"
            " and options",
            own,
            ", ".join(others),
            output,
        )


def _opened(
    place: AnyPlace, staging: Staging, identity: Identity, *, overwrite: bool, base: Manifest | None
) -> Publication:
    place.refuse_others(base)
    existing = place.existing(identity, overwrite=overwrite, base=base)
    if existing is None:
        staging.open(is_shared=True)
    return Publication(staging, existing)
