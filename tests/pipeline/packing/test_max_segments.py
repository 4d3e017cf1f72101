"""`pack --max-segments`: the cap holds in every window, is told, verified, and refused where it cannot be kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import datasets
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import PackManifest, hash_of_rest
from tests.conftest import Run
from tests.pipeline.samples import random_rows, save


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """200,000 samples of 1 to 8 tokens."""
    offsets = np.append(0, np.cumsum(np.random.default_rng(0).integers(1, 9, 200_000))).astype(np.int32)
    tokens = pa.array(np.arange(offsets[-1], dtype=np.int32))
    path = tmp_path / "tiny.parquet"
    pq.write_table(pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(offsets), tokens)}), path)
    return path


def segments_of(folder: Path) -> list[int]:
    return [len(lengths) for lengths in datasets.load_from_disk(str(folder))["seq_lengths"]]


def test_tiny_samples_in_every_window(run: Run, tmp_path: Path, tiny: Path) -> None:
    flags = ("--max-length", 131_072, "--keep-untrainable", "--window-samples", 70_000)
    out = tmp_path / "out"
    ended = run("pack", tiny, "--output", out, *flags, "--max-segments", 3072, "--json")
    assert ended.code == 0, ended.err
    windows = json.loads((out / "manifest.json").read_bytes())["windows"]
    assert [window["packs"] for window in windows] == [-(-window["rows"] // 3072) for window in windows] == [23, 23, 20]
    assert max(segments_of(out)) == ended.json["segments_per_pack"]["max"] == 3072
    assert ended.json["lower_bound"] == -(-200_000 // 3072), "tokens alone would need 7"
    assert run("verify", out, "--source", tiny).code == 0
    assert "3,072 allowed" in (out / "README.md").read_text()
    assert "3,072 at most (3,072 allowed)" in run("pack", tiny, *flags, "--max-segments", 3072, "--dry-run").out


def test_wrapped_cuts_as_without_a_cap_and_closes_packs_early(run: Run, tmp_path: Path) -> None:
    source = save(random_rows(300, longest=20), tmp_path / "in")
    flags = ("--max-length", 64, "--strategy", "wrapped", "--pack-order", "plan", "--keep-untrainable")
    assert run("pack", source, "--output", tmp_path / "free", *flags).code == 0
    assert run("pack", source, "--output", tmp_path / "capped", *flags, "--max-segments", 5).code == 0
    free, capped = (datasets.load_from_disk(str(tmp_path / name)) for name in ("free", "capped"))
    for column in ("sample_ids", "sample_offsets", "seq_lengths"):
        assert [*itertools.chain(*free[column])] == [*itertools.chain(*capped[column])]
    for lengths, after in itertools.pairwise(capped["seq_lengths"]):
        assert len(lengths) == 5 or sum(lengths) + after[0] > 64, "a pack is closed no earlier than it has to be"
    assert max(map(len, capped["seq_lengths"])) == 5 < max(map(len, free["seq_lengths"]))
    assert run("verify", tmp_path / "capped", "--source", source).code == 0


def test_parts_of_a_sample_count(run: Run, tmp_path: Path) -> None:
    source = save([{"input_ids": list(range(50))}, *({"input_ids": [1, 2]} for _ in range(10))], tmp_path / "in")
    flags = ("--max-length", 20, "--overlong", "split", "--max-segments", 2)
    ended = run("pack", source, "--output", tmp_path / "out", *flags, "--json")
    assert (ended.json["packs"], ended.json["lower_bound"]) == (8, 7), "13 segments, two of which fill packs alone"
    assert max(segments_of(tmp_path / "out")) == 2


def test_a_cap_makes_another_run_and_none_the_same(run: Run, tmp_path: Path) -> None:
    source, out = save(random_rows(20), tmp_path / "in"), tmp_path / "out"
    assert run("pack", source, "--output", out, "--max-length", 60).code == 0
    ended = run("pack", source, "--output", out, "--max-length", 60, "--max-segments", 4)
    assert ended.code == 2
    assert "max_segments: None there, 4 now" in ended.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--strategy", "minibatch", "--max-segments", 7), "--max-segments 7: strategy 'minibatch' (batch_size=8,"),
        (("--max-segments", 0), "max-segments"),
    ],
)
def test_a_cap_that_cannot_be_kept_is_refused(run: Run, tmp_path: Path, flags: Any, told: str) -> None:
    source = save(random_rows(20), tmp_path / "in")
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, *flags)
    assert (ended.code, told in ended.err) == (2, True), ended.err
    assert not (tmp_path / "out").exists()


def test_verify_holds_packs_against_the_cap(run: Run, tmp_path: Path) -> None:
    source, out = save(random_rows(60), tmp_path / "in"), tmp_path / "out"
    assert run("pack", source, "--output", out, "--max-length", 200, "--max-segments", 6).code == 0
    manifest = json.loads((out / "manifest.json").read_bytes())
    manifest["config"]["max_segments"] = 5
    manifest["run_id"] = msgspec.convert(manifest, PackManifest).identity({}).run_id
    manifest["self"] = hash_of_rest(manifest)
    (out / "manifest.json").write_bytes(canonical_json(manifest))
    ended = run("verify", out)
    assert ended.code == 4
    assert "it holds more than 5 segments" in ended.out
