"""Directories of format version 1: tokenised ones are still read, packed ones are refused until they are replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run, left_behind
from tests.pipeline.chats import chat, template
from tests.pipeline.samples import random_rows, save

ROWS = [{"messages": chat("a", "b")}, {"messages": chat("a", "")}, {"messages": chat("c", "d d d")}]


def rewrite(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["self"] = hash_of_rest(manifest)
    (folder / "manifest.json").write_bytes(canonical_json(manifest))


def manifest_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return value


def make_tokenized_version_1(folder: Path) -> None:
    """Give a tokenised directory the names that version 1 had."""
    manifest = manifest_of(folder)
    manifest["format_version"] = 1
    manifest["config"]["on_error"] = "skip"
    for counts in (manifest["counts"], *(split["counts"] for split in manifest.get("splits", {}).values())):
        counts["skipped"] = counts.pop("dropped")
    for name in [name for name in manifest["files"] if name.endswith("dropped.jsonl")]:
        old = name.replace("dropped", "skipped")
        (folder / name).rename(folder / old)
        manifest["files"][old] = manifest["files"].pop(name)
    rewrite(folder, manifest)


@pytest.fixture(params=["rows", "splits"])
def tokenized(
    request: pytest.FixtureRequest, run: Run, tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A tokenised directory with a row left out, without splits and with them."""
    rows = datasets.Dataset.from_list(ROWS)
    both = datasets.DatasetDict({"train": rows, "test": rows.select([0])}) if request.param == "splits" else rows
    both.save_to_disk(str(tmp_path / "raw"))
    (tmp_path / "chatml.jinja").write_text(template("chatml", marks=False))
    flags = ["--tokenizer", tokenizer_dir, "--chat-template", tmp_path / "chatml.jinja", "--on-error", "drop"]
    assert run("tokenize", tmp_path / "raw", "--output", tmp_path / "tokens", *flags).code == 0
    return tmp_path / "tokens"


def test_a_tokenised_directory_of_version_1_packs_to_the_same(run: Run, tmp_path: Path, tokenized: Path) -> None:
    pack = ["pack", tokenized, "--max-length", 99]
    assert run(*pack, "--output", tmp_path / "new").code == 0
    make_tokenized_version_1(tokenized)
    ended = run(*pack, "--output", tmp_path / "old", "--json")
    assert ended.code == 0, ended.err
    assert (tmp_path / "old" / "manifest.json").read_bytes() == (tmp_path / "new" / "manifest.json").read_bytes()
    assert "tokenizer" in manifest_of(tmp_path / "old")
    assert run("verify", tmp_path / "old", "--source", tokenized).code == 0


def test_a_tokenised_directory_of_version_1_is_held_against_its_manifest(
    run: Run, tmp_path: Path, tokenized: Path
) -> None:
    make_tokenized_version_1(tokenized)
    pack = ["pack", tokenized, "--output", tmp_path / "out", "--max-length", 99]
    manifest = manifest_of(tokenized)
    for wrong in (manifest | {"counts": {}}, manifest | {"config": None}, manifest | {"splits": {"train": None}}):
        rewrite(tokenized, wrong)
        ended = run(*pack)
        assert ended.code == 3
        assert "manifest.json is not a manifest" in ended.err
    (tokenized / "manifest.json").write_bytes(canonical_json(manifest | {"run_id": "0" * 32}))
    ended = run(*pack)
    assert ended.code == 3
    assert "was changed after it was written" in ended.err


@pytest.fixture
def packed(run: Run, tmp_path: Path) -> Path:
    """A packed directory that says it is of version 1."""
    source, out = save(random_rows(30), tmp_path / "in"), tmp_path / "out"
    assert run("pack", source, "--output", out, "--max-length", 60).code == 0
    manifest = manifest_of(out)
    del manifest["cuts_stream"]
    rewrite(out, manifest | {"format_version": 1})
    return out


def test_a_packed_directory_of_version_1_is_refused_by_name(run: Run, tmp_path: Path, packed: Path) -> None:
    before = left_behind(tmp_path)
    ended = run("verify", packed)
    assert ended.code == 3
    assert f"{packed / 'manifest.json'} is of format version 1" in ended.err
    assert "--overwrite replaces what is there" in ended.err
    ended = run("pack", tmp_path / "in", "--output", packed, "--max-length", 60)
    assert ended.code == 2
    assert "is in the way" in ended.err
    assert "is of format version 1" in ended.err
    assert left_behind(tmp_path) == before


def test_a_packed_directory_of_version_1_is_replaced_when_that_is_asked(run: Run, tmp_path: Path, packed: Path) -> None:
    pack = ["pack", tmp_path / "in", "--output", packed, "--max-length", 60, "--overwrite"]
    (packed / "notes.txt").write_text("precious")
    ended = run(*pack)
    assert ended.code == 2
    assert "notes.txt is not part of the dataset there" in ended.err
    (packed / "notes.txt").unlink()
    assert run(*pack).code == 0
    assert manifest_of(packed)["format_version"] == 2
    assert run("verify", packed, "--source", tmp_path / "in").code == 0


def test_a_directory_of_a_later_version_is_refused(run: Run, tmp_path: Path, tokenized: Path) -> None:
    rewrite(tokenized, manifest_of(tokenized) | {"format_version": 3})
    ended = run("pack", tokenized, "--max-length", 99, "--output", tmp_path / "packed")
    assert ended.code == 3
    assert "is of format version 3; this release reads up to 2" in ended.err
    assert not (tmp_path / "packed").exists()
