"""The bytes of tiny outputs, which may only change together with a version number.

`UPDATE_GOLDEN=1 .venv/bin/pytest tests/pipeline/golden` writes golden.json anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pytest
import xxhash

from pipeline import PackOptions, RunOptions, TokenizeOptions, pack, tokenize
from tests.pipeline.chats import SPECIAL, chat, template

GOLDEN = Path(__file__).with_name("golden.json")
ROOT = Path(__file__).parents[3]

BUMP = {
    "shards": "packs or tokens have other bytes: bump ALGORITHM_VERSION in pipeline/format/identity.py, so that no"
    " output of the version before passes for up to date, and say so in CHANGELOG.md",
    "run_id": "the same run has another identity: every output there is would be made anew. If that is meant, bump"
    " ALGORITHM_VERSION in pipeline/format/identity.py",
    "files": "manifest.json or a file around the shards says something else: bump FORMAT_VERSION in"
    " pipeline/format/identity.py if readers have to change, and update docs/format.md",
}


def rows() -> list[dict[str, Any]]:
    """Samples of 1 to 29 tokens by a rule, some padded, some without a target, each with a vector."""
    made = []
    for i in range(60):
        length = 1 + (7 * i + i * i // 3) % 29
        ids = [(31 * i + 5 * j) % 97 for j in range(length)]
        labels = [-100 if (i + j) % 3 == 0 or i % 11 == 5 else token for j, token in enumerate(ids)]
        mask = [0 if i % 4 == 1 and j < 2 else 1 for j in range(length)]
        vector = [((i * (k + 3)) % 13) - 6.0 for k in range(5)]
        made.append({"input_ids": ids, "labels": labels, "attention_mask": mask, "vector": [1.0, *vector]})
    return made


PACKS: dict[str, dict[str, Any]] = {
    "padding, drop": {"strategy": "padding", "overlong": "drop"},
    "minibatch, truncate": {"strategy": "minibatch", "set": {"batch_size": 3}, "overlong": "truncate"},
    "minibatch, shuffled": {"strategy": "minibatch", "set": {"shuffle": True}, "overlong": "split"},
    "wrapped": {"strategy": "wrapped"},
    "wrapped, shuffled": {"strategy": "wrapped", "set": {"shuffle": True}},
    "next-fit, split": {"strategy": "next-fit", "overlong": "split"},
    "first-fit, drop": {"strategy": "first-fit", "overlong": "drop"},
    "first-fit-decreasing, truncate": {"strategy": "first-fit-decreasing", "overlong": "truncate"},
    "best-fit-decreasing, split": {"overlong": "split"},
    "best-fit-decreasing, in order": {"overlong": "drop", "pack_order": "plan", "keep_untrainable": True, "seed": 5},
    "best-fit-decreasing, lz4": {"overlong": "drop", "compression": "lz4"},
    "best-fit-decreasing, few segments": {"overlong": "split", "max_segments": 2},
    "threshold-filtering": {
        "strategy": "threshold-filtering",
        "set": {"embedder": "column", "column": "vector", "threshold": "percentile:10"},
        "overlong": "split",
    },
    "threshold-filtering, path": {
        "strategy": "threshold-filtering",
        "set": {"embedder": "column", "column": "vector", "threshold": "cosine:0.6", "mode": "path"},
        "overlong": "drop",
    },
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "in"
    integers = {name: datasets.List(datasets.Value("int32")) for name in ("input_ids", "labels", "attention_mask")}
    features = datasets.Features(integers | {"vector": datasets.List(datasets.Value("float64"))})
    datasets.Dataset.from_list(rows(), features=features).save_to_disk(str(folder))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """What is held fast of an output: the shards' bytes, the identity, and everything else."""
    run_id = json.loads((folder / "manifest.json").read_bytes())["run_id"]

    def combined(paths: Iterator[Path]) -> str:
        digest = xxhash.xxh3_128()
        for path in sorted(paths):
            digest.update(re.sub(rb"data-[0-9a-f]{8}-", b"data-", path.name.encode()) + path.read_bytes())
        return digest.hexdigest()

    return {
        "shards": combined(folder.glob("*.arrow")),
        "run_id": run_id,
        "files": combined(path for path in folder.iterdir() if path.suffix != ".arrow"),
    }


def compare(name: str, folder: Path) -> None:
    pins = dict(re.findall(r"^([\w-]+)==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for package in ("pyarrow", "tokenizers", "transformers"):
        if version(package) != pins[package]:
            pytest.skip(f"{package} {version(package)} is not the pinned one, under which the bytes were written")
    known = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    made = hashes(folder)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(known | {name: made}, indent=1, sort_keys=True) + "\n")
        return
    for what, value in made.items():
        assert value == known[name][what], BUMP[what]


@pytest.mark.parametrize("name", PACKS)
def test_packs(tmp_path: Path, source: Path, name: str) -> None:
    options = PackOptions(max_length=20, window_samples=25, shard_size=2500, **PACKS[name])
    run = RunOptions(num_workers=2, cache_dir=tmp_path / "cache")
    result = pack(source, tmp_path / "out", options, run=run)
    assert result.manifest.counts.balances()
    assert len(list((tmp_path / "out").glob("*.arrow"))) > 3
    compare(name, tmp_path / "out")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of whole words, made by hand so that no trainer's version counts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<unk>", "system", "user", "assistant", "what", "is", "one", "two", "three", "and", ".", "?"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL).save_pretrained(str(folder))
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    numbers = ["one", "two", "three"]
    lines = [chat(f"what is {numbers[i % 3]}?", f"{numbers[(i + 1) % 3]} and {numbers[i % 3]}.") for i in range(9)]
    lines[4] = chat("what?", "")
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in lines))
    return path


@pytest.mark.parametrize("marks", [True, False])
def test_tokens(tmp_path: Path, words: Path, chats: Path, marks: bool) -> None:
    path = tmp_path / "chatml.jinja"
    path.write_text(template("chatml", marks=marks))
    options = TokenizeOptions(on_error="drop", keep_text=True)
    run = RunOptions(num_workers=2, cache_dir=tmp_path / "cache")
    result = tokenize(chats, tmp_path / "out", words, options, chat_template=path, run=run)
    assert (result.manifest.counts.samples, result.manifest.counts.dropped) == (8, {"empty_turn": 1})
    compare(f"tokenize, {'with' if marks else 'without'} marks", tmp_path / "out")


def test_raw_rows_in_one_step(tmp_path: Path, words: Path, chats: Path) -> None:
    path = tmp_path / "chatml.jinja"
    path.write_text(template("chatml", marks=False))
    options = PackOptions(max_length=40, tokenize=TokenizeOptions(on_error="drop"))
    run = RunOptions(num_workers=2, cache_dir=tmp_path / "cache")
    pack(chats, tmp_path / "out", options, tokenizer=words, chat_template=path, run=run)
    compare("pack raw rows", tmp_path / "out")


def test_a_changed_byte_names_the_version_to_bump(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UPDATE_GOLDEN", raising=False)
    options = PackOptions(max_length=20, window_samples=25, shard_size=2500, **PACKS["wrapped"])
    pack(source, tmp_path / "out", options, run=RunOptions(cache_dir=tmp_path / "cache"))

    def fault_of(change: Callable[[Path], object], path: Path) -> str:
        before = path.read_bytes()
        change(path)
        with pytest.raises(AssertionError) as failure:
            compare("wrapped", tmp_path / "out")
        path.write_bytes(before)
        return str(failure.value)

    shard = next((tmp_path / "out").glob("*.arrow"))
    assert "bump ALGORITHM_VERSION" in fault_of(lambda path: path.write_bytes(path.read_bytes() + b"x"), shard)
    card = tmp_path / "out" / "README.md"
    assert "bump FORMAT_VERSION" in fault_of(lambda path: path.write_text("other"), card)
    compare("wrapped", tmp_path / "out")
