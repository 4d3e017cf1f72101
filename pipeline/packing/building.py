"""From inputs to a published directory: one run at a time, resumable, all or nothing. What is built is a recipe's."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import BusyError, ConfigError, DataError, StorageError
from pipeline.base.progress import bar
from pipeline.format import manifest as manifests
from pipeline.publishing.existing import refuse_nesting, up_to_date
from pipeline.publishing.publication import Staging, abandoned, output_lock, publish
from pipeline.reading.files import FileCache, InputFile
from pipeline.reading.inputs import Input

log = logging.getLogger(__name__)


class Recipe(Protocol):
    """How a kind of directory is made."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything that decides the bytes but the inputs' content; see `manifest.identity`."""

    def read(self, folder: Path) -> dict[str, Any]:
        """The manifest of a finished directory of this kind. Raises `ValueError` for anything else."""

    def write(
        self, cache: FileCache, engine: LocalEngine, staging: Staging, run_id: str, hashes: list[str]
    ) -> dict[str, Any]:
        """Fill `staging.dataset`, manifest included, and return the manifest. hashes: of each input."""


def build(
    recipe: Recipe, inputs: list[Input], output: Path, *, cache_dir: Path, num_workers: int, overwrite: bool
) -> tuple[dict[str, Any], bool]:
    """The manifest, and whether it was written now or found done.

    Raises `PipelineError` with a message for the user. After a storage fault or an interruption finished work stays
    in staging, and the same call takes it up; after any other error nothing is left.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(output)):
        raise ConfigError(f"--output {output}: only local directories can be written so far; upload it afterwards")
    output = Path(os.path.realpath(output))
    refuse_nesting(output, inputs)
    staging = None
    try:
        with output_lock(output), FileCache(cache_dir) as cache:
            try:
                with LocalEngine(num_workers) as engine:
                    hashes = content_hashes(inputs, cache, engine)
                    run_id = manifests.identity(recipe.identity, hashes)
                    told = {"inputs": [{"name": e.name, "xxh3_128": h} for e, h in zip(inputs, hashes, strict=True)]}
                    if up_to_date(output, run_id, {**recipe.identity, **told}, recipe.read, overwrite):
                        _remove_abandoned(output, but=None)
                        return recipe.read(output), False
                    staging = Staging(output, run_id)
                    _remove_abandoned(output, but=staging.folder)
                    manifest = recipe.write(cache, engine, staging, run_id, hashes)
                publish(staging.dataset, output)
                staging.remove()
                return manifest, True
            except (OSError, BusyError):
                raise
            except Exception:
                if staging is not None:
                    staging.remove()
                raise
    except KeyboardInterrupt as interruption:
        interruption.add_note(_kept(staging))
        raise
    except OSError as error:
        where = error.filename or output
        raise StorageError(f"{where}: {error.strerror or error}; {_kept(staging)}") from error


def content_hashes(inputs: list[Input], cache: FileCache, engine: LocalEngine) -> list[str]:
    """One hash for each input, over its files in order, split by split.

    Raises `DataError` for a tokenised dataset that is not what its manifest says.
    """
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    digests: dict[InputFile, str] = {}
    with bar("hashing inputs", len(files), "file") as advance:
        for file, digest in zip(files, engine.map(cache.content_hash, files), strict=True):
            digests[file] = digest
            advance(1)
    for entry in inputs:
        for file in entry.files():
            expected = entry.checksum(file)
            if expected is not None and digests[file] != expected:
                raise DataError(
                    f"{file.shown}: was changed after it was tokenised, says its manifest.json; tokenise again"
                )
    return [
        manifests.combine({split: [digests[file] for file in group] for split, group in entry.splits.items()})
        for entry in inputs
    ]


def _remove_abandoned(output: Path, but: Path | None) -> None:
    for folder in abandoned(output, but):
        log.info("removing the staging of an abandoned run: %s", folder)
        shutil.rmtree(folder)


def _kept(staging: Staging | None) -> str:
    if staging is None or not staging.folder.exists():
        return "nothing was written"
    return f"finished work is kept in {staging.folder}, and the same command resumes it"
