"""Checking the shards of a packed dataset, split by split and window by window, against manifest and source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.base.engine import LocalEngine
from pipeline.base.progress import bar
from pipeline.format import manifest as manifests
from pipeline.packing.config import PackConfig
from pipeline.packing.plan import scan_block, scan_blocks
from pipeline.packing.segments import Counts, Loss, account
from pipeline.reading.files import hash_file
from pipeline.reading.inputs import SINGLE
from pipeline.reading.rows import Int64Array, Rows
from pipeline.reading.scan import MOST_TOKENS, Facts
from pipeline.reading.windows import SplitRows, Window
from pipeline.verifying.shards import ShardCheck, check_shard, misplaced

_SHARD = re.compile(r"data-[0-9a-f]{8}-w(\d+)-s(\d+)\.arrow")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The inputs that a dataset was packed from, by split, and how they were to be packed."""

    splits: Mapping[str, SplitRows]
    config: PackConfig
    cuts_stream: bool


def splits_of(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What the manifest says of each split; a dataset without splits has one, called `SINGLE`."""
    return dict(manifest["splits"]) if "splits" in manifest else {SINGLE: manifest}


def shards_of(manifest: Mapping[str, Any], split: str) -> list[tuple[int, str]]:
    """(window, name) of a split's shards in their order."""
    found = []
    for name in manifest["files"]:
        folder, _, base = name.rpartition("/")
        match = _SHARD.fullmatch(base)
        if match and folder == split:
            found.append((int(match[1]), int(match[2]), name))
    return [(window, name) for window, _, name in sorted(found)]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the shards of a split, or of all splits, hold."""

    counts: Counts = field(default_factory=Counts)
    packs: int = 0
    segments: int = 0
    most_segments: int = 0
    sum_length_squared: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0

    def __add__(self, other: Found) -> Found:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Found(**{**sums, "most_segments": max(self.most_segments, other.most_segments)})

    @staticmethod
    def of(check: ShardCheck) -> Found:
        """The figures of one shard."""
        return Found(
            packs=check.packs,
            segments=len(check.sample),
            most_segments=int(np.bincount(check.pack).max()) if check.packs else 0,
            sum_length_squared=int(np.dot(check.length, check.length)),
            tokens=check.tokens,
            targets=check.targets,
        )


class Checker:
    """Checks the shards, window by window."""

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], engine: LocalEngine, source: Source | None
    ) -> None:
        self._directory, self._manifest, self._engine, self._source = directory, manifest, engine, source
        self.found = Found()

    def run(self) -> list[str]:
        """Check everything; what is wrong, in words."""
        tokens = sum(facts.get("tokens", 0) for facts in self._manifest["files"].values())
        problems: list[str] = []
        with bar("verifying", tokens) as advance:
            for split, described in splits_of(self._manifest).items():
                wrong, found = self._check_split(split, described, advance)
                problems += wrong
                self.found += found
        if not problems and "splits" in self._manifest:
            problems += _compare_figures(self._manifest, self.found)
        return problems

    def _check_split(
        self, split: str, described: Mapping[str, Any], advance: Callable[[int], object]
    ) -> tuple[list[str], Found]:
        windows = _windows(described)
        rows = self._source.splits[split] if self._source is not None else None
        if self._source is not None and rows is not None:
            told = _other_rows(rows, self._source.config, described)
            if told is not None:
                return [f"{split or 'source'}: {told}"], Found()
        names: dict[int, list[str]] = {window.index: [] for window in windows}
        for index, name in shards_of(self._manifest, split):
            names.setdefault(index, []).append(name)
        stray = [name for index in names if index >= len(windows) for name in names[index]]
        if stray:
            return [f"{stray[0]}: the manifest has no such window"], Found()

        def tasks() -> Iterator[tuple[str, tuple[Rows, int] | None]]:
            for window in windows:
                held = None
                if rows is not None and window.num_rows and names[window.index]:
                    held = rows.read(window.first_row, window.first_row + window.num_rows), window.first_row
                for name in names[window.index]:
                    yield name, held

        def check(task: tuple[str, tuple[Rows, int] | None]) -> tuple[str, ShardCheck | str]:
            self._engine.checkpoint()
            result = self._check_shard(*task, described["capacity"])
            advance(self._manifest["files"][task[0]].get("tokens", 0))
            return task[0], result

        checked = self._engine.map(check, tasks())
        problems: list[str] = []
        total = Found()
        for window in windows:
            results = list(islice(checked, len(names[window.index])))
            wrong, found = self._check_window(split, window, described, results)
            problems += wrong
            total += found
        if not problems:
            problems += _compare_figures(described, total)
            if self._source is not None:
                problems += _compare_counts(described, total.counts)
        return problems, total

    def _check_window(
        self, split: str, window: Window, described: Mapping[str, Any], results: list[tuple[str, ShardCheck | str]]
    ) -> tuple[list[str], Found]:
        """What only shows when all shards of a window are seen together: samples lost, doubled or unaccounted for."""
        shards = [(name, result) for name, result in results if not isinstance(result, str)]
        found = sum((Found.of(result) for _, result in shards), Found())
        wrong = [f"{name}: {result}" for name, result in results if isinstance(result, str)]
        if wrong:
            return wrong, found
        problem, packed = misplaced(shards, window.first_row, window.num_rows)
        if problem is not None:
            return [problem], found
        found += Found(samples=int(np.count_nonzero(packed)))
        stated = described["windows"][window.index]["packs"] if described["windows"] else 0
        if found.packs != stated:
            return [f"{manifests.MANIFEST}: window {window.index} has {found.packs} packs, not {stated}"], found
        if self._source is None:
            return [], found
        wrong, counts = _account(self._source, split, window, packed, shards)
        return wrong, found + Found(counts=counts)

    def _check_shard(self, name: str, source: tuple[Rows, int] | None, capacity: int) -> ShardCheck | str:
        """The content of a shard, or what is wrong with it."""
        path, facts = self._directory / name, self._manifest["files"][name]
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                return f"it has {size:,} bytes, the manifest says {facts['bytes']:,}"
            if hash_file(str(path)) != facts["xxh3_128"]:
                return "its checksum is not the manifest's"
            result = check_shard(path, capacity, source)
        except FileNotFoundError:
            return "missing"
        except (OSError, ValueError, pa.ArrowException, IndexError) as error:
            return f"it cannot be read ({' '.join(str(error).split())})"
        if result.problem is not None:
            return result.problem
        stated = tuple(facts.get(key) for key in ("packs", "segments", "tokens", "targets"))
        if stated != (result.packs, len(result.sample), result.tokens, result.targets):
            return "its packs, segments, tokens or targets are not those in the manifest"
        return result


def _other_rows(rows: SplitRows, config: PackConfig, described: Mapping[str, Any]) -> str | None:
    """How the source's rows differ from those packed, by the windows they are cut into."""
    cut = [(window.num_rows, window.num_tokens) for window in rows.cut(config.window_samples, config.window_tokens)]
    stated = [(window["rows"], window["tokens"]) for window in described["windows"]]
    if cut == stated:
        return None
    packed = sum(num_rows for num_rows, _ in stated)
    if rows.num_rows == packed:
        return "it has rows of other lengths than those packed"
    return f"it has {rows.num_rows:,} rows, but {packed:,} were packed"


def _windows(described: Mapping[str, Any]) -> list[Window]:
    """The windows of a split; one without rows where the split has none, for its empty shard."""
    windows = []
    first = 0
    for index, window in enumerate(described["windows"] or [{"rows": 0, "tokens": 0}]):
        windows.append(Window(index=index, first_row=first, num_rows=window["rows"], num_tokens=window["tokens"]))
        first += window["rows"]
    return windows


def _account(
    source: Source, split: str, window: Window, packed: Int64Array, shards: list[tuple[str, ShardCheck]]
) -> tuple[list[str], Counts]:
    """Is every token of a window packed, or left out for a reason that the source confirms?"""
    if not window.num_rows:
        return [], Counts()
    rows, config = source.splits[split], source.config
    facts = Facts.join([scan_block(rows, *block, config) for block in scan_blocks(window)])
    remains, length, counts, _ = account(
        facts,
        max_length=MOST_TOKENS if source.cuts_stream else config.max_length,
        overlong=config.overlong,
        keep_untrainable=config.keep_untrainable,
    )
    expected = np.where(remains, length, 0)
    wrong = np.flatnonzero(packed != expected)
    if len(wrong):
        row = int(wrong[0])
        where = rows.locate(window.first_row + row)
        return [
            f"sample {window.first_row + row} ({where}): {packed[row]} of {expected[row]} tokens are packed"
        ], counts
    cut = np.concatenate([check.sample[check.masked_cut] for _, check in shards] or [np.zeros(0, np.int64)])
    loss = Loss(targets=len(cut), samples_affected=len(np.unique(cut)))
    return [], replace(counts, targets_packed=counts.targets_packed - len(cut), dropped={**counts.dropped, "cut": loss})


def _compare_figures(described: Mapping[str, Any], found: Found) -> list[str]:
    """Does the manifest state what the shards hold?"""
    stated = Counts.from_json(described["counts"])
    if not stated.balances():
        return [f"{manifests.MANIFEST}: the counts do not balance"]
    problems = []
    for what in ("samples", "tokens", "targets"):
        value, other = getattr(stated, f"{what}_packed"), getattr(found, what)
        if value != other:
            problems.append(f"{manifests.MANIFEST}: it states {value:,} packed {what}, the shards have {other:,}")
    figures = manifests.figures(
        stated, found.packs, found.segments, found.most_segments, found.sum_length_squared, described["capacity"]
    )
    if "windows" in described:
        for what, key in (("samples_in", "rows"), ("tokens_in", "tokens")):
            total = sum(window[key] for window in described["windows"])
            if total != getattr(stated, what):
                problems.append(
                    f"{manifests.MANIFEST}: {what} is {getattr(stated, what):,}, its windows have {total:,}"
                )
    for name, value in figures.items():
        if described[name] != value:
            problems.append(f"{manifests.MANIFEST}: {name} is {described[name]}, by the shards it is {value}")
    return problems


def _compare_counts(described: Mapping[str, Any], source: Counts) -> list[str]:
    """Does the manifest account for what the source has?"""
    stated = Counts.from_json(described["counts"])
    if source == stated:
        return []
    differing = [key for key, value in vars(source).items() if key != "dropped" and value != getattr(stated, key)]
    differing += [reason for reason, loss in source.dropped.items() if loss != stated.dropped[reason]]
    return [f"{manifests.MANIFEST}: its counts are not those of the source ({', '.join(differing)})"]
