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
from pipeline.errors import ConfigError, DataError, StorageError
from pipeline.files import FileCache, InputFile, hash_file
from pipeline.inputs import Input, resolve
from pipeline.progress import bar
from pipeline.publish import Staging, abandoned, output_lock, publish
from pipeline.run import Planned, Run

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
    cache = FileCache(job.cache_dir)
    inputs = _resolve(job)
    with tempfile.TemporaryDirectory(prefix="pack-dry-run-") as folder, LocalEngine(job.num_workers) as engine:
        run = Run(job.config, job.chosen, inputs, cache, engine, Staging(Path(folder) / "plan", "dry-run"))
        try:
            planned = run.plan()
        finally:
            cache.forget_downloads()
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
    _refuse_nesting(output, inputs)
    in_the_way = next((path for path in (output, *output.parents) if path.exists()), output)
    if not in_the_way.is_dir():
        raise ConfigError(f"--output {output}: {in_the_way} is a file")
    cache = FileCache(job.cache_dir)
    staging = None
    try:
        with output_lock(output):
            try:
                with LocalEngine(job.num_workers) as engine:
                    hashes = _content_hashes(inputs, cache, engine)
                    run_id = manifests.identity(job.config, hashes)
                    if _up_to_date(output, run_id, job, inputs, hashes):
                        return Result(
                            status="up to date", manifest=manifests.read(output), seconds=time.monotonic() - started
                        )
                    staging = Staging(output, run_id)
                    for folder in abandoned(output, but=staging.folder):
                        log.info("removing the staging of an abandoned run: %s", folder)
                        shutil.rmtree(folder)
                    staging.open()
                    run = Run(job.config, job.chosen, inputs, cache, engine, staging)
                    planned = run.plan()
                    _refuse_too_long(job.config, planned, run)
                    manifest = run.write(planned, run_id, hashes)
                publish(staging.dataset, output)
                staging.remove()
                cache.forget_downloads()
                _tell_losses(manifest)
                return _result("packed", manifest, planned, started)
            except OSError:
                raise
            except Exception:
                if staging is not None:
                    staging.remove()
                cache.forget_downloads()
                raise
    except KeyboardInterrupt as interruption:
        interruption.add_note(_kept(staging))
        raise
    except OSError as error:
        where = error.filename or output
        raise StorageError(f"{where}: {error.strerror or error}; {_kept(staging)}") from error


def _tell_losses(manifest: dict[str, Any]) -> None:
    """Say loudly what was left out unasked."""
    losses = manifest["counts"]["dropped"]
    if losses["empty"]["samples"]:
        log.warning("%s samples are empty and left out (empty)", f"{losses['empty']['samples']:,}")
    if losses["no_targets"]["samples"]:
        log.warning(
            "%s samples (%s tokens) have nothing to train and are left out (no_targets); --keep-untrainable keeps them",
            f"{losses['no_targets']['samples']:,}",
            f"{losses['no_targets']['tokens']:,}",
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


def _refuse_nesting(output: Path, inputs: list[Input]) -> None:
    for entry in inputs:
        for file in (file for file in entry.files() if file.is_local):
            path = Path(os.path.realpath(file.path))
            if path == output or output in path.parents:
                raise ConfigError(f"--output {output} holds the input {path}; choose another output")
        if entry.folder is not None and output.is_relative_to(os.path.realpath(entry.folder)):
            raise ConfigError(f"--output {output} lies inside the input {entry.folder}; choose another output")


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


def _up_to_date(output: Path, run_id: str, job: Job, inputs: list[Input], hashes: list[str]) -> bool:
    """Whether the output is there already. Raises `ConfigError` if something else is in its place."""
    if not output.exists() or not any(output.iterdir()):
        return False
    try:
        old = manifests.read(output)
    except ValueError as error:
        if not job.overwrite:
            raise ConfigError(
                f"--output {output} exists and is no packed dataset ({error}); choose another output"
            ) from None
        if not any((output / name).exists() for name in (manifests.MANIFEST, "state.json", "dataset_dict.json")):
            raise ConfigError(f"--output {output} is no dataset; --overwrite only replaces datasets") from None
        return False
    if old["run_id"] == run_id:
        damaged = next((name for name, facts in old["files"].items() if not _is_whole(output / name, facts, job)), None)
        if damaged is not None and not job.overwrite:
            raise ConfigError(f"--output {output} is this run, but {damaged} is damaged; --overwrite writes it anew")
        return damaged is None
    if job.overwrite:
        _refuse_foreign_files(output, old)
        return False
    new = {
        "config": job.config.to_json(),
        "inputs": [{"name": entry.name, "xxh3_128": digest} for entry, digest in zip(inputs, hashes, strict=True)],
        "format_version": manifests.FORMAT_VERSION,
        "algorithm_version": manifests.ALGORITHM_VERSION,
    }
    told = "".join(f"\n  {line}" for line in manifests.differences(old, new))
    raise ConfigError(
        f"--output {output} holds another run ({old['run_id']} there, {run_id} now); choose another output, or"
        f" replace it with --overwrite. What differs:{told}"
    )


def _refuse_foreign_files(output: Path, old: dict[str, Any]) -> None:
    """Replacing removes the whole directory, so nothing may lie in it but the dataset and what readers cache there."""
    known = {*old["files"], manifests.MANIFEST}
    for path in sorted(output.rglob("*")):
        if path.is_file() and str(path.relative_to(output)) not in known and not path.match("cache-*.arrow"):
            raise ConfigError(f"--output {output}: {path} is not part of the dataset there; move it away first")


def _is_whole(file: Path, facts: dict[str, Any], job: Job) -> bool:
    """Whether a published file is there in full; with `--overwrite`, which would mend it, also by its checksum."""
    if not file.is_file() or file.stat().st_size != facts["bytes"]:
        return False
    return not job.overwrite or hash_file(str(file)) == facts["xxh3_128"]


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
        raise DataError(
            f"{sum(entry[0].samples for entry in found):,} samples are longer than --max-length {config.max_length};"
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
