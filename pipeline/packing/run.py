"""A run of `pack`, from inputs to a published dataset."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.base.dealing.shares import Share
from pipeline.base.errors import ConfigError, TightpackError
from pipeline.base.options import EngineOptions, RunOptions
from pipeline.base.progress import ProgressCallback
from pipeline.base.staging import Staging
from pipeline.embedding.vectors import Vectors
from pipeline.format.dataset_files import path_in_dataset
from pipeline.format.identity import PACKED, Identity
from pipeline.format.manifest import PackManifest
from pipeline.format.options import PackOptions
from pipeline.packing.account import manifest_of
from pipeline.packing.losses import overlong_samples, refuse_overlong, warn_of_losses
from pipeline.packing.samples import Samples, open_samples, warn_of_samples, write_lists
from pipeline.packing.segments import OverlongSamples
from pipeline.packing.setup import Setup, dealer_of, set_up, shared_folders
from pipeline.packing.steps import (
    Plans,
    Windows,
    cut_windows,
    embed_windows,
    plan_windows,
    schema_of_packs,
    windows_of,
    write_shards,
)
from pipeline.publishing.finishing import finish
from pipeline.publishing.sharing import require_begun
from pipeline.publishing.target import AnyPlace, check_place, place_of, publication_at
from pipeline.reading.content import Growth, content_hashes, growth_of, origin_of, refuse_other_options
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import Input, local_folders, resolve, shown_files
from pipeline.reading.workspace import Workspace, cache_of, engine_of
from pipeline.tokenizing.tally import DROPPED

if TYPE_CHECKING:
    from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

Names = str | Path | Iterable[str | Path]
"""One input or several: directories, files, globs, URLs or Hub ids."""


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """What a run of `pack` gave."""

    status: Literal["packed", "up_to_date", "planned"]
    manifest: PackManifest
    seconds: float
    output: str | Path | None = None
    """The directory, or its URL; None where nothing was written."""

    overlong: OverlongSamples = field(default_factory=OverlongSamples)
    """The samples that are longer than `max_length`; not known of a run that was done before."""


def pack(
    inputs: Names,
    output: str | Path,
    options: PackOptions,
    *,
    tokenizer: str | Path | TextTokenizer | None = None,
    chat_template: str | Path | None = None,
    overwrite: bool = False,
    append: bool = False,
    versioned: bool = False,
    keep: int | None = None,
    run: RunOptions = RunOptions(),
    engine: EngineOptions = EngineOptions(),
    progress: ProgressCallback | None = None,
) -> PackResult:
    """Pack samples into a published dataset, or find that it was done before.

    inputs: tokenised, or raw where there is a tokenizer; output: the directory to be published, or an s3:// URL;
    tokenizer: a directory, a tokenizer.json, a Hub id, or what `load_tokenizer` gave; chat_template: a Jinja file, None
    for the tokenizer's own; overwrite: replace another run's dataset; append: pack the files alone that the dataset
    there does not have yet, and add them to it; versioned: publish as a folder of its own inside the output, to which
    `latest` points then; keep: how many other versions stay, the newest; engine: who does the tasks, all of them (see
    `pack_share` for a part); progress: is called as the run goes on.

    After a storage fault or an interruption finished work stays beside the output, and the same call takes it up; after
    any other error nothing is left. Raises `ConfigError`, `DataError`, `StrategyError`, `StorageError` and
    `BusyError`, each with one message for the user.
    """
    started = time.monotonic()
    if engine.is_share:
        raise ConfigError("this is a share of a run, which publishes nothing; call pack_share")
    setup, sources = set_up(options, tokenizer, chat_template), resolve(inputs, options)
    place = place_of(output, run, overwrite=overwrite, append=append, versioned=versioned, keep=keep)
    check_place(place, shown_files(sources), local_folders(sources), overwrite=overwrite, append=append)
    with cache_of(run) as cache, engine_of(run) as threads:
        digests = content_hashes(sources, cache, threads, progress)
        growth, identity = identified(sources, digests, setup, place if append else None)
        if engine != EngineOptions():
            if place.existing(identity, overwrite=overwrite, base=growth.there):
                engine = EngineOptions()  # there is nothing to do
            elif engine.finish:
                require_begun(place, identity.run_id)
        dealing = dealer_of(engine, run, threads, place, shared_folders(place, setup, sources, cache))
        publishing = publication_at(place, identity, overwrite, growth.there, progress, may_fail=engine.finish)
        with dealing as dealer, publishing as held, threads:  # which have ended before staging is removed
            shown = place.folder(identity.run_id, output)
            if isinstance(held.existing, PackManifest):
                return _up_to_date(held.existing, shown, started)
            work = Workspace(threads, cache, held.staging, progress, dealer)
            samples = open_samples(growth.new, setup, work, growth.rows)
            vectors, plans = planned(samples, cut_windows(samples.rows, options), setup, identity, work)
            refuse_overlong(plans, samples.rows, options)
            made = manifest_of(identity, growth.new, samples, plans, vectors, setup.strategy)
            manifest = _finished(made, samples, plans, setup, growth, place, work)
    warn_of_samples(samples, are_listed=DROPPED in manifest.files)
    warn_of_losses(made)
    seconds, overlong = time.monotonic() - started, overlong_samples(plans)
    return PackResult(status="packed", output=shown, manifest=manifest, seconds=seconds, overlong=overlong)


def _finished(
    made: PackManifest, samples: Samples, plans: Plans, setup: Setup, growth: Growth, place: AnyPlace, work: Workspace
) -> PackManifest:
    """Write what was planned, and make staging a dataset; returns its manifest.

    made: the manifest but for what is written. Raises `DataError` if an input changed meanwhile, and `OSError`.
    """
    options, dataset = setup.options, work.staging.dataset
    shards = write_shards(samples.rows, plans, made.run_id, options.compression, work, growth.samples)
    files = {path_in_dataset(split, name): facts for split in shards for name, facts in shards[split].items()}
    lists = write_lists(samples, setup, dataset, place.before(growth.there, work.staging))
    work.cache.require_unchanged()
    return finish(
        dataset,
        made,
        schema_of_packs(samples.rows),
        {split: list(of_split) for split, of_split in shards.items()},
        {**lists, **files},
        options.split,
        place.base(growth.there),
    )


def identified(
    sources: list[Input], digests: Mapping[InputFile, str], setup: Setup, appended_to: AnyPlace | None
) -> tuple[Growth, Identity]:
    """What of the inputs is new to what is there, and what makes the run another than others. Raises `ConfigError`."""
    there = None if appended_to is None else appended_to.there(PACKED)
    shown = "" if appended_to is None else appended_to.name
    growth = growth_of(sources, digests, there, shown)
    identity = setup.identity(growth.batches, origin_of(sources))
    refuse_other_options(growth, identity, shown)
    return growth, identity


def dry_run(
    inputs: Names,
    options: PackOptions,
    *,
    tokenizer: str | Path | TextTokenizer | None = None,
    chat_template: str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    append: bool = False,
    versioned: bool = False,
    keep: int | None = None,
    run: RunOptions = RunOptions(),
    progress: ProgressCallback | None = None,
) -> PackResult:
    """What `pack` would give. Nothing is written but temporary files, which are removed again.

    output: where `pack` would publish, so that what is in its way can be said, or what is there and appended to; None
    where that is not decided; the rest as of `pack`.
    Samples that are too long, and an output that is in the way, are reported, not refused. Raises as `pack`.
    """
    started = time.monotonic()
    setup = set_up(options, tokenizer, chat_template)
    sources = resolve(inputs, options)
    with (
        cache_of(run) as cache,
        tempfile.TemporaryDirectory(prefix="pack-dry-run-") as folder,
        engine_of(run) as threads,
    ):
        digests = content_hashes(sources, cache, threads, progress)
        place = place_of(output or "", run, overwrite=overwrite, append=append, versioned=versioned, keep=keep)
        growth, identity = identified(sources, digests, setup, place if append and output else None)
        if output is not None:
            _tell_of_output(sources, identity, growth, place, overwrite=overwrite, append=append)
        if not growth.new and isinstance(growth.there, PackManifest):
            return _up_to_date(growth.there, place.folder(growth.there.run_id), started)
        work = Workspace(threads, cache, Staging(Path(folder)), progress)
        work.staging.open()
        samples = open_samples(growth.new, setup, work, growth.rows)
        vectors, plans = planned(samples, cut_windows(samples.rows, options), setup, identity, work)
        manifest = manifest_of(identity, growth.new, samples, plans, vectors, setup.strategy)
    warn_of_samples(samples, are_listed=False)
    return PackResult(
        status="planned",
        manifest=manifest,
        seconds=time.monotonic() - started,
        overlong=overlong_samples(plans),
    )


def planned(
    samples: Samples, windows: Windows, setup: Setup, identity: Identity, work: Workspace, share: Share | None = None
) -> tuple[Vectors | None, Plans]:
    """The plans of all windows, and the vectors that they were made by. Raises as `embed_rows` and `plan_window`.

    share: whose windows alone are planned; None for all.
    """
    vectors = embed_windows(samples.rows, windows, setup, identity, work)
    mine = windows if share is None else windows_of(windows, share)
    return vectors, plan_windows(samples.rows, mine, vectors, setup.options, work)


def _up_to_date(manifest: PackManifest, output: str | Path, started: float) -> PackResult:
    return PackResult(status="up_to_date", output=output, manifest=manifest, seconds=time.monotonic() - started)


def _tell_of_output(
    sources: list[Input], identity: Identity, growth: Growth, place: AnyPlace, *, overwrite: bool, append: bool
) -> None:
    """Say whether `pack` would have nothing to do, or would refuse its output."""
    try:
        check_place(place, shown_files(sources), local_folders(sources), overwrite=overwrite, append=append)
        place.refuse_others(growth.there)
        if place.existing(identity, overwrite=overwrite, base=growth.there) is not None:
            log.info("%s is up to date: without --dry-run there is nothing to do", place.name)
    except TightpackError as error:
        log.warning("without --dry-run this ends with exit code %d: %s", error.exit_code, error)
