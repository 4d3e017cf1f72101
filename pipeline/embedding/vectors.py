"""The vectors of a run: made chunk by chunk, found again if they were made before, put together window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import xxhash

from pipeline.base.dealing.stages import Kind, Stage, TaskContext
from pipeline.base.digests import hash_arrays, hash_bytes
from pipeline.base.staging import Staging
from pipeline.embedding.embedders import Embedder
from pipeline.embedding.store import VectorStore
from pipeline.format.records import EmbeddingEntry
from pipeline.reading.input_rows import InputRows
from pipeline.reading.windows import SplitRows, Window
from pipeline.reading.workspace import Workspace
from strategies import Draws, Strategy
from strategies.arrays import Arrays, Int16Array, Int64Array
from strategies.contract import PREPARATION_SAMPLES, Preparation

CHUNK_ROWS = 2048
"""Rows of a task, and of what an interrupted run loses at most."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """The vectors of all rows of a run, and what the strategy prepared from them."""

    store: VectorStore
    content: str
    """The hash of all vectors."""

    num_dimensions: int
    preparation: Preparation

    def of_window(self, split: str, window: Window) -> Int16Array:
        """Vectors of a window's rows.  # shape: (num_rows, num_dimensions)"""
        first, end = window.first_row, window.first_row + window.num_rows
        vectors = np.zeros((window.num_rows, self.num_dimensions), np.int16)
        for start in range(first - first % CHUNK_ROWS, end, CHUNK_ROWS):
            chunk = _load(self.store, split, start)
            begin, stop = max(start, first), min(start + len(chunk), end)
            vectors[begin - first : stop - first] = chunk[begin - start : stop - start]
        return vectors

    @property
    def entry(self) -> EmbeddingEntry:
        """What the manifest says of them."""
        return EmbeddingEntry(
            dimensions=self.num_dimensions,
            vectors_xxh3_128=self.content,
            prepared_xxh3_128=hash_arrays(self.preparation),
        )


@dataclass(frozen=True, kw_only=True)
class EmbedTask:
    """A chunk of rows to be embedded."""

    split: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class EmbedStage(Stage[EmbedTask, tuple[str, int]]):
    """Embedding chunks: each task gives the hash and the width of its vectors."""

    kind: ClassVar[Kind] = "embed"
    title: ClassVar[str] = "embedding"
    noun: ClassVar[str] = "chunk"
    unit: ClassVar[str] = "row"
    is_common: ClassVar[bool] = True

    embedder: Embedder
    fitted: Arrays
    """What the embedder learned from the rows before any was embedded."""

    rows: Mapping[str, SplitRows]
    """By split."""

    store: VectorStore

    def units(self, task: EmbedTask) -> int:
        """Rows of the chunk."""
        return task.stop - task.start

    def name(self, task: EmbedTask) -> str:
        """What the chunk is called in the store."""
        return _chunk_name(task.split, task.start)

    def words(self, task: EmbedTask) -> str:
        """Its rows."""
        return f"rows {task.start} to {task.stop - 1}{f' of {task.split}' if task.split else ''}"

    def finished(self, task: EmbedTask, staging: Staging) -> tuple[str, int] | None:
        """As of `Stage`; vectors may be older than the run."""
        entry = self.store.load(self.name(task))
        return None if entry is None else (entry[1], entry[0]["vectors"].shape[1])

    def do(self, task: EmbedTask, context: TaskContext) -> tuple[str, int]:
        """Raises as `Embedder.embed`, and `OSError` where the vectors cannot be stored."""
        vectors = self.embedder.embed(self.rows[task.split], task.start, task.stop, self.fitted)
        content = self.store.save(self.name(task), {"vectors": vectors})
        context.monitor(self.units(task))
        return content, vectors.shape[1]


def embed_rows(
    embedder: Embedder,
    rows: InputRows,
    windows: Mapping[str, Sequence[Window]],
    source: Mapping[str, Any],
    strategy: Strategy,
    options: Any,
    seed: int,
    work: Workspace,
) -> Vectors:
    """Embed every row, and let the strategy prepare.

    source: what tells the input from others, and how its tokens are read; options: the strategy's own.
    Raises as `Embedder.fit` and `Embedder.embed`.
    """
    identity = {**embedder.identity, "input": dict(source), "chunk_rows": CHUNK_ROWS}
    store = VectorStore(work.cache.folder, work.staging.work, identity)
    entry = store.load("fitted")
    fitted = entry[0] if entry else embedder.fit(list(rows.splits.values()), work.engine)
    if entry is None:
        store.save("fitted", fitted)
    tasks = [
        EmbedTask(split=split, start=start, stop=min(start + CHUNK_ROWS, of_split.num_rows))
        for split, of_split in rows.splits.items()
        for start in range(0, of_split.num_rows, CHUNK_ROWS)
    ]
    digest = xxhash.xxh3_128()
    num_dimensions = 1
    stage = EmbedStage(embedder=embedder, fitted=fitted, rows=rows.splits, store=store)
    for content, num_dimensions in work.results(stage, tasks):  # noqa: B007 - the last is that of all
        digest.update(content.encode())
    content = digest.hexdigest()
    most = max((window.num_rows for cut in windows.values() for window in cut), default=0)
    sample = partial(_sample, store, rows.splits, num_dimensions)
    preparation = _prepare(strategy, options, seed, most, store, content, sample)
    return Vectors(store=store, content=content, num_dimensions=num_dimensions, preparation=preparation)


def _prepare(
    strategy: Strategy,
    options: Any,
    seed: int,
    most_rows: int,
    store: VectorStore,
    content: str,
    sample: partial[Int16Array],
) -> Preparation:
    """What the strategy finds once for the run, if it is not stored.

    most_rows: in one window; content: of all vectors; sample: gives vectors drawn from all rows.
    """
    if strategy.prepare is None:
        return {}
    key = f"{content}/{strategy.name}/{options}/seed={seed}/most={most_rows}"
    name = f"prepared-{hash_bytes(key.encode())}"
    entry = store.load(name)
    if entry is not None:
        return entry[0]
    draws = Draws(f"seed={seed}/prepare/{strategy.name}")
    preparation = dict(strategy.prepare(sample(draws), most_rows, options))
    store.save(name, preparation)
    return preparation


def _chunk_name(split: str, start: int) -> str:
    return f"{split}-{start:012d}"


def _load(store: VectorStore, split: str, start: int) -> Int16Array:
    vectors: Int16Array = store.read(_chunk_name(split, start))[0]["vectors"]
    return vectors


def _sample(store: VectorStore, splits: Mapping[str, SplitRows], num_dimensions: int, draws: Draws) -> Int16Array:
    """Vectors of rows drawn from all splits, in the order drawn, without those of rows that have none."""
    firsts = dict(zip(splits, np.cumsum([0, *(rows.num_rows for rows in splits.values())]), strict=False))
    drawn = draws.sample(sum(rows.num_rows for rows in splits.values()), PREPARATION_SAMPLES)
    vectors = np.zeros((len(drawn), num_dimensions), np.int16)
    ascending: Int64Array = np.argsort(drawn, kind="stable")
    at = 0
    for split, rows in splits.items():
        for start in range(0, rows.num_rows, CHUNK_ROWS):
            first = int(firsts[split]) + start
            until = int(np.searchsorted(drawn[ascending], first + min(CHUNK_ROWS, rows.num_rows - start)))
            if until > at:
                taken = ascending[at:until]
                vectors[taken] = _load(store, split, start)[drawn[taken] - first]
                at = until
    return vectors[vectors.any(axis=1)]
