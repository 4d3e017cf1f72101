"""A run of `pack`, from inputs to a published dataset."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.base.errors import TightpackError
from pipeline.base.options import RunOptions
from pipeline.base.progress import ProgressCallback
from pipeline.base.staging import Staging
from pipeline.format.dataset_files import finish_dataset, path_in_dataset
from pipeline.format.identity import Identity
from pipeline.format.manifest import PackManifest
from pipeline.format.options import PackOptions
from pipeline.packing.account import manifest_of
from pipeline.packing.losses import overlong_samples, refuse_overlong, warn_of_losses
from pipeline.packing.samples import open_samples, warn_of_samples, write_lists
from pipeline.packing.segments import OverlongSamples
from pipeline.packing.setup import set_up
from pipeline.packing.steps import cut_windows, embed_windows, plan_windows, schema_of_packs, write_shards
from pipeline.publishing.existing import existing_run
from pipeline.publishing.output import check_output
from pipeline.publishing.publication import publication
from pipeline.reading.content import content_hashes, origin_of
from pipeline.reading.inputs import Input, local_files, local_folders, resolve
from pipeline.reading.workspace import Workspace, cache_of, engine_of

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
    output: Path | None = None
    """The directory; None where nothing was written."""

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
    run: RunOptions = RunOptions(),
    progress: ProgressCallback | None = None,
) -> PackResult:
    """Pack samples into a published dataset, or find that it was done before.

    inputs: tokenised, or raw where there is a tokenizer; output: the directory to be published; tokenizer: a
    directory, a tokenizer.json, a Hub id, or what `load_tokenizer` gave; chat_template: a Jinja file, None for the
    tokenizer's own; overwrite: replace another run's dataset; progress: is called as the run goes on.

    After a storage fault or an interruption finished work stays beside the output, and the same call takes it up; after
    any other error nothing is left. Raises `ConfigError`, `DataError`, `StrategyError`, `StorageError` and
    `BusyError`, each with one message for the user.
    """
    started = time.monotonic()
    setup = set_up(options, tokenizer, chat_template)
    sources = resolve(inputs, options)
    target = check_output(output, files=local_files(sources), folders=local_folders(sources))
    with cache_of(run) as cache:
        with engine_of(run) as engine:
            hashes = content_hashes(sources, cache, engine, progress)
        identity = setup.identity(hashes, origin_of(sources))
        with publication(target, identity, overwrite=overwrite) as place, engine_of(run) as engine:
            if isinstance(place.existing, PackManifest):
                seconds = time.monotonic() - started
                return PackResult(status="up_to_date", output=Path(output), manifest=place.existing, seconds=seconds)
            work = Workspace(engine, cache, place.staging, progress)
            samples = open_samples(sources, setup, work)
            windows = cut_windows(samples.rows, options)
            vectors = embed_windows(samples.rows, windows, setup, identity, work)
            plans = plan_windows(samples.rows, windows, vectors, options, work)
            refuse_overlong(plans, samples.rows, options)
            shards = write_shards(samples.rows, plans, identity.run_id, options.compression, work)
            files = {path_in_dataset(split, name): facts for split in shards for name, facts in shards[split].items()}
            lists = write_lists(samples, setup, place.staging.dataset)
            cache.require_unchanged()
            manifest = finish_dataset(
                place.staging.dataset,
                manifest_of(identity, sources, samples, plans, vectors, setup.strategy),
                schema_of_packs(samples.rows),
                {split: list(of_split) for split, of_split in shards.items()},
                {**lists, **files},
                options.split,
            )
    warn_of_samples(samples, are_listed=bool(lists))
    warn_of_losses(manifest)
    seconds, overlong = time.monotonic() - started, overlong_samples(plans)
    return PackResult(status="packed", output=Path(output), manifest=manifest, seconds=seconds, overlong=overlong)


def dry_run(
    inputs: Names,
    options: PackOptions,
    *,
    tokenizer: str | Path | TextTokenizer | None = None,
    chat_template: str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    run: RunOptions = RunOptions(),
    progress: ProgressCallback | None = None,
) -> PackResult:
    """What `pack` would give. Nothing is written but temporary files, which are removed again.

    output: where `pack` would publish, so that what is in its way can be said; None where that is not decided.
    Samples that are too long, and an output that is in the way, are reported, not refused. Raises as `pack`.
    """
    started = time.monotonic()
    setup = set_up(options, tokenizer, chat_template)
    sources = resolve(inputs, options)
    with (
        cache_of(run) as cache,
        tempfile.TemporaryDirectory(prefix="pack-dry-run-") as folder,
        engine_of(run) as engine,
    ):
        identity = setup.identity(content_hashes(sources, cache, engine, progress), origin_of(sources))
        if output is not None:
            _tell_of_output(output, sources, identity, overwrite=overwrite)
        work = Workspace(engine, cache, Staging(Path(folder)), progress)
        work.staging.open()
        samples = open_samples(sources, setup, work)
        windows = cut_windows(samples.rows, options)
        vectors = embed_windows(samples.rows, windows, setup, identity, work)
        plans = plan_windows(samples.rows, windows, vectors, options, work)
        manifest = manifest_of(identity, sources, samples, plans, vectors, setup.strategy)
    warn_of_samples(samples, are_listed=False)
    return PackResult(
        status="planned",
        manifest=manifest,
        seconds=time.monotonic() - started,
        overlong=overlong_samples(plans),
    )


def _tell_of_output(output: str | Path, sources: list[Input], identity: Identity, *, overwrite: bool) -> None:
    """Say whether `pack` would have nothing to do, or would refuse its output."""
    try:
        target = check_output(output, files=local_files(sources), folders=local_folders(sources))
        if existing_run(target, identity, overwrite=overwrite) is not None:
            log.info("%s is up to date: without --dry-run there is nothing to do", output)
    except TightpackError as error:
        log.warning("without --dry-run this ends with exit code %d: %s", error.exit_code, error)
