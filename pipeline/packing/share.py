"""One of several processes that share a run of `pack`: it does some windows from end to end, and publishes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.base.dealing.shares import Share
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.options import EngineOptions, RunOptions
from pipeline.base.progress import ProgressCallback
from pipeline.base.words import counted
from pipeline.format.options import PackOptions
from pipeline.packing.losses import refuse_overlong
from pipeline.packing.run import identified, planned
from pipeline.packing.samples import open_samples
from pipeline.packing.setup import dealer_of, set_up, share_of
from pipeline.packing.steps import Windows, cut_windows, windows_of, write_shards
from pipeline.publishing.sharing import contribution
from pipeline.publishing.target import check_place, place_of
from pipeline.reading.content import content_hashes
from pipeline.reading.input_rows import InputRows
from pipeline.reading.inputs import local_folders, resolve, shown_files
from pipeline.reading.workspace import Workspace, cache_of, engine_of

if TYPE_CHECKING:
    from pipeline.tokenizing.tokens.tokenizer import TextTokenizer


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShareResult:
    """What one of several processes did."""

    status: Literal["shared", "up_to_date"]
    output: str | Path
    """Where what all processes do will be published."""

    run_id: str
    task_index: int
    task_count: int
    seconds: float
    windows: int = 0
    """Windows of this process."""

    all_windows: int = 0
    shards: int = 0
    """Shards of this process, as everything below."""

    packs: int = 0
    tokens: int = 0


def pack_share(
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    options: PackOptions,
    engine: EngineOptions,
    *,
    tokenizer: str | Path | TextTokenizer | None = None,
    chat_template: str | Path | None = None,
    overwrite: bool = False,
    append: bool = False,
    versioned: bool = False,
    keep: int | None = None,
    run: RunOptions = RunOptions(),
    progress: ProgressCallback | None = None,
) -> ShareResult:
    """Do the windows of one process of several, which all are called alike but for `task_index`.

    engine: which process this is, and of how many; the rest as of `pack`, which publishes what they left when it is
    called with `finish`. Nothing is published here, and what was done stays beside the output, however this ends.

    Raises as `pack`, and `BusyError` where vectors that other processes have to make are not there in time.
    """
    started = time.monotonic()
    share = share_of(engine)
    if share is None:
        raise ConfigError("a share of a run has a task_index and a task_count")
    setup, sources = set_up(options, tokenizer, chat_template), resolve(inputs, options)
    place = place_of(output, run, overwrite=overwrite, append=append, versioned=versioned, keep=keep)
    named = (shown_files(sources), local_folders(sources))
    check_place(place, *named, overwrite=overwrite, append=append, is_shared=True)
    with cache_of(run) as cache, engine_of(run) as threads:
        digests = content_hashes(sources, cache, threads, progress, share)
        growth, identity = identified(sources, digests, setup, place if append else None)
        dealing = dealer_of(engine, run, threads, place, {})
        holding = contribution(place, identity, overwrite=overwrite, base=growth.there, wait=engine.wait)
        with dealing as dealer, holding as held, threads:  # which have ended before staging is left to others
            told: dict[str, Any] = {"output": place.folder(identity.run_id, output), "run_id": identity.run_id}
            told |= {"task_index": share.index, "task_count": share.count}
            if held.existing is not None:
                return ShareResult(status="up_to_date", seconds=time.monotonic() - started, **told)
            work = Workspace(threads, cache, held.staging, progress, dealer)
            samples = open_samples(growth.new, setup, work, growth.rows)
            windows = cut_windows(samples.rows, options)
            _require_whole(samples.rows, windows if setup.embedder else windows_of(windows, share), work)
            _, plans = planned(samples, windows, setup, identity, work, share)
            refuse_overlong(plans, samples.rows, options)
            before = growth.samples or dict.fromkeys(windows, 0)  # a split without packs is for --finish
            shards = write_shards(samples.rows, plans, identity.run_id, options.compression, work, before)
            cache.require_unchanged()
    written = [facts for of_split in shards.values() for facts in of_split.values()]
    return ShareResult(
        status="shared",
        seconds=time.monotonic() - started,
        windows=sum(map(len, plans.values())),
        all_windows=_enough(windows, share),
        shards=len(written),
        packs=sum(facts.packs for facts in written),
        tokens=sum(facts.tokens for facts in written),
        **told,
    )


def _enough(windows: Windows, share: Share) -> int:
    """The number of windows; says where it is too small for all processes to have something to do."""
    number = sum(map(len, windows.values()))
    if number < share.count:
        told = "%s for %d tasks, so that some have none: a smaller --window-samples makes more"
        log.warning(told, counted(number, "window"), share.count)
    return number


def _require_whole(rows: InputRows, windows: Windows, work: Workspace) -> None:
    """Raise `BusyError` where decoded files that windows lie in are not what was written: others decoded them, and
    their machine may have died. Those are decoded anew when the task runs again."""
    read = {
        Path(file.path)
        for split, cut in windows.items()
        for window in cut
        for file in rows.splits[split].files_of(window)
    }
    decoded = sorted(path for path in read if path.is_relative_to(work.staging.work))
    records = work.engine.map(work.staging.finished, decoded)
    damaged = [path for path, record in zip(decoded, records, strict=True) if record is None]
    for path in damaged:
        work.staging.forget(path)
    if damaged:
        raise BusyError(
            f"{counted(len(damaged), 'decoded file')}, among them {damaged[0]}, are not what was written: another"
            " task's machine may have died; run this task again"
        )
