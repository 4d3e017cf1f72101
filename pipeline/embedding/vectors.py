"""The vectors of a run: made chunk by chunk, found again if they were made before, put together window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.base.engine import LocalEngine
from pipeline.base.progress import bar
from pipeline.embedding.embedders import Embedder
from pipeline.embedding.store import Arrays, VectorStore, hash_arrays
from pipeline.reading.windows import SplitRows, Window
from strategies import Draws, Strategy
from strategies.contract import SAMPLED, Int16Array, Int64Array, Prepared

CHUNK_ROWS = 2048
"""Rows of a task, and of what an interrupted run loses at most."""

_Chunk = tuple[str, int, int]  # split, first row, end


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The vectors of all rows of a run, and what the strategy prepared from them."""

    store: VectorStore
    content: str
    """xxh3_128 of all vectors, in hex."""

    num_dimensions: int
    prepared: Prepared

    def of_rows(self, split: str, window: Window) -> Int16Array:
        """Vectors of a window's rows.  # shape: (num_rows, num_dimensions)"""
        first, end = window.first_row, window.first_row + window.num_rows
        vectors = np.zeros((window.num_rows, self.num_dimensions), np.int16)
        for start in range(first - first % CHUNK_ROWS, end, CHUNK_ROWS):
            chunk = _load(self.store, split, start)
            begin, stop = max(start, first), min(start + len(chunk), end)
            vectors[begin - first : stop - first] = chunk[begin - start : stop - start]
        return vectors

    def describe(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {
            "dimensions": self.num_dimensions,
            "vectors_xxh3_128": self.content,
            "prepared_xxh3_128": hash_arrays(dict(self.prepared)),
        }


def embed_rows(
    embedder: Embedder,
    splits: Mapping[str, SplitRows],
    windows: Mapping[str, Sequence[Window]],
    origin: Mapping[str, Any],
    strategy: Strategy,
    options: Any,
    seed: int,
    engine: LocalEngine,
    cache_dir: Path,
    staging: Path,
) -> Embedded:
    """Embed every row, and let the strategy prepare.

    origin: what tells the input, and how its tokens are read. Raises as `Embedder.fit` and `Embedder.embed`.
    """
    identity = {**embedder.identity, "input": origin, "chunk_rows": CHUNK_ROWS}
    store = VectorStore(cache_dir, staging, identity)
    found = store.load("fitted")
    if found is None:
        fitted = embedder.fit(list(splits.values()), engine)
        store.save("fitted", fitted)
    else:
        fitted = found[0]
    chunks: list[_Chunk] = [
        (split, start, min(start + CHUNK_ROWS, rows.num_rows))
        for split, rows in splits.items()
        for start in range(0, rows.num_rows, CHUNK_ROWS)
    ]
    digest = xxhash.xxh3_128()
    num_dimensions = 1
    with bar("embedding", sum(stop - start for _, start, stop in chunks), "row") as advance:

        def embed(chunk: _Chunk) -> tuple[str, int, int]:
            split, start, stop = chunk
            engine.checkpoint()
            saved = store.load(_name(split, start))
            if saved is None:
                vectors = embedder.embed(splits[split], start, stop, fitted)
                return store.save(_name(split, start), {"vectors": vectors}), vectors.shape[1], stop - start
            arrays, content = saved
            return content, arrays["vectors"].shape[1], stop - start

        for content, width, num_rows in engine.map(embed, chunks):
            digest.update(content.encode())
            num_dimensions = width
            advance(num_rows)
    prepared: Arrays = {}
    if strategy.prepare is not None:
        most = max((window.num_rows for cut in windows.values() for window in cut), default=0)
        asked = f"{digest.hexdigest()}/{strategy.name}/{options}/seed={seed}/most={most}"
        name = f"prepared-{xxhash.xxh3_128_hexdigest(asked.encode())}"
        saved = store.load(name)
        if saved is None:
            draws = Draws(f"seed={seed}/prepare/{strategy.name}")
            sample = _sample(store, splits, num_dimensions, draws)
            prepared = dict(strategy.prepare(sample, most, options))
            store.save(name, prepared)
        else:
            prepared = saved[0]
    return Embedded(store=store, content=digest.hexdigest(), num_dimensions=num_dimensions, prepared=prepared)


def _name(split: str, start: int) -> str:
    return f"{split}-{start:012d}"


def _load(store: VectorStore, split: str, start: int) -> Int16Array:
    saved = store.load(_name(split, start))
    if saved is None:
        raise OSError(f"embeddings were removed while they were used: {_name(split, start)}")
    vectors: Int16Array = saved[0]["vectors"]
    return vectors


def _sample(store: VectorStore, splits: Mapping[str, SplitRows], num_dimensions: int, draws: Draws) -> Int16Array:
    """Vectors of rows drawn from all splits, in the order drawn, without those of rows that have none."""
    firsts = dict(zip(splits, np.cumsum([0, *(rows.num_rows for rows in splits.values())]), strict=False))
    drawn = draws.sample(sum(rows.num_rows for rows in splits.values()), SAMPLED)
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
