"""What packing must do to samples, written from the format's text, one token at a time."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest

REASONS = ("padding_removed", "empty", "overlong_dropped", "overlong_truncated", "first_token", "no_targets", "cut")
LOST = ("samples", "tokens", "targets", "samples_affected")


@dataclass
class Expected:
    """Kept samples by row, as (tokens, labels before any cut), and the losses by reason."""

    samples: dict[int, tuple[list[int], list[int]]] = field(default_factory=dict)
    losses: dict[str, dict[str, int]] = field(
        default_factory=lambda: {
            r: dict.fromkeys(("samples", "tokens", "targets", "samples_affected"), 0) for r in REASONS
        }
    )
    samples_in: int = 0
    tokens_in: int = 0
    targets_in: int = 0


def raw_labels(row: dict[str, Any]) -> list[int]:
    """A row's labels, however they are given."""
    if "labels" in row:
        return list(row["labels"])
    for mask in ("completion_mask", "assistant_masks", "loss_mask"):
        if mask in row:
            return [t if m else -100 for t, m in zip(row["input_ids"], row[mask], strict=True)]
    return list(row["input_ids"])


def expect(
    rows: list[dict[str, Any]],
    max_length: int,
    overlong: str = "error",
    keep_untrainable: bool = False,
    stream: bool = False,
) -> Expected:
    """Apply the steps of the format in their order."""
    told = Expected()

    def lose(reason: str, samples: int, tokens: int, targets: int) -> None:
        for key, value in zip(LOST, (samples, tokens, targets, 1), strict=True):
            told.losses[reason][key] += value

    def num_targets(labels: list[int]) -> int:
        return sum(label != -100 for label in labels)

    for i, row in enumerate(rows):
        tokens, labels = list(row["input_ids"]), raw_labels(row)
        told.samples_in += 1
        told.tokens_in += len(tokens)
        told.targets_in += num_targets(labels)
        mask = row.get("attention_mask", [1] * len(tokens))
        if not all(mask):
            lose(
                "padding_removed",
                0,
                mask.count(0),
                num_targets([t for t, m in zip(labels, mask, strict=True) if not m]),
            )
            tokens = [t for t, m in zip(tokens, mask, strict=True) if m]
            labels = [t for t, m in zip(labels, mask, strict=True) if m]
        if not tokens:
            lose("empty", 1, 0, 0)
            continue
        if len(tokens) > max_length and not stream:
            if overlong in ("drop", "error"):
                lose("overlong_dropped", 1, len(tokens), num_targets(labels))
                continue
            if overlong == "truncate":
                lose("overlong_truncated", 0, len(tokens) - max_length, num_targets(labels[max_length:]))
                tokens, labels = tokens[:max_length], labels[:max_length]
        if labels[0] != -100:
            lose("first_token", 0, 0, 1)
            labels[0] = -100
        if num_targets(labels) == 0 and not keep_untrainable:
            lose("no_targets", 1, len(tokens), 0)
            continue
        told.samples[i] = (tokens, labels)
    return told


def assert_packed(
    folder: Path, told: Expected, manifest: dict[str, Any], first_sample: int = 0, max_segments: float = math.inf
) -> None:
    """Hold a packed dataset against what was expected, reading it with plain `datasets`."""
    packs = datasets.load_from_disk(str(folder))
    capacity = manifest["capacity"]
    pieces: dict[int, list[tuple[int, list[int], list[int]]]] = defaultdict(list)
    for pack in packs:
        bounds = pack["boundaries"]
        size = len(pack["input_ids"])
        assert 0 < size <= capacity and len(pack["seq_lengths"]) <= max_segments
        assert len(pack["labels"]) == len(pack["position_ids"]) == size
        assert bounds[0] == 0
        assert bounds[-1] == size
        assert pack["seq_lengths"] == [b - a for a, b in itertools.pairwise(bounds)]
        assert min(pack["seq_lengths"]) > 0
        assert pack["position_ids"] == [p for n in pack["seq_lengths"] for p in range(n)]
        for s, (a, b) in enumerate(itertools.pairwise(bounds)):
            assert pack["labels"][a] == -100
            assert pack["target_counts"][s] == sum(label != -100 for label in pack["labels"][a:b])
            piece = (pack["sample_offsets"][s], pack["input_ids"][a:b], pack["labels"][a:b])
            pieces[pack["sample_ids"][s] - first_sample].append(piece)

    assert set(pieces) == set(told.samples)
    cut = {"samples": 0, "tokens": 0, "targets": 0, "samples_affected": 0}
    for sample, (tokens, labels) in told.samples.items():
        want = list(labels)
        at = 0
        touched = 0
        for start, tokens_of_piece, _ in sorted(pieces[sample]):
            assert start == at
            if start > 0 and want[start] != -100:
                want[start] = -100
                cut["targets"] += 1
                touched = 1
            at += len(tokens_of_piece)
        cut["samples_affected"] += touched
        assert [t for _, piece, _ in sorted(pieces[sample]) for t in piece] == tokens
        assert [t for _, _, piece in sorted(pieces[sample]) for t in piece] == want

    counts = manifest["counts"]
    assert (counts["samples_in"], counts["tokens_in"], counts["targets_in"]) == (
        told.samples_in,
        told.tokens_in,
        told.targets_in,
    )
    assert counts["dropped"] == {**told.losses, "cut": cut}
    for what in ("samples", "tokens", "targets"):
        assert counts[f"{what}_in"] == counts[f"{what}_packed"] + sum(loss[what] for loss in counts["dropped"].values())
    assert counts["samples_packed"] == len(told.samples)
    assert manifest["packs"] == len(packs)
    lengths = [n for pack in packs for n in pack["seq_lengths"]]
    assert manifest["lower_bound"] == math.ceil(max(sum(lengths) / capacity, len(lengths) / max_segments))
    assert manifest["sum_length_squared"] == sum(n * n for n in lengths)
    if len(packs):
        assert manifest["fill"] == pytest.approx(sum(lengths) / (len(packs) * capacity))
        assert manifest["segments_per_pack"] == {
            "mean": pytest.approx(len(lengths) / len(packs)),
            "max": max(len(pack["seq_lengths"]) for pack in packs),
        }
