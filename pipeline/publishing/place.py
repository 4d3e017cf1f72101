"""Where a run publishes: under the output's own name, or as one of several versions inside it."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import storage
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.words import counted
from pipeline.format.manifest import MANIFEST, Manifest
from pipeline.publishing.existing import require_whole

log = logging.getLogger(__name__)

LATEST = "latest"
"""The link to the version that is current."""

_VERSION = re.compile(r"[0-9a-f]{32}")
_REMOVED = ".removed-"  # what a version is called while it is removed
_OF_DATASETS = (MANIFEST, "state.json", "dataset_dict.json", "dataset_info.json")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of an output."""

    output: Path
    """What the user named."""

    versioned: bool = False
    """Whether every run has a folder of its own inside, and `LATEST` points to the current one."""

    keep: int | None = None
    """How many versions stay beside the current one; None for all."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` where other versions are to be removed and there are none."""
        if self.keep is not None and not self.versioned:
            raise ConfigError("--keep is for versions, and has no effect without --versioned")

    def folder(self, run_id: str, named: str | Path | None = None) -> Path:
        """Where a run's dataset is to be. named: what to call the output, None for its real path."""
        output = self.output if named is None else Path(named)
        return output / run_id if self.versioned else output

    @property
    def current(self) -> Path:
        """Where the dataset is, if there is one, to which something can be appended."""
        return Path(os.path.realpath(self.output / LATEST)) if self.versioned else self.output

    def refuse_others(self, base: Manifest | None) -> None:
        """Raise `ConfigError` where no versions can be kept, and `BusyError` where another is current than `base`."""
        if not self.versioned or not self.output.exists():
            return
        names = [path.name for path in storage.list_folder(self.output)]
        plain = next((name for name in _OF_DATASETS if name in names), None)
        if plain is not None:
            raise ConfigError(
                f"--versioned: {self.output} is a dataset itself (it has {plain}); choose another --output for versions"
            )
        if names and not any(_VERSION.fullmatch(name) or name == LATEST or name.startswith(".") for name in names):
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
            elif _VERSION.fullmatch(path.name) and path.name != run_id and (path / MANIFEST).is_file():
                versions.append(((path / MANIFEST).stat().st_mtime_ns, path))
        held = 0
        for _, path in sorted(versions, reverse=True)[keep:]:
            with storage.open_file(path / MANIFEST) as manifest:
                try:
                    fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held += 1
                    continue
                removed = self.output / f"{_REMOVED}{path.name}"
                storage.rename(path, removed)
                storage.remove_tree(removed)
                log.info("removed the version %s", path.name)
        if held:
            log.warning("%s not removed: a reader holds the manifest's lock", counted(held, "old version"))
