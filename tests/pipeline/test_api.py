"""`from pipeline import pack, tokenize, verify`: what the command line calls, for callers from Python."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import (
    ConfigError,
    DataError,
    PackOptions,
    Progress,
    RunOptions,
    TightpackError,
    TokenizeOptions,
    dry_run,
    load_tokenizer,
    pack,
    tokenize,
    verify,
)
from tests.conftest import left_behind
from tests.pipeline.samples import random_rows, save

ROOT = Path(__file__).parents[2]
OPTIONS = PackOptions(max_length=60)

# What a caller without a type checker might write.
WRONG_FOR_PACK: list[dict[str, Any]] = [
    {"max_length": 0},
    {"max_length": "60"},
    {"max_length": 60, "overlong": "cut"},
    {"max_length": True},
]
WRONG_FOR_TOKENIZE: list[dict[str, Any]] = [
    {"on_error": "skip"},
    {"format": "xml"},
    {"map": {"body": "x"}},
    {"append_eos": None},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(random_rows(100), tmp_path / "in")


@pytest.fixture
def run(tmp_path: Path) -> RunOptions:
    return RunOptions(cache_dir=tmp_path / "cache")


def test_the_three_names_in_any_order() -> None:
    """Each order in a process to which `pipeline` is new; what it needs of others is imported once for all of them."""
    lines = ["import os, sys", "import fsspec, msgspec, numba, numpy, pyarrow.parquet, xxhash"]
    for order in itertools.permutations(["pack", "tokenize", "verify"]):
        code = "".join(f"from pipeline import {name}; assert callable({name}), {name}\n" for name in order)
        code += "import pipeline.packing.run, pipeline.tokenizing.run, pipeline.verifying.verify\n"
        code += "".join(f"from pipeline import {name}; assert callable({name}), {name}\n" for name in order)
        lines += ["assert not any(name.startswith('pipeline') for name in sys.modules)", "child = os.fork()"]
        lines += [f"if child == 0:\n    exec({code!r})\n    os._exit(0)"]
        lines += [f"assert os.waitpid(child, 0)[1] == 0, {order}"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, cwd=ROOT)


def test_the_package_is_lazy_and_has_what_it_names() -> None:
    code = "import sys, pipeline\nassert not {'numpy', 'pyarrow', 'numba', 'msgspec', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert sorted(pipeline.__all__) == pipeline.__all__
    assert all(getattr(pipeline, name).__name__ == name for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="no attribute 'unpack'"):
        pipeline.unpack  # noqa: B018


def test_packing_prints_nothing_and_gives_a_frozen_result(
    tmp_path: Path, source: Path, run: RunOptions, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    result = pack(source, tmp_path / "out", OPTIONS, run=run)
    assert capfd.readouterr().out == ""
    assert result.status == "packed"
    assert result.output == tmp_path / "out"
    written = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert written["counts"]["tokens_packed"] == result.manifest.counts.tokens_packed
    assert written["run_id"] == result.manifest.run_id
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.status = "planned"  # type: ignore[misc]
    again = pack(str(source), str(tmp_path / "out"), OPTIONS, run=run)
    assert again.status == "up_to_date"
    assert again.manifest == result.manifest
    checked = verify(tmp_path / "out", source=[source], run=run)
    assert (checked.status, checked.problems) == ("verified", [])
    assert checked.tokens == result.manifest.counts.tokens_packed


def test_a_dry_run_plans_the_same_and_leaves_nothing(tmp_path: Path, source: Path, run: RunOptions) -> None:
    before = left_behind(tmp_path)
    planned = dry_run([source], OPTIONS, run=run)
    assert planned.status == "planned"
    assert planned.output is None
    assert left_behind(tmp_path) == before
    packed = pack([source], tmp_path / "out", OPTIONS, run=run)
    assert dataclasses.asdict(packed.overlong) == dataclasses.asdict(planned.overlong)
    for name in ("run_id", "packs", "fill", "counts", "windows", "inputs"):
        assert getattr(packed.manifest, name) == getattr(planned.manifest, name)


def test_progress_by_callback(tmp_path: Path, source: Path, run: RunOptions) -> None:
    seen: list[Progress] = []
    pack(source, tmp_path / "out", OPTIONS, run=run, progress=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["hashing inputs", "planning", "writing"]
    for stage in stages:
        of_stage = [progress for progress in seen if progress.stage == stage]
        assert [progress.ended for progress in of_stage] == [False] * (len(of_stage) - 1) + [True]
        done = [progress.done for progress in of_stage]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, of_stage[0].total)


def test_what_a_callback_raises_ends_the_run(tmp_path: Path, source: Path, run: RunOptions) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "writing" and progress.done:
            raise RuntimeError("enough")

    before = left_behind(tmp_path)
    with pytest.raises(RuntimeError, match="enough"):
        pack(source, tmp_path / "out", OPTIONS, run=run, progress=stop)
    assert left_behind(tmp_path) == before


def test_tokenizing_with_a_path_and_with_what_was_loaded(tmp_path: Path, run: RunOptions, tokenizer_dir: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"text": "one two"}\n{"text": "three"}\n{"text": ""}\n')
    options = TokenizeOptions(append_eos=True, on_error="drop")
    result = tokenize(raw, tmp_path / "out", tokenizer_dir, options, run=run)
    assert (result.status, result.manifest.counts.samples) == ("tokenized", 2)
    loaded = load_tokenizer(str(tokenizer_dir))
    assert tokenize([raw], tmp_path / "out", loaded, options, run=run).status == "up_to_date"
    packed = pack(raw, tmp_path / "packed", PackOptions(max_length=60, tokenize=options), tokenizer=loaded, run=run)
    assert packed.manifest.dropped_rows == {"empty_turn": 1}
    assert verify(tmp_path / "packed", source=raw, tokenizer=loaded, run=run).status == "verified"


def test_errors_are_of_one_family_and_told_in_one_message(tmp_path: Path, source: Path, run: RunOptions) -> None:
    for wrong in WRONG_FOR_PACK:
        with pytest.raises(ConfigError) as refused:
            PackOptions(**wrong)
        assert str(list(wrong)[-1]) in str(refused.value)
    for refused_too in WRONG_FOR_TOKENIZE:
        with pytest.raises(ConfigError):
            TokenizeOptions(**refused_too)
    with pytest.raises(ConfigError, match="num_workers must be at least 1"):
        RunOptions(num_workers=0)
    with pytest.raises(DataError, match="no such file or directory"):
        pack(tmp_path / "nowhere", tmp_path / "out", OPTIONS, run=run)
    with pytest.raises(ConfigError, match="there is no input"):
        pack([], tmp_path / "out", OPTIONS, run=run)
    with pytest.raises(DataError, match="longer than --max-length 20"):
        pack(source, tmp_path / "out", PackOptions(max_length=20), run=run)
    with pytest.raises(TightpackError, match="no such option"):
        pack(source, tmp_path / "out", PackOptions(max_length=60, set={"batch_size": 2}), run=run)
    assert verify(tmp_path / "nowhere", run=run).status == "failed"
