"""What targets should be, said in another way than the code under test says it."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from pipeline.tokenizing.encoding import EncodedBlock


def lines_of(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def samples_of(block: EncodedBlock) -> list[tuple[list[int], list[int]]]:
    """(input_ids, labels) of each sample."""
    found, at = [], 0
    for length in block.lengths:
        found.append((block.input_ids[at : at + length].tolist(), block.labels[at : at + length].tolist()))
        at += length
    return found


def trained_runs(input_ids: list[int], labels: list[int]) -> list[list[int]]:
    """The tokens that are trained, run by run; they are their own labels."""
    runs = []
    for is_target, run in groupby(zip(input_ids, labels, strict=True), key=lambda pair: pair[1] != -100):
        pairs = list(run)
        if is_target:
            assert all(token == label for token, label in pairs)
            runs.append([token for token, _ in pairs])
    return runs


def straddle_free(run: list[int], text: str, whole: Any) -> str:
    """The text of a run of targets, without what a first token holds of the text before it."""
    decoded = str(whole.decode(run, skip_special_tokens=False))
    extra = decoded.removesuffix(text)
    first = str(whole.decode(run[:1], skip_special_tokens=False))
    return text if decoded.endswith(text) and (not extra or len(extra) < len(first)) else decoded
