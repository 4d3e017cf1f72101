"""Where a run publishes: under the output's own name, or as one of several versions inside it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import storage
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.objects.copies import LATEST, VERSION
from pipeline.base.staging import Staging
from pipeline.base.words import counted
from pipeline.format.identity import Identity
from pipeline.format.manifest import MANIFEST, Manifest
from pipeline.publishing.existing import existing_run, manifest_there, require_whole
from pipeline.publishing.finishing import Base

log = logging.getLogger(__name__)

_REMOVED = ".removed-"  # what a version is called while it is removed
OF_DATASETS = (MANIFEST, "state.json", "dataset_dict.json", "dataset_info.json")
"""Names that a dataset itself has, and a folder of versions has not."""


@dataclass(frozen=True, kw_only=True)
class Versioning:
    """Whether an output holds one dataset or several."""

    versioned: bool = False
    """Whether every run has a folder of its own inside, and `LATEST` points to the current one."""

    keep: int | None = None
    """How many versions stay beside the current one; None for all."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` where other versions are to be removed and there are none."""
        if self.keep is not None and not self.versioned:
            raise ConfigError("--keep is for versions, and has no effect without --versioned")


@dataclass(frozen=True, kw_only=True)
class Place(Versioning):
    """The place of an output on a disk."""

    output: Path
    """What the user named."""

    def folder(self, run_id: str, named: str | Path | None = None) -> Path:
        """Where a run's dataset is to be. named: what to call the output, None for its real path."""
        output = self.output if named is None else Path(named)
        return output / run_id if self.versioned else output

    @property
    def name(self) -> str:
        """How messages call what is there."""
        return str(self.current)

    @property
    def scratch(self) -> Path:
        """The folder, perhaps still to be made, inside which the output is built."""
        return self.output.parent

    @property
    def current(self) -> Path:
        """Where the dataset is, if there is one, to which something can be appended."""
        return Path(os.path.realpath(self.output / LATEST)) if self.versioned else self.output

    def there(self, kind: str) -> Manifest | None:
        """The manifest of the current dataset, None if there is none. kind: packed or tokenized.

        Raises `ConfigError` for anything but a dataset of that kind.
        """
        return manifest_there(self.current, kind)

    def existing(self, identity: Identity, *, overwrite: bool, base: Manifest | None) -> Manifest | None:
        """The manifest of what is there, if it is this run. Raises as `existing_run`."""
        folder = self.folder(identity.run_id)
        return existing_run(folder, identity, overwrite=overwrite, base=None if self.versioned else base)

    def base(self, there: Manifest | None) -> Base | None:
        """What is appended to; None for a first run."""
        return None if there is None else Base(self.current, there)

    def before(self, there: Manifest | None, _: Staging) -> Path | None:
        """The folder of what is appended to; None for a first run."""
        return None if there is None else self.current

    def refuse_others(self, base: Manifest | None) -> None:
        """Raise `ConfigError` where no versions can be kept, and `BusyError` where another is current than `base`."""
        if not self.versioned or not self.output.exists():
            return
        names = [path.name for path in storage.list_folder(self.output)]
        if LATEST in names and not (self.output / LATEST).is_symlink():
            raise ConfigError(f"--versioned: {self.output / LATEST} is no link to a version; move it away")
        plain = next((name for name in OF_DATASETS if name in names), None)
        if plain is not None:
            raise ConfigError(
                f"--versioned: {self.output} is a dataset itself (it has {plain}); choose another --output for versions"
            )
        if names and not any(VERSION.fullmatch(name) or name == LATEST or name.startswith(".") for name in names):
            raise ConfigError(f"--versioned: {self.output} holds {names[0]} and no version; choose another --output")
        if base is not None:
            if self.current.name != base.run_id:
                raise BusyError(f"another run replaced {self.output / LATEST} meanwhile; run the same command again")
            require_whole(self.current, base)

    def settle(self, run_id: str) -> None:
        """Let `LATEST` point to a run, and remove the versions that are too many. Raises `OSError`."""
        if not self.versioned:
            return
        if self.current.name != run_id:
            storage.point(self.output / LATEST, run_id)
            storage.sync_folder(self.output)
        if self.keep is not None:
            self._prune(run_id, self.keep)

    def _prune(self, run_id: str, keep: int) -> None:
        """Remove all but the newest versions; one whose manifest somebody holds by flock stays."""
        versions: list[tuple[int, Path]] = []
        for path in storage.list_folder(self.output):
            if path.name.startswith(_REMOVED):  # by a run that was killed
                storage.remove_tree(path)
            elif VERSION.fullmatch(path.name) and path.name != run_id and (path / MANIFEST).is_file():
                versions.append(((path / MANIFEST).stat().st_mtime_ns, path))
        held = 0
        for _, path in sorted(versions, reverse=True)[keep:]:
            try:
                descriptor = storage.lock(path / MANIFEST)  # opened to be written, without which NFS locks for nobody
            except BlockingIOError:
                held += 1
                continue
            try:
                removed = self.output / f"{_REMOVED}{path.name}"
                storage.rename(path, removed)
                storage.remove_tree(removed)
                log.info("removed the version %s", path.name)
            finally:
                os.close(descriptor)
        if held:
            log.warning("%s not removed: a reader holds the manifest's lock", counted(held, "old version"))
