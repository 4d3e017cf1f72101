from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.objects.datasets import FLAGS
from tests.pipeline.samples import random_rows, write_jsonl


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(random_rows(120), tmp_path / "one.jsonl")


@pytest.fixture
def tokenizing(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[object], list[object]]:
    """`tokenize` of twelve texts and a last one that is given, several shards of them, but for its output."""
    monkeypatch.setattr("pipeline.tokenizing.shards.SHARD_BYTES", 1)
    monkeypatch.setattr("pipeline.reading.decoding.raw.BLOCK_BYTES", 1 << 7)

    def command(last: object) -> list[object]:
        texts = [f"a text of its own, number {number}" for number in range(12)]
        source = write_jsonl([{"text": text} for text in [*texts, last]], tmp_path / "texts.jsonl")
        return ["tokenize", source, "--tokenizer", tokenizer_dir, "--num-workers", 1]

    return command


@pytest.fixture(params=["pack", "tokenize"])
def job(request: pytest.FixtureRequest, source: Path, tokenizing: Callable[[object], list[object]]) -> list[object]:
    """A command that makes several shards, but for its output."""
    return ["pack", source, *FLAGS, "--num-workers", 1] if request.param == "pack" else tokenizing("the last")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short lease, which a loaded machine renews in time all the same, and retries that hardly wait."""
    monkeypatch.setattr("pipeline.base.objects.lease.SECONDS", 3.0)
    monkeypatch.setattr("pipeline.base.objects.lease.RENEWED_AFTER", 0.3)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
