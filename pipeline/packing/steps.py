"""The steps of a run: each has tasks done, and gathers what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa

from pipeline.base.dealing.shares import Share
from pipeline.base.storage import make_folder
from pipeline.embedding.vectors import Vectors, embed_rows
from pipeline.format.columns import PACK_SCHEMA, SOURCED_PACK_SCHEMA
from pipeline.format.identity import Identity
from pipeline.format.options import PackOptions
from pipeline.packing.plan import PlanStage, PlanTask, WindowSummary
from pipeline.packing.setup import Setup
from pipeline.packing.shards import ShardFacts, ShardTask, WriteStage, write_empty_shard
from pipeline.reading.input_rows import InputRows
from pipeline.reading.windows import Window
from pipeline.reading.workspace import Workspace

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


def windows_of(windows: Windows, share: Share) -> Windows:
    """The windows of one of several processes that share a run: every so manieth through all splits."""
    mine = set(share.of([(split, window.index) for split, cut in windows.items() for window in cut]))
    return {split: [window for window in cut if (split, window.index) in mine] for split, cut in windows.items()}


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
    """Plan every window. Raises as `plan_window`."""
    of_vectors = f"-{vectors.content[:8]}" if vectors else ""
    tasks = [
        PlanTask(
            split=split,
            window=window,
            path=work.staging.work / f"plan-{split}-w{window.index:04d}{of_vectors}.arrow",
        )
        for split, cut in windows.items()
        for window in cut
    ]
    plans: dict[str, list[PlannedWindow]] = {split: [] for split in windows}
    planned = work.results(PlanStage(rows=rows.splits, options=options, vectors=vectors), tasks)
    for task, (summary, plan_hash) in zip(tasks, planned, strict=True):
        one = PlannedWindow(window=task.window, plan=task.path, plan_hash=plan_hash, summary=summary)
        plans[task.split].append(one)
    return plans


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
                split=split,
                window=planned.window,
                plan=planned.plan,
                plan_hash=planned.plan_hash,
                shard=number,
                tokens=size.tokens,
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
    stage = WriteStage(rows=rows.splits, first_samples=before or {}, schema=schema, compression=compression)
    written = work.results(stage, every)
    facts = {task.path: of_task for task, of_task in zip(every, written, strict=True)}
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


def _empty_shard(path: Path, schema: pa.Schema) -> dict[str, ShardFacts]:
    """The shard of a split without packs, which could be saved without one, but not loaded."""
    return {path.name: write_empty_shard(path, schema)}
