"""Writing one shard: a contiguous range of a window's packs, gathered, checksummed and on disk, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.base.arrays import as_arrow
from pipeline.base.dealing.stages import Kind, Stage, TaskContext
from pipeline.base.engine import Monitor
from pipeline.base.staging import Staging
from pipeline.base.storage import FileFacts, HashingFile
from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.packing.gather import gather
from pipeline.packing.plan import WindowPlan
from pipeline.reading.rows import Rows
from pipeline.reading.windows import SplitRows, Window
from strategies.arrays import Int64Array

_BATCH_TOKENS = 1 << 19  # in a record batch, unless one pack has more: small enough to stay in cache until written


@dataclass(frozen=True, kw_only=True)
class ShardFacts(FileFacts):
    """What is known of a written shard."""

    packs: int
    segments: int
    tokens: int
    targets: int


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be written."""

    split: str
    window: Window
    plan: Path
    """The window's plan."""

    plan_hash: str
    """Its content hash."""

    shard: int
    """Number of the shard in the plan."""

    tokens: int
    path: Path
    """The file to be written."""


@dataclass(frozen=True, kw_only=True)
class WriteStage(Stage[ShardTask, ShardFacts]):
    """Writing shards: each task gives what is known of one."""

    kind: ClassVar[Kind] = "write"
    title: ClassVar[str] = "writing"
    noun: ClassVar[str] = "shard"

    rows: Mapping[str, SplitRows]
    """By split."""

    first_samples: Mapping[str, int]
    """The number that the first row of each split has among the samples of the dataset, where it is not 0."""

    schema: pa.Schema
    compression: str

    def units(self, task: ShardTask) -> int:
        """Tokens of the shard."""
        return task.tokens

    def name(self, task: ShardTask) -> str:
        """The name of the shard's file."""
        return task.path.name

    def words(self, task: ShardTask) -> str:
        """The shard, and its window."""
        return f"shard {task.shard} of {task.window.words(task.split)}"

    def finished(self, task: ShardTask, staging: Staging) -> ShardFacts | None:
        """The shard, if it was written by the same plan: vectors that were made anew may differ by rounding."""
        record = staging.finished(task.path)
        return None if record is None or record.get("plan") != task.plan_hash else ShardFacts(**record["file"])

    def do(self, task: ShardTask, context: TaskContext) -> ShardFacts:
        """Raises as `write_shard`."""
        facts = write_shard(task, self, context.monitor)
        context.staging.record(task.path, facts, plan=task.plan_hash)
        return facts


@dataclass(frozen=True)
class _Samples:
    """The samples of a window."""

    rows: Rows
    first_sample: int
    """The number of the first of them."""

    sources: Mapping[str, Int64Array]
    """By column of packs: of which raw row each was made, and the turn that ends it; empty where that is not told.
    # shape: (num_rows,)"""


def write_shard(task: ShardTask, stage: WriteStage, monitor: Monitor) -> ShardFacts:
    """Gather the packs of one shard of a window and write them.

    monitor: called with tokens. Raises `OSError` for storage faults; leaves no partial file.
    """
    of_split = stage.rows[task.split]
    rows = of_split.read_window(task.window)
    plan = WindowPlan.load(task.plan).shard(task.shard)
    first_sample = stage.first_samples.get(task.split, 0) + task.window.first_row
    samples = _Samples(rows, first_sample, _sources(of_split, task.window, stage.schema))
    token_ends = np.cumsum(plan.length, dtype=np.int64)
    token_offsets = np.concatenate([[0], token_ends])[plan.pack_offsets]
    batches = _cut_batches(token_offsets)
    most = max((int(token_offsets[b] - token_offsets[a]) for a, b in batches), default=0)
    buffers = np.empty((3, most), np.int32)
    targets = 0
    file = HashingFile(task.path, is_shared=True)
    try:
        compression = None if stage.compression == "none" else stage.compression
        options = pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
        with pa.ipc.new_stream(pa.PythonFile(file, mode="w"), stage.schema, options=options) as writer:
            for first, last in batches:
                batch, num_targets = _batch(samples, plan, stage.schema, first, last, buffers)
                writer.write_batch(batch)
                targets += num_targets
                monitor(int(token_offsets[last] - token_offsets[first]))
        facts = file.finish()
    finally:
        file.discard()
    num_packs, num_tokens = len(plan.pack_offsets) - 1, int(token_offsets[-1])
    return ShardFacts(**asdict(facts), packs=num_packs, segments=len(token_ends), tokens=num_tokens, targets=targets)


def _sources(rows: SplitRows, window: Window, schema: pa.Schema) -> dict[str, Int64Array]:
    """The columns of packs that tell of raw rows, by sample; none where the schema has none."""
    if not set(SOURCE_COLUMNS) <= set(schema.names):
        return {}
    return dict(zip(SOURCE_COLUMNS, rows.sources(window), strict=True))


def _cut_batches(token_offsets: Int64Array) -> list[tuple[int, int]]:
    """Ranges of packs of about `_BATCH_TOKENS` tokens."""
    edges = [0]
    while edges[-1] < len(token_offsets) - 1:
        upto = int(np.searchsorted(token_offsets, token_offsets[edges[-1]] + _BATCH_TOKENS, side="right")) - 1
        edges.append(max(upto, edges[-1] + 1))
    return list(pairwise(edges))


def _batch(
    samples: _Samples, plan: WindowPlan, schema: pa.Schema, begin: int, end: int, buffers: npt.NDArray[np.int32]
) -> tuple[pa.RecordBatch, int]:
    """Packs begin..end-1 as a record batch, and their targets."""
    pack_offsets = plan.pack_offsets[begin : end + 1]
    which = slice(int(pack_offsets[0]), int(pack_offsets[-1]))
    length = plan.length[which]
    segment_offsets = pack_offsets - pack_offsets[0]  # shape: (num_packs + 1,)
    ends = np.cumsum(length, dtype=np.int64)  # shape: (num_segments,)
    token_offsets = np.concatenate([[0], ends])[segment_offsets]  # shape: (num_packs + 1,)
    num_tokens, num_packs = int(token_offsets[-1]), end - begin

    input_ids, labels, position_ids = (buffer[:num_tokens] for buffer in buffers)
    target_counts = np.empty(len(length), np.int32)
    row = plan.row[which]
    gather(
        samples.rows,
        row,
        plan.start[which],
        length,
        plan.skip[which],
        input_ids,
        labels,
        position_ids,
        target_counts,
    )

    boundaries = np.zeros(len(length) + num_packs, np.int32)
    pack_of = np.repeat(np.arange(num_packs), np.diff(segment_offsets))
    boundaries[np.arange(len(length)) + pack_of + 1] = ends - token_offsets[pack_of]

    by_token, by_segment = token_offsets, segment_offsets
    by_boundary = segment_offsets + np.arange(num_packs + 1)
    content = {
        "input_ids": (by_token, input_ids),
        "labels": (by_token, labels),
        "position_ids": (by_token, position_ids),
        "boundaries": (by_boundary, boundaries),
        "seq_lengths": (by_segment, length),
        "sample_ids": (by_segment, samples.first_sample + row),
        "sample_offsets": (by_segment, plan.start[which]),
        "target_counts": (by_segment, target_counts),
        **{name: (by_segment, values[row]) for name, values in samples.sources.items()},
    }
    columns = [
        pa.ListArray.from_arrays(as_arrow(offsets, pa.int32()), as_arrow(values, schema.field(name).type.value_type))
        for name, (offsets, values) in content.items()
    ]
    return pa.record_batch(columns, schema=schema), int(target_counts.sum())


def write_empty_shard(path: Path, schema: pa.Schema) -> ShardFacts:
    """Write a shard with a schema and no packs."""
    file = HashingFile(path, is_shared=True)
    try:
        pa.ipc.new_stream(pa.PythonFile(file, mode="w"), schema).close()
        return ShardFacts(**asdict(file.finish()), packs=0, segments=0, tokens=0, targets=0)
    finally:
        file.discard()
