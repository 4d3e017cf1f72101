"""What is trained, counted: turns, targets by kind, and what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run
from tests.pipeline.tokenizing.conftest import Lines, manifest_of
from tests.pipeline.tokenizing.test_chats import AGENT, PLAIN, REASONED, TEMPLATES, TOOL, told


@pytest.mark.parametrize(
    ("template", "row", "options", "counts"),
    [
        ("qwen2_5", PLAIN, {}, (4, 2, 0)),
        ("qwen2_5", {"messages": AGENT, "tools": [TOOL]}, {}, (4, 2, 0)),
        ("qwen3", REASONED, {"history": "expand"}, (4, 2, 0)),
        ("qwen3", REASONED, {"history": "as-rendered"}, (4, 2, 1)),
        ("qwen3", REASONED, {"train_on": "last"}, (4, 1, 1)),
        ("qwen3", REASONED, {"train_on": "last", "history": "expand"}, (4, 1, 1)),
        ("qwen3", REASONED, {"reasoning": "drop"}, (4, 2, 2)),
        ("qwen3_training", REASONED, {}, (4, 2, 0)),
    ],
)
def test_turns_are_counted_once(
    tok: Path, tmp_path: Path, template: str, row: Any, options: dict[str, Any], counts: tuple[int, int, int]
) -> None:
    found, _ = told(tok, template, tmp_path, row, **options)
    assert not found.faults
    names = ("turns", "turns_trained", "reasoning_left_out")
    assert tuple(found.turn_counts[name] for name in names) == counts


def test_one_step_says_what_two_steps_say(run: Run, lines: Lines, tok: Path, tmp_path: Path) -> None:
    source = lines([{"messages": REASONED}, {"messages": PLAIN}, {"messages": [PLAIN[0]]}])
    tokenized_by = ("--tokenizer", tok, "--chat-template", TEMPLATES / "qwen3.jinja")
    flags = (*tokenized_by, "--history", "as-rendered", "--on-error", "drop")
    ended = run("tokenize", source, "--output", tmp_path / "tokens", *flags)
    assert "4 trained, of 8 in all" in ended.out and "of 1 turn" in ended.out, ended.err
    out = tmp_path / "packs"
    result = run("pack", source, "--output", out, "--max-length", 256, *flags, "--json").json
    counts = manifest_of(tmp_path / "tokens")["counts"]
    assert result["tokenized"] == counts == manifest_of(out)["tokenized"]
    assert sum(counts["targets_by_kind"].values()) == counts["targets"]
    assert run("verify", out).code == 0
    manifest = manifest_of(out)
    manifest["tokenized"]["targets_by_kind"]["answer"] += 1
    manifest["tokenized"]["turns_trained"] += 1
    manifest["self"] = hash_of_rest(manifest)
    (out / "manifest.json").write_bytes(canonical_json(manifest))
    ended = run("verify", out, "--source", source, *tokenized_by)
    assert ended.code == 4 and "targets by kind of raw rows" in ended.out and "not so of the source" in ended.out


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        (
            {300: None, 500: "", 999: None, 1000: None, 1700: None},
            "row 300: {} (so it is in at least 2 of the first 1,000",
        ),
        ({1500: None, 1501: None, 1700: None}, "row 1500: {}. Leave out"),
        ({1799: None}, "row 1799: {}. Leave out"),
    ],
)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_fault_says_how_many_rows_are_like_it(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], faults: dict[int, Any], told: str, num_workers: int
) -> None:
    """If any are. Over files, and also in blocks that come later: rows 600 to 1,799 stand in another file."""
    rows = [{"prompt": "a" * 200, "completion": faults.get(number, "b")} for number in range(1800)]
    sources = [lines(rows[:600], "a.jsonl"), lines(rows[600:], "b.jsonl")]
    ended = run("tokenize", *sources, "--output", tmp_path / "o", *flags, "--num-workers", num_workers)
    assert ended.code == 3
    first = min(faults)
    message = told.format("column 'completion' is null")
    if first >= 600:
        message = message.replace(f"row {first}", f"row {first - 600}")
    assert f"{'a' if first < 600 else 'b'}.jsonl, {message}" in ended.err
