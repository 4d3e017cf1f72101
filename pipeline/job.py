"""A run of `pack`, from what was asked to a published dataset."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.config import Chosen, PackConfig
from pipeline.engine import LocalEngine
from pipeline.errors import BusyError, DataError, StorageError
from pipeline.existing import refuse_nesting, up_to_date
from pipeline.files import FileCache, InputFile
from pipeline.inputs import Input, resolve
from pipeline.progress import bar
from pipeline.publish import Staging, abandoned, output_lock, publish
from pipeline.run import Planned, Run
from pipeline.words import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to pack, and how to run it. Only `config` decides the bytes."""

    inputs: tuple[str, ...]
    config: PackConfig
    chosen: Chosen
    num_workers: int
    cache_dir: Path
    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run has to tell."""

    status: str
    """packed, up to date, or planned."""

    manifest: dict[str, Any]
    seconds: float
    too_long: int = 0
    longest: int = 0


def plan_only(job: Job) -> Result:
    """What packing would give. Nothing is written but temporary files, which are removed again.

    Samples that are too long are reported, not refused.
    """
    started = time.monotonic()
    inputs = _resolve(job)
    with (
        FileCache(job.cache_dir) as cache,
        tempfile.TemporaryDirectory(prefix="pack-dry-run-") as folder,
        LocalEngine(job.num_workers) as engine,
    ):
        run = Run(job.config, job.chosen, inputs, cache, engine, Staging(Path(folder) / "plan", "dry-run"))
        planned = run.plan()
        run.tell_targets()
        return _result("planned", run.describe(planned), planned, started)


def pack(job: Job) -> Result:
    """Pack and publish, or find that it has been done.

    Raises `PipelineError` with a message for the user. After a storage fault or an interruption finished
    work stays in staging, and the same call takes it up; after any other error nothing is left.
    """
    assert job.output is not None
    started = time.monotonic()
    output = Path(os.path.realpath(job.output))
    inputs = _resolve(job)
    refuse_nesting(output, inputs)
    staging = None
    try:
        with output_lock(output), FileCache(job.cache_dir) as cache:
            try:
                with LocalEngine(job.num_workers) as engine:
                    hashes = _content_hashes(inputs, cache, engine)
                    run_id = manifests.identity(job.config, hashes)
                    if up_to_date(output, run_id, job.config, inputs, hashes, job.overwrite):
                        _remove_abandoned(output, but=None)
                        return Result(
                            status="up to date", manifest=manifests.read(output), seconds=time.monotonic() - started
                        )
                    staging = Staging(output, run_id)
                    _remove_abandoned(output, but=staging.folder)
                    run = Run(job.config, job.chosen, inputs, cache, engine, staging)
                    planned = run.plan()
                    _refuse_too_long(job.config, planned, run)
                    manifest = run.write(planned, run_id, hashes)
                publish(staging.dataset, output)
                staging.remove()
                run.tell_targets()
                _tell_losses(manifest)
                return _result("packed", manifest, planned, started)
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


def _remove_abandoned(output: Path, but: Path | None) -> None:
    for folder in abandoned(output, but):
        log.info("removing the staging of an abandoned run: %s", folder)
        shutil.rmtree(folder)


def _tell_losses(manifest: dict[str, Any]) -> None:
    """Say loudly what was left out unasked."""
    losses = manifest["counts"]["dropped"]
    if losses["empty"]["samples"]:
        log.warning("%s without tokens left out (empty)", counted(losses["empty"]["samples"], "sample"))
    if losses["no_targets"]["samples"]:
        log.warning(
            "%s (%s) without anything to train left out (no_targets); --keep-untrainable keeps them",
            counted(losses["no_targets"]["samples"], "sample"),
            counted(losses["no_targets"]["tokens"], "token"),
        )
    if not manifest["packs"]:
        log.warning("there was nothing to pack; the output is a valid, empty dataset")


def _kept(staging: Staging | None) -> str:
    if staging is None or not staging.folder.exists():
        return "nothing was written"
    return f"finished work is kept in {staging.folder}, and the same command resumes it"


def _resolve(job: Job) -> list[Input]:
    config = job.config
    return resolve(job.inputs, split=config.split, subset=config.subset, revision=config.revision)


def _content_hashes(inputs: list[Input], cache: FileCache, engine: LocalEngine) -> list[str]:
    """One hash for each input, over its files in order, split by split."""
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    digests: dict[InputFile, str] = {}
    with bar("hashing inputs", len(files), "file") as advance:
        for file, digest in zip(files, engine.map(cache.content_hash, files), strict=True):
            digests[file] = digest
            advance(1)
    return [
        manifests.combine({split: [digests[file] for file in group] for split, group in entry.splits.items()})
        for entry in inputs
    ]


def _refuse_too_long(config: PackConfig, planned: Planned, run: Run) -> None:
    if config.overlong != "error":
        return
    found = [
        (summary.too_long, split, window)
        for split, windows in planned.items()
        for window, summary in windows
        if summary.too_long.samples
    ]
    if found:
        worst, split, window = max(found, key=lambda entry: entry[0].longest)
        where = run.splits[split].locate(window.first_row + worst.longest_row)
        total = sum(entry.samples for entry, _, _ in found)
        raise DataError(
            f"longer than --max-length {config.max_length}: {counted(total, 'sample')};"
            f" the longest has {worst.longest:,} tokens ({where}). Choose --overlong drop (leave them out),"
            " truncate (keep their beginning) or split (cut them into several), or a larger --max-length"
        )


def _result(status: str, manifest: dict[str, Any], planned: Planned, started: float) -> Result:
    long = [summary.too_long for windows in planned.values() for _, summary in windows]
    return Result(
        status=status,
        manifest=manifest,
        seconds=time.monotonic() - started,
        too_long=sum(entry.samples for entry in long),
        longest=max((entry.longest for entry in long), default=0),
    )
