"""manifest.json: what a packed dataset is, how it was made, and the checksums that prove it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from pipeline.config import PackConfig
from pipeline.plan import WindowSummary
from pipeline.segments import Counts
from pipeline.windows import Window

FORMAT_VERSION = 1
ALGORITHM_VERSION = 1
"""Bumped by hand whenever the bytes of any output would change."""

MANIFEST = "manifest.json"


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one form of a manifest: sorted keys, fixed separators, ASCII."""
    return (json.dumps(value, indent=1, sort_keys=True, separators=(",", ": "), ensure_ascii=True) + "\n").encode()


def identity(config: PackConfig, input_hashes: Sequence[str]) -> str:
    """run_id: the hash of everything that decides the output's bytes, in hex."""
    told = {
        "format_version": FORMAT_VERSION,
        "algorithm_version": ALGORITHM_VERSION,
        "config": config.to_json(),
        "inputs": [list(input_hashes)],  # one list for each append
    }
    return xxhash.xxh3_128_hexdigest(canonical(told))


def combine(hashes: Mapping[str, Sequence[str]]) -> str:
    """One hash for the files of an input: split -> the content hashes of its files, in order."""
    return xxhash.xxh3_128_hexdigest(canonical({split: list(digests) for split, digests in hashes.items()}))


def figures(
    counts: Counts, num_packs: int, num_segments: int, most_segments: int, sum_length_squared: int, capacity: int
) -> dict[str, Any]:
    """What is told of a split, and of all splits together."""
    return {
        "capacity": capacity,
        "counts": counts.to_json(),
        "packs": num_packs,
        "fill": counts.tokens_packed / (num_packs * capacity) if num_packs else 0.0,
        "lower_bound": -(-counts.tokens_packed // capacity),
        "segments_per_pack": {"mean": num_segments / num_packs if num_packs else 0.0, "max": most_segments},
        "sum_length_squared": sum_length_squared,
    }


def summarise(windows: Sequence[tuple[Window, WindowSummary]], capacity: int) -> dict[str, Any]:
    """The figures of the given windows, their list, and the sums of what the strategy reported."""
    summaries = [summary for _, summary in windows]
    report: dict[str, int | float] = {}
    for summary in summaries:
        for key, value in summary.report.items():
            report[key] = report.get(key, 0) + value
    return {
        **figures(
            sum((s.counts for s in summaries), Counts()),
            sum(s.num_packs for s in summaries),
            sum(s.num_segments for s in summaries),
            max((s.most_segments for s in summaries), default=0),
            sum(s.sum_length_squared for s in summaries),
            capacity,
        ),
        "report": report,
    }


def describe_windows(windows: Sequence[tuple[Window, WindowSummary]]) -> list[dict[str, int]]:
    """Rows, tokens and packs of each window."""
    return [
        {"rows": window.num_rows, "tokens": window.num_tokens, "packs": summary.num_packs}
        for window, summary in windows
    ]


def seal(manifest: Mapping[str, Any], files: Mapping[str, Any]) -> bytes:
    """The manifest's bytes, with the files' checksums and its own."""
    rest = {**manifest, "files": {name: asdict(facts) for name, facts in files.items()}}
    return canonical({**rest, "self": own_hash(rest)})


def own_hash(manifest: Mapping[str, Any]) -> str:
    """xxh3_128 of the canonical form without `self`, in hex."""
    return xxhash.xxh3_128_hexdigest(canonical({key: value for key, value in manifest.items() if key != "self"}))


def read(folder: Path) -> dict[str, Any]:
    """A directory's manifest.

    Raises `ValueError` if it is missing, no manifest, or was changed after it was written; `OSError` if unreadable.
    """
    try:
        value = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{folder / MANIFEST} is missing") from None
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is not valid JSON ({error})") from None
    if not isinstance(value, dict) or "run_id" not in value:
        raise ValueError(f"{folder / MANIFEST} is not a manifest of ours")
    if own_hash(value) != value.get("self"):
        raise ValueError(f"{folder / MANIFEST} was changed after it was written")
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, for the message that refuses to replace one by the other."""
    told = []
    for key in sorted({*old["config"], *new["config"]}):
        before, after = old["config"].get(key), new["config"].get(key)
        if before != after:
            told.append(f"{key}: {before} there, {after} now")
    if [entry["xxh3_128"] for entry in old["inputs"]] != [entry["xxh3_128"] for entry in new["inputs"]]:
        there, now = (", ".join(f"{e['name']} ({e['xxh3_128'][:8]})" for e in m["inputs"]) for m in (old, new))
        told.append(f"content of the inputs: {there} there, {now} now")
    for key in ("format_version", "algorithm_version"):
        if old.get(key) != new[key]:
            told.append(f"{key}: {old.get(key)} there, {new[key]} now")
    return told
