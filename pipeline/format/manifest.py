"""manifest.json: what a packed dataset is, how it was made, and the checksums that prove it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from pipeline.packing.plan import WindowSummary
from pipeline.packing.segments import REASONS, Counts
from pipeline.reading.windows import Window

FORMAT_VERSION = 1
ALGORITHM_VERSION = 1
"""Bumped by hand whenever the bytes of any output would change."""

TOKENIZED = "tokenized"
"""The `kind` of a tokenised dataset; a packed one names none."""

MANIFEST = "manifest.json"

ORIGIN = ("tokenizer", "chat_template")
"""Where tokens come from, with name and content hash; the keys are missing where that is not known."""

EMBEDDING_MODEL = "embedding_model"
"""The same of what made vectors of samples, where a model did."""

_NAMED = (*ORIGIN, EMBEDDING_MODEL)


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one form of a manifest: sorted keys, fixed separators, ASCII."""
    return (json.dumps(value, indent=1, sort_keys=True, separators=(",", ": "), ensure_ascii=True) + "\n").encode()


def identity(told: Mapping[str, Any], input_hashes: Sequence[str]) -> str:
    """run_id: the hash of everything that decides the output's bytes, in hex.

    told: versions and config, and tokenizer, chat template and embedding model where there are any, of which only the
    content counts.
    """
    hashed = {key: told[key] for key in ("format_version", "algorithm_version", "config")}
    hashed |= {key: told[key]["xxh3_128"] for key in _NAMED if told.get(key)}
    hashed["inputs"] = [list(input_hashes)]  # one list for each append
    return xxhash.xxh3_128_hexdigest(canonical(hashed))


def combine(hashes: Mapping[str, Sequence[str]]) -> str:
    """One hash for the files of an input: split -> the content hashes of its files, all in their order."""
    return xxhash.xxh3_128_hexdigest(canonical({"splits": [[split, *digests] for split, digests in hashes.items()]}))


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


def summarise(
    windows: Sequence[tuple[Window, WindowSummary]],
    capacity: int,
    told: Callable[[Mapping[str, int | float]], Mapping[str, int | float]],
) -> dict[str, Any]:
    """The figures of the given windows. told: what is told of the sums of what the strategy reported."""
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
        "report": dict(told(report)),
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
    """The manifest of a packed dataset.

    Raises `ValueError` if it is missing, not of this format, or was changed after it was written; `OSError` if
    unreadable.
    """
    return _checked(folder, _DICT_MANIFEST, _MANIFEST)


def read_tokenized(folder: Path) -> dict[str, Any]:
    """The manifest of a tokenised dataset; raises as `read`."""
    return _checked(folder, _DICT_TOKENIZED, _TOKENIZED)


def is_tokenized(folder: Path) -> bool:
    """Whether a directory says that it is a tokenised dataset."""
    try:
        read_tokenized(folder)
    except (ValueError, OSError):
        return False
    return True


def _checked(folder: Path, with_splits: Any, without: Any) -> dict[str, Any]:
    where = folder / MANIFEST
    try:
        value = json.loads(where.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{where} is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from None
    kind = value.get("kind") if isinstance(value, dict) else None
    if (kind == TOKENIZED) != ("kind" in without):
        raise ValueError(f"{folder} is a {'tokenised' if kind == TOKENIZED else 'packed'} dataset")
    unlike = _unlike(value, with_splits if isinstance(value, dict) and "splits" in value else without, "")
    if unlike is not None:
        raise ValueError(f"{where} is not a manifest of format {FORMAT_VERSION}: {unlike}")
    assert isinstance(value, dict)
    if own_hash(value) != value.get("self"):
        raise ValueError(f"{where} was changed after it was written")
    return value


class _Each:
    """The shape of every value of a mapping whose keys are free."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape


_LOSS = {"samples": int, "tokens": int, "targets": int, "samples_affected": int}
_FIGURES = {
    "capacity": int,
    "counts": {
        **{f"{what}_{way}": int for what in ("samples", "tokens", "targets") for way in ("in", "packed")},
        "dropped": dict.fromkeys(REASONS, _LOSS),
    },
    "packs": int,
    "fill": float,
    "lower_bound": int,
    "segments_per_pack": {"mean": float, "max": int},
    "sum_length_squared": int,
    "report": _Each(int | float),
}
_SPLIT = {**_FIGURES, "windows": [{"rows": int, "tokens": int, "packs": int}]}
_IDENTITY = {
    "format_version": int,
    "algorithm_version": int,
    "run_id": str,
    "config": _Each(object),
    "inputs": [{"name": str, "rows": int, "bytes": int, "xxh3_128": str}],
    "files": _Each({"bytes": int, "xxh3_128": str}),
    "self": str,
}
_TALLY = {"rows": int, "samples": int, "tokens": int, "targets": int, "skipped": _Each(int)}
_ORIGIN = {"tokenizer": {"name": str, "xxh3_128": str}, "chat_template": object}
_MANIFEST = {**_IDENTITY, **_SPLIT}
_DICT_MANIFEST = {**_IDENTITY, **_FIGURES, "splits": _Each(_SPLIT)}
_TOKENIZED = {**_IDENTITY, **_ORIGIN, "kind": str, "counts": _TALLY}
_DICT_TOKENIZED = {**_TOKENIZED, "splits": _Each({"counts": _TALLY})}


def _unlike(value: Any, shape: Any, at: str) -> str | None:
    """Where a JSON value lacks something of a shape, or has another type there; None if it fits."""
    if isinstance(shape, list):
        parts = [(f"{at}[{i}]", one, shape[0]) for i, one in enumerate(value)] if isinstance(value, list) else None
    elif isinstance(shape, _Each):
        parts = [(f"{at}.{key}", one, shape.shape) for key, one in value.items()] if isinstance(value, dict) else None
    elif isinstance(shape, dict):
        missing = [key for key in shape if key not in value] if isinstance(value, dict) else []
        if missing:
            return f"{at}.{missing[0]} is missing".lstrip(".")
        parts = [(f"{at}.{key}", value[key], one) for key, one in shape.items()] if isinstance(value, dict) else None
    else:
        fits = isinstance(value, shape) and (shape is object or not isinstance(value, bool))
        return None if fits else f"{at.lstrip('.')} has the wrong type"
    if parts is None:
        return f"{at.lstrip('.') or 'it'} has the wrong type"
    return next((told for name, one, of in parts if (told := _unlike(one, of, name)) is not None), None)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, for the message that refuses to replace one by the other."""
    told = []
    configs = [_flat(manifest["config"]) for manifest in (old, new)]
    for key in sorted({*configs[0], *configs[1]}):
        before, after = (config.get(key) for config in configs)
        if before != after:
            told.append(f"{key}: {before} there, {after} now")
    if [entry["xxh3_128"] for entry in old["inputs"]] != [entry["xxh3_128"] for entry in new["inputs"]]:
        there, now = (", ".join(f"{e['name']} ({e['xxh3_128'][:8]})" for e in m["inputs"]) for m in (old, new))
        told.append(f"content of the inputs: {there} there, {now} now")
    for key in _NAMED:
        entries = [manifest.get(key) for manifest in (old, new)]
        if len({entry and entry["xxh3_128"] for entry in entries}) > 1:
            there, now = map(_origin, entries)
            told.append(f"{key}: {there} there, {now} now")
    for key in ("format_version", "algorithm_version"):
        if old.get(key) != new[key]:
            told.append(f"{key}: {old.get(key)} there, {new[key]} now")
    return told


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; empty ones do not count."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _origin(entry: Mapping[str, Any] | None) -> str:
    return f"{entry['name']} ({entry['xxh3_128'][:8]})" if entry else "not known"
