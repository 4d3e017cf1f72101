"""The steps of a run: each deals out tasks and gathers what they leave.

A task whose file an earlier run left in staging is skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa

from pipeline.base.engine import Monitor
from pipeline.base.staging import Staging
from pipeline.base.storage import make_folder
from pipeline.base.words import counted
from pipeline.embedding.vectors import Vectors, embed_rows
from pipeline.format.columns import PACK_SCHEMA, SOURCED_PACK_SCHEMA
from pipeline.format.identity import Identity
from pipeline.format.options import PackOptions
from pipeline.packing.plan import PlanTask, WindowSummary, plan_window
from pipeline.packing.setup import Setup
from pipeline.packing.shards import ShardFacts, ShardTask, write_empty_shard, write_shard
from pipeline.reading.input_rows import InputRows
from pipeline.reading.windows import Window
from pipeline.reading.workspace import Workspace

log = logging.getLogger(__name__)

Windows = Mapping[str, Sequence[Window]]
"""The windows of each split."""


@dataclass(frozen=True, kw_only=True)
class PlannedWindow:
    """A window and its plan."""

    window: Window
    plan: Path
    """The file of its `WindowPlan`."""

    plan_hash: str
    """That file's content hash."""

    summary: WindowSummary


Plans = Mapping[str, Sequence[PlannedWindow]]
"""The planned windows of each split."""


def cut_windows(rows: InputRows, options: PackOptions) -> Windows:
    """Cut every split into windows."""
    return {split: part.cut(options.window_samples, options.window_tokens) for split, part in rows.splits.items()}


def embed_windows(
    rows: InputRows, windows: Windows, setup: Setup, identity: Identity, work: Workspace
) -> Vectors | None:
    """The vectors of all rows, where the strategy relates samples. Raises as `embed_rows`."""
    if setup.embedder is None:
        return None
    options = setup.options
    source = {
        "inputs": [file.content for file in identity.batches[-1]],
        "columns": dict(options.column),
        "split": options.split,
        "tokenize": msgspec.to_builtins(setup.recorded_options.tokenize),
        **{key: entry.xxh3_128 for key, entry in identity.origin.items()},
    }
    strategy = setup.strategy
    return embed_rows(setup.embedder, rows, windows, source, strategy.strategy, strategy.options, options.seed, work)


def plan_windows(
    rows: InputRows, windows: Windows, vectors: Vectors | None, options: PackOptions, work: Workspace
) -> Plans:
    """Plan every window, one after the other, each on all cores. Raises as `plan_window`."""
    tasks = [
        PlanTask(
            rows=rows.splits[split],
            split=split,
            window=window,
            options=options,
            vectors=vectors,
            path=_plan_path(split, window, vectors, work.staging),
        )
        for split, cut in windows.items()
        for window in cut
    ]
    plans: dict[str, list[PlannedWindow]] = {split: [] for split in windows}
    with work.stage("planning", sum(task.window.num_tokens for task in tasks)) as advance:
        for task in tasks:
            plans[task.split].append(_planned(task, work, advance))
    return plans


def _plan_path(split: str, window: Window, vectors: Vectors | None, staging: Staging) -> Path:
    of_vectors = f"-{vectors.content[:8]}" if vectors else ""
    return staging.work / f"plan-{split}-w{window.index:04d}{of_vectors}.arrow"


def _planned(task: PlanTask, work: Workspace, advance: Monitor) -> PlannedWindow:
    """A window planned now, or by an earlier run."""
    record = work.staging.finished(task.path)
    if record is not None:
        advance(task.window.num_tokens)
        summary, plan_hash = msgspec.convert(record["summary"], WindowSummary), record["file"]["xxh3_128"]
    else:
        facts, summary = plan_window(task, work.engine, work.engine.monitor(advance))
        work.staging.record(task.path, facts, summary=msgspec.to_builtins(summary))
        plan_hash = facts.xxh3_128
    return PlannedWindow(window=task.window, plan=task.path, plan_hash=plan_hash, summary=summary)


def write_shards(
    rows: InputRows,
    plans: Plans,
    run_id: str,
    compression: str,
    work: Workspace,
    before: Mapping[str, int] | None = None,
) -> dict[str, dict[str, ShardFacts]]:
    """Write every shard; returns those of each split by name, in their order. Raises `OSError` for storage faults.

    before: the samples of each split that there are already, in what is appended to; None for a first run, in which a
    split without packs has a shard without packs.
    """
    schema = schema_of_packs(rows)
    tasks = {
        split: [
            ShardTask(
                rows=rows.splits[split],
                window=planned.window,
                first_sample=(before or {}).get(split, 0),
                plan=planned.plan,
                plan_hash=planned.plan_hash,
                shard=number,
                tokens=size.tokens,
                schema=schema,
                compression=compression,
                path=work.staging.dataset / split / _shard_name(run_id, planned.window.index, number),
            )
            for planned in of_split
            for number, size in enumerate(planned.summary.shards)
        ]
        for split, of_split in plans.items()
    }
    for split in tasks:
        make_folder(work.staging.dataset / split)
    every = [task for of_split in tasks.values() for task in of_split]
    facts = {task.path: kept for task in every if (kept := _kept_shard(task, work.staging)) is not None}
    todo = [task for task in every if task.path not in facts]
    if facts and todo:
        log.info("resuming: %s of an earlier run kept, %s to write", counted(len(facts), "shard"), len(todo))
    with work.stage("writing", sum(task.tokens for task in todo)) as advance:
        write = partial(_write_and_record, staging=work.staging, monitor=work.engine.monitor(advance))
        for task, written in zip(todo, work.engine.map(write, todo), strict=True):
            facts[task.path] = written
    shards = {split: {task.path.name: facts[task.path] for task in of_split} for split, of_split in tasks.items()}
    for split, of_split in shards.items():
        if not of_split and before is None:
            of_split.update(_empty_shard(work.staging.dataset / split / _shard_name(run_id, 0, 0), schema))
    return shards


def schema_of_packs(rows: InputRows) -> pa.Schema:
    """The columns of packs of some samples."""
    return SOURCED_PACK_SCHEMA if rows.tells_sources else PACK_SCHEMA


def _shard_name(run_id: str, window: int, shard: int) -> str:
    return f"data-{run_id[:8]}-w{window:04d}-s{shard:04d}.arrow"


def _kept_shard(task: ShardTask, staging: Staging) -> ShardFacts | None:
    """The shard, if an earlier run wrote it by the same plan: vectors that were made anew may differ by rounding."""
    record = staging.finished(task.path)
    return None if record is None or record.get("plan") != task.plan_hash else ShardFacts(**record["file"])


def _write_and_record(task: ShardTask, staging: Staging, monitor: Monitor) -> ShardFacts:
    facts = write_shard(task, monitor)
    staging.record(task.path, facts, plan=task.plan_hash)
    return facts


def _empty_shard(path: Path, schema: pa.Schema) -> dict[str, ShardFacts]:
    """The shard of a split without packs, which could be saved without one, but not loaded."""
    return {path.name: write_empty_shard(path, schema)}
