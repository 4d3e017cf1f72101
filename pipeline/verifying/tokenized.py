"""Checking the shards of a tokenised dataset against its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.base.arrays import as_numpy, list_offsets
from pipeline.base.engine import LocalEngine, Monitor
from pipeline.base.storage import map_file
from pipeline.base.words import in_one_line
from pipeline.format.columns import SOURCE_ROW, SOURCE_TURN, tokenized_schema
from pipeline.format.labels import IGNORE
from pipeline.format.manifest import MANIFEST, TokenizeManifest
from pipeline.format.records import FileEntry
from pipeline.reading.decoding.growth import growth_of
from pipeline.verifying.files import Problems, fault_of
from pipeline.verifying.splits import Content


@dataclass(frozen=True, kw_only=True)
class _Sums:
    samples: int = 0
    tokens: int = 0
    targets: int = 0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def check_tokenized(
    directory: Path,
    manifest: TokenizeManifest,
    shards: Mapping[str, Sequence[str]],
    engine: LocalEngine,
    monitor: Monitor,
) -> tuple[Problems, Content]:
    """Check every shard, and what the manifest says of all of them.

    shards: the paths of each split's, in their order; monitor: called with tokens.
    """
    problems = [
        f"{name}: it is none of the dataset's shards"
        for name, entry in manifest.files.items()
        if entry.is_shard and not any(name in paths for paths in shards.values())
    ]
    total = _Sums()
    for split, paths in shards.items():
        wrong, sums = _check_split(directory, manifest, paths, engine, monitor)
        problems += wrong
        total += sums
        if not wrong and isinstance(manifest.splits, dict):
            problems += _compare(sums, manifest.splits[split].counts, f"split {split}")
    if not problems:
        problems += _compare(total, manifest.counts, "the whole")
    return problems, Content(samples=total.samples, tokens=total.tokens, targets=total.targets)


def _check_split(
    directory: Path, manifest: TokenizeManifest, paths: Sequence[str], engine: LocalEngine, monitor: Monitor
) -> tuple[Problems, _Sums]:
    def check(path: str) -> _Sums | str:
        sums = _check_shard(directory / path, manifest.files[path])
        monitor(0 if isinstance(sums, str) else sums.tokens)
        return sums

    problems, total = [], _Sums()
    for path, sums in zip(paths, engine.map(check, paths), strict=True):
        if isinstance(sums, str):
            problems.append(f"{path}: {sums}")
        else:
            total += sums
    return problems, total


def _check_shard(path: Path, entry: FileEntry) -> _Sums | str:
    """What a shard holds, or what is wrong with it."""
    fault = fault_of(path, entry) or growth_of(path)
    if fault is not None:
        return fault
    sums = _Sums()
    try:
        with map_file(path) as file, pa.ipc.open_stream(file) as reader:
            names = reader.schema.names
            expected = tokenized_schema(
                text="text" in names, source_row=SOURCE_ROW in names, source_turn=SOURCE_TURN in names
            )
            if not reader.schema.equals(expected):
                return f"the columns are {', '.join(names)}, or have other types than the format's"
            for batch in reader:
                batch.validate(full=True)
                problem = _problem_of(batch, sums.samples)
                if problem is not None:
                    return problem
                labels = batch.column("labels").flatten()
                targets = int(np.count_nonzero(as_numpy(labels) != IGNORE))
                sums += _Sums(samples=batch.num_rows, tokens=len(labels), targets=targets)
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"it cannot be read ({in_one_line(error)})"
    if (sums.samples, sums.tokens, sums.targets) != (entry.samples, entry.tokens, entry.targets):
        return "its samples, tokens or targets are not those in the manifest"
    return sums


def _problem_of(batch: pa.RecordBatch, first: int) -> str | None:
    """What is wrong with the samples of a batch. first: the number of its first sample in the shard."""
    for name in batch.schema.names:
        array = batch.column(name)
        if array.null_count or (pa.types.is_list(array.type) and array.flatten().null_count):
            return f"column {name!r} has nulls"
    ids, labels = batch.column("input_ids"), batch.column("labels")
    lengths = np.diff(list_offsets(ids))
    wrong = np.flatnonzero(lengths != np.diff(list_offsets(labels)))
    if len(wrong):
        return f"sample {first + wrong[0]}: input_ids and labels do not have matching lengths"
    tokens, targets = as_numpy(ids.flatten()), as_numpy(labels.flatten())
    for what, at in (
        ("a token id is negative", np.flatnonzero(tokens < 0)),
        ("a label is neither -100 nor its token", np.flatnonzero((targets != IGNORE) & (targets != tokens))),
    ):
        if len(at):
            return f"sample {first + int(np.searchsorted(np.cumsum(lengths), at[0], side='right'))}: {what}"
    return None


def _compare(sums: _Sums, stated: object, whose: str) -> Problems:
    """Does the manifest state what the shards hold?"""
    return [
        f"{MANIFEST}: it states {getattr(stated, what):,} {what} of {whose}, the shards have {value:,}"
        for what, value in vars(sums).items()
        if getattr(stated, what) != value
    ]
