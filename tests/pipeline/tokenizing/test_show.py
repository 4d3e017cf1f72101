"""What is trained, counted and shown: every token is of one kind, and the counts are those of the tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run
from tests.pipeline.tokenizing.conftest import Lines, manifest_of
from tests.pipeline.tokenizing.test_chats import AGENT, PLAIN, REASONED, TEMPLATES, TOOL, told, tok

__all__ = ["tok"]


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
    flags = ("--tokenizer", tok, "--chat-template", TEMPLATES / "qwen3.jinja")
    flags = (*flags, "--history", "as-rendered", "--on-error", "drop")
    ended = run("tokenize", source, "--output", tmp_path / "tokens", *flags)
    assert "4 of 8 are trained" in ended.out and "of 1 turn" in ended.out, ended.err
    out = tmp_path / "packs"
    result = run("pack", source, "--output", out, "--max-length", 256, *flags, "--json").json
    counts = manifest_of(tmp_path / "tokens")["counts"]
    assert result["tokenized"] == counts == manifest_of(out)["tokenized"]
    assert sum(counts["targets_by_kind"].values()) == counts["targets"]
    compared = ("--source", source, *flags[:4])
    assert run("verify", out, *compared).code == 0
    for key, value, more in (("targets_by_kind", {"answer": 3}, ()), ("turns_trained", 3, compared)):
        manifest = manifest_of(out)
        manifest["tokenized"][key] = value
        manifest["self"] = hash_of_rest(manifest)
        (tmp_path / "kept").write_bytes((out / "manifest.json").read_bytes())
        (out / "manifest.json").write_bytes(canonical_json(manifest))
        ended = run("verify", out, *more)
        assert (ended.code, "(tokenized)" in ended.out) == (4, True), json.dumps(key)
        (out / "manifest.json").write_bytes((tmp_path / "kept").read_bytes())
