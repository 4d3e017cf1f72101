"""`pack --tokenizer`: the same packs as tokenising first, and rows that keep their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from pipeline.tokenizing import shards
from tests.conftest import Run, left_behind
from tests.pipeline.chats import chat
from tests.pipeline.tokenizing.conftest import Lines, manifest_of


@pytest.fixture
def sources(lines: Lines) -> list[Path]:
    rows = [{"messages": chat(f"question {i}", f"answer {i} " * (i % 7 + 1))} for i in range(600)]
    return [lines(rows[:400], "one.jsonl"), lines(rows[400:], "two.jsonl")]


def test_in_one_go_and_in_two(run: Run, tmp_path: Path, sources: list[Path], flags: list[object]) -> None:
    assert run("tokenize", *sources, "--output", tmp_path / "tokens", *flags).code == 0
    assert run("pack", tmp_path / "tokens", "--output", tmp_path / "two", "--max-length", 256).code == 0
    ended = run("pack", *sources, "--output", tmp_path / "one", "--max-length", 256, *flags)
    assert ended.code == 0, ended.err
    one, two = (datasets.load_from_disk(str(tmp_path / name)) for name in ("one", "two"))
    assert one.to_dict() == two.to_dict()
    for name in ("one", "two"):
        manifest = manifest_of(tmp_path / name)
        assert {key: manifest[key] for key in ("tokenizer", "chat_template")} == {
            key: manifest_of(tmp_path / "tokens")[key] for key in ("tokenizer", "chat_template")
        }
        assert run("verify", tmp_path / name).code == 0
    assert manifest_of(tmp_path / "one")["config"]["tokenize"]["format"] == "auto"
    assert [entry["rows"] for entry in manifest_of(tmp_path / "one")["inputs"]] == [400, 200]


def test_rows_left_out_keep_the_numbers_of_the_others(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any
) -> None:
    source = lines([{"messages": chat("a", "b")}, {"messages": chat("a", "")}, {"messages": chat("c", "d")}])
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 99, *flags, "--on-error", "drop")
    assert ended.code == 0, ended.err
    assert "1 row left out (empty_turn 1)" in ended.err and "without tokens" not in ended.err
    (pack,) = datasets.load_from_disk(str(tmp_path / "out"))
    assert sorted(pack["sample_ids"]) == [0, 2]
    manifest = manifest_of(tmp_path / "out")
    assert manifest["dropped_rows"] == {"empty_turn": 1}
    assert manifest["counts"]["samples_in"] == 3 and manifest["counts"]["dropped"]["empty"]["samples"] == 1
    assert json.loads((tmp_path / "out" / "dropped.jsonl").read_text())["row"] == 1
    assert run("verify", tmp_path / "out").code == 0
    ended = run("pack", source, "--max-length", 99, *flags, "--on-error", "drop", "--dry-run")
    assert "1 row left out (empty_turn 1)" in ended.err and "dropped.jsonl" not in ended.err


def test_overlong_names_the_row_of_the_raw_file(
    run: Run, tmp_path: Path, sources: list[Path], flags: list[object], lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)  # so that a file is spread over several
    long = lines(
        [*({"messages": chat("q", "a")} for _ in range(500)), {"messages": chat("q", "word " * 500)}], "l.jsonl"
    )
    ended = run("pack", *sources, long, "--output", tmp_path / "out", "--max-length", 256, *flags)
    assert ended.code == 3
    assert "l.jsonl, row 500" in ended.err.splitlines()[-1]
    assert left_behind(tmp_path) == ["chatml.jinja", "l.jsonl", "one.jsonl", "two.jsonl"]


def test_dry_run_and_show(run: Run, tmp_path: Path, sources: list[Path], flags: list[object]) -> None:
    ended = run("pack", *sources, "--max-length", 256, *flags, "--train-on", "all", "--dry-run", "--show", 1)
    assert ended.code == 0, ended.err
    assert "⟦<|im_start|>user↵⟧\nuser       trained " in ended.out and "⟦question 0⟧" in ended.out
    assert "600 of 600 samples" in ended.out
    for told in ("train_on all (flag)", "tokenizer small (flag)", "chat_template chatml.jinja (flag)"):
        assert told in " ".join(ended.out.split())
    ended = run("pack", *sources, "--max-length", 256, *flags, "--show", 1)
    assert ended.code == 0 and "⟦answer 0" in ended.out and "packed" not in ended.out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--on-error", "drop"], "--on-error is for raw rows"),
        (["--map", "text=x"], "--map is for raw rows"),
        (["--show", "1"], "--show is for raw rows"),
    ],
)
def test_flags_without_a_tokenizer(run: Run, tmp_path: Path, sources: list[Path], more: list[str], told: str) -> None:
    ended = run("pack", *sources, "--output", tmp_path / "out", "--max-length", 256, *more)
    assert ended.code == 2 and told in ended.err and "without --tokenizer" in ended.err


def test_raw_rows_without_a_tokenizer(run: Run, tmp_path: Path, sources: list[Path]) -> None:
    ended = run("pack", *sources, "--output", tmp_path / "out", "--max-length", 256)
    assert ended.code == 3 and "add --tokenizer" in ended.err


def test_tokens_with_a_tokenizer(run: Run, tmp_path: Path, sources: list[Path], flags: list[object]) -> None:
    assert run("tokenize", *sources, "--output", tmp_path / "tokens", *flags).code == 0
    ended = run("pack", tmp_path / "tokens", "--output", tmp_path / "out", "--max-length", 256, *flags)
    assert ended.code == 3 and "tokenised already" in ended.err


def test_different_tokenizers_are_not_mixed(
    run: Run, tmp_path: Path, sources: list[Path], flags: list[object], whole: Any
) -> None:
    other = transformers.AutoTokenizer.from_pretrained(str(flags[1]))
    other.add_tokens(["question"])
    other.save_pretrained(str(tmp_path / "other"))
    assert run("tokenize", sources[0], "--output", tmp_path / "a", *flags).code == 0
    assert run("tokenize", sources[1], "--output", tmp_path / "b", *flags).code == 0
    second = ["--tokenizer", tmp_path / "other", *flags[2:]]
    assert run("tokenize", sources[1], "--output", tmp_path / "c", *second).code == 0
    assert run("pack", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "ab", "--max-length", 256).code == 0
    ended = run("pack", tmp_path / "a", tmp_path / "c", "--output", tmp_path / "ac", "--max-length", 256)
    assert ended.code == 3 and "different tokenizers" in ended.err
    assert not (tmp_path / "ac").exists()


def test_a_tokenised_dataset_that_was_changed(
    run: Run, tmp_path: Path, sources: list[Path], flags: list[object]
) -> None:
    assert run("tokenize", *sources, "--output", tmp_path / "tokens", *flags).code == 0
    (shard,) = (tmp_path / "tokens").glob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ended = run("pack", tmp_path / "tokens", "--output", tmp_path / "out", "--max-length", 256)
    assert ended.code == 3 and "changed after it was tokenised" in ended.err
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (tmp_path / "tokens" / "manifest.json").write_text("{")
    ended = run("pack", tmp_path / "tokens", "--output", tmp_path / "out", "--max-length", 256)
    assert ended.code == 3 and "manifest.json: damaged" in ended.err
    (tmp_path / "tokens" / "manifest.json").unlink()
    assert run("tokenize", sources[0], "--output", tmp_path / "known", *flags).code == 0
    both = [tmp_path / "known", tmp_path / "tokens"]
    ended = run("pack", *both, "--output", tmp_path / "out", "--max-length", 256)
    assert ended.code == 0 and "tokens does not tell its tokenizer" in ended.err


def test_tokens_are_verified_without_their_source(
    run: Run, tmp_path: Path, sources: list[Path], flags: list[object]
) -> None:
    assert run("tokenize", *sources, "--output", tmp_path / "tokens", *flags).code == 0
    assert run("verify", tmp_path / "tokens").code == 0
    assert run("verify", tmp_path / "tokens", "--source", sources[0]).code == 2


def test_verify_against_raw_rows(
    run: Run, tmp_path: Path, sources: list[Path], flags: list[object], lines: Lines
) -> None:
    assert run("pack", *sources, "--output", tmp_path / "out", "--max-length", 256, *flags).code == 0
    compare = ["verify", tmp_path / "out", "--source", sources[0], "--source"]
    assert run(*compare, sources[1], *flags).code == 0
    ended = run(*compare, sources[1])
    assert ended.code == 2 and "--tokenizer (small)" in ended.err
    ended = run(*compare, sources[1], *flags[:2])
    assert ended.code == 2 and "packed with chatml.jinja" in ended.err
    changed = sources[1].read_text().replace("question 401", "question 402")
    other = lines(changed.splitlines(), "changed.jsonl")
    ended = run(*compare, other, *flags)
    assert ended.code == 4
