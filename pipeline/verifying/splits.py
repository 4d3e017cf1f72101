"""Checking the shards of a packed dataset, split by split and window by window, against manifest and source."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.base.engine import LocalEngine, Monitor
from pipeline.base.words import in_one_line
from pipeline.format.appends import shards_of
from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.format.counts import Counts, Loss
from pipeline.format.figures import Figures, figures_of
from pipeline.format.manifest import MANIFEST, PackManifest
from pipeline.format.records import FileEntry, SplitEntry, Tally, WindowEntry
from pipeline.reading.decoding.growth import growth_of
from pipeline.reading.windows import SplitRows, Window
from pipeline.verifying.account import Rules, account_of
from pipeline.verifying.files import Problems, fault_of
from pipeline.verifying.shards import ShardContent, WindowSource, check_shard, misplaced_sample
from strategies.arrays import Int64Array


@dataclass(frozen=True, kw_only=True)
class Source:
    """The inputs that a dataset was packed from, and how they were to be packed."""

    splits: Mapping[str, SplitRows]
    batches: Mapping[str, Sequence[SplitRows]]
    """The same, run by run: the rows of the first run, then those of each append."""

    tells_sources: bool
    """Whether every row says of which raw row it was made, and the turn that ends it."""

    rules: Rules
    tally: Tally | None
    """What became of raw rows; None where they were tokenised before."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the shards of a window, of a split or of all splits hold."""

    counts: Counts = field(default_factory=Counts)
    """The account that the source gives; nothing without one."""

    packs: int = 0
    segments: int = 0
    most_segments: int = 0
    """Segments of the pack that has most."""

    sum_length_squared: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0

    def __add__(self, other: Content) -> Content:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Content(**{**sums, "most_segments": max(self.most_segments, other.most_segments)})

    @staticmethod
    def of_shard(shard: ShardContent) -> Content:
        """What one shard holds; its samples are counted with the window's, of which they may be parts."""
        return Content(
            packs=shard.packs,
            segments=len(shard.sample),
            most_segments=int(np.bincount(shard.pack).max()) if shard.packs else 0,
            sum_length_squared=int(np.dot(shard.length, shard.length)),
            tokens=shard.tokens,
            targets=shard.targets,
        )


def check_splits(
    directory: Path, manifest: PackManifest, source: Source | None, engine: LocalEngine, monitor: Monitor
) -> tuple[Problems, Content]:
    """Check every shard. monitor: called with tokens. Raises `DataError` for a source that cannot be read."""
    problems: Problems = []
    total = Content()
    for split, entry in manifest.parts.items():
        wrong, content = _SplitCheck(directory, manifest, split, entry, source, engine, monitor).run()
        problems += wrong
        total += content
    if not problems and isinstance(manifest.splits, dict):
        problems += _compare_figures(manifest, total, manifest.config.max_segments)
    return problems, total


@dataclass(frozen=True)
class _SplitCheck:
    """The check of one split."""

    directory: Path
    manifest: PackManifest
    split: str
    entry: SplitEntry
    source: Source | None
    engine: LocalEngine
    monitor: Monitor

    @cached_property
    def _runs(self) -> list[tuple[Figures | None, list[WindowEntry]]]:
        """What is said of the first run (nothing apart from the whole) and of each append, and their windows.

        A first run without rows has one window without any, for its empty shard.
        """
        appends = self.manifest.appends if isinstance(self.manifest.appends, list) else []
        parts = [append.parts[self.split] for append in appends]
        first = self.entry.windows[: len(self.entry.windows) - sum(len(part.windows) for part in parts)]
        return [
            (None, first or [WindowEntry(rows=0, tokens=0, packs=0)]),
            *((part, part.windows) for part in parts),
        ]

    @cached_property
    def _stated(self) -> list[WindowEntry]:
        """The windows of all runs."""
        return [window for _, windows in self._runs for window in windows]

    def run(self) -> tuple[Problems, Content]:
        """Check the split's shards, window by window."""
        problem = self._other_source()
        if problem is not None:
            return [problem], Content()
        windows = _windows(self._stated)
        numbers = [len(of_run) for _, of_run in self._runs]
        firsts = [0, *itertools.accumulate(numbers)]
        paths: dict[int, list[str]] = {window.index: [] for window in windows}
        for number, index, path in shards_of(self.manifest, self.split):
            if index >= numbers[number]:
                return [f"{path}: the manifest has no such window"], Content()
            paths[firsts[number] + index].append(path)
        checked = self.engine.map(self._check_shard, self._tasks(windows, paths))
        problems: Problems = []
        contents = []
        for window in windows:
            wrong, content = self._check_window(window, list(islice(checked, len(paths[window.index]))))
            problems += wrong
            contents.append(content)
        total = sum(contents, Content())
        if not problems:
            for (figures, _), (first, end) in zip(self._runs, pairwise(firsts), strict=True):
                if figures is not None:
                    problems += self._compare(figures, sum(contents[first:end], Content()))
            problems += self._compare(self.entry, total)
            problems += _window_totals(self.entry)
        return problems, total

    def _compare(self, stated: Figures, content: Content) -> Problems:
        """Does the manifest state what the shards hold, and what the source has?"""
        problems = _compare_figures(stated, content, self.manifest.config.max_segments)
        return problems if self.source is None else problems + _compare_counts(stated.counts, content.counts)

    def _other_source(self) -> str | None:
        """How the source's rows differ from those packed, by the windows they are cut into."""
        if self.source is None:
            return None
        config, rows, where = self.manifest.config, self.source.splits[self.split], self.split or "source"
        cut = [
            (window.num_rows, window.num_tokens)
            for of_run in self.source.batches[self.split]
            for window in of_run.cut(config.window_samples, config.window_tokens)
        ]
        if cut == [(window.rows, window.tokens) for window in self.entry.windows]:
            return None
        packed = sum(window.rows for window in self.entry.windows)
        if rows.num_rows == packed:
            return f"{where}: it has rows of other lengths than those packed"
        return f"{where}: it has {rows.num_rows:,} rows, but {packed:,} were packed"

    def _tasks(
        self, windows: list[Window], paths: Mapping[int, list[str]]
    ) -> Iterator[tuple[str, WindowSource | None]]:
        """Each shard with the rows that its window was packed from."""
        for window in windows:
            rows = None
            if self.source is not None and window.num_rows and paths[window.index]:
                split = self.source.splits[self.split]
                sources = {}
                if self.source.tells_sources:
                    sources = dict(zip(SOURCE_COLUMNS, split.sources(window), strict=True))
                rows = WindowSource(rows=split.read_window(window), first_row=window.first_row, sources=sources)
            for path in paths[window.index]:
                yield path, rows

    def _check_shard(self, task: tuple[str, WindowSource | None]) -> tuple[str, ShardContent | str]:
        """The content of a shard, or what is wrong with it."""
        path, rows = task
        entry = self.manifest.files[path]
        max_segments = self.manifest.config.max_segments
        content = _checked_shard(self.directory / path, entry, self.entry.capacity, rows, max_segments)
        self.monitor(entry.tokens if isinstance(entry.tokens, int) else 0)
        return path, content

    def _check_window(self, window: Window, results: list[tuple[str, ShardContent | str]]) -> tuple[Problems, Content]:
        """What only shows when all shards of a window are seen together: samples lost, doubled or unaccounted for."""
        shards = [(path, result) for path, result in results if not isinstance(result, str)]
        content = sum((Content.of_shard(shard) for _, shard in shards), Content())
        wrong = [f"{path}: {result}" for path, result in results if isinstance(result, str)]
        if wrong:
            return wrong, content
        problem, packed = misplaced_sample(shards, window)
        if problem is not None:
            return [problem], content
        content += Content(samples=int(np.count_nonzero(packed)))
        stated = self._stated[window.index].packs
        if content.packs != stated:
            return [f"{MANIFEST}: window {window.index} has {content.packs} packs, not {stated}"], content
        if self.source is None or not window.num_rows:
            return [], content
        problem, counts = self._unaccounted(self.source, window, packed, shards)
        return [problem] if problem else [], content + Content(counts=counts)

    def _unaccounted(
        self, source: Source, window: Window, packed_tokens: Int64Array, shards: list[tuple[str, ShardContent]]
    ) -> tuple[str | None, Counts]:
        """Is every token of a window packed, or left out for a reason that the source confirms?"""
        rows = source.splits[self.split]
        account = account_of(rows, window, source.rules, self.engine)
        wrong = np.flatnonzero(packed_tokens != account.tokens)
        if len(wrong):
            row = int(wrong[0])
            number = window.first_row + row
            what = f"{packed_tokens[row]} of {account.tokens[row]} tokens are packed"
            return f"sample {number} ({rows.locate(number)}): {what}", account.counts
        cut = np.concatenate([shard.sample[shard.masked_cut] for _, shard in shards] or [np.zeros(0, np.int64)])
        return None, account.counts.with_cut(Loss(targets=len(cut), samples_affected=len(np.unique(cut))))


def _checked_shard(
    path: Path, entry: FileEntry, capacity: int, rows: WindowSource | None, max_segments: int | None
) -> ShardContent | str:
    fault = fault_of(path, entry) or growth_of(path)
    if fault is not None:
        return fault
    try:
        content = check_shard(path, capacity, rows, max_segments)
    except (OSError, ValueError, pa.ArrowException, IndexError) as error:
        return f"it cannot be read ({in_one_line(error)})"
    if content.problem is not None:
        return content.problem
    stated = (entry.packs, entry.segments, entry.tokens, entry.targets)
    if stated != (content.packs, len(content.sample), content.tokens, content.targets):
        return "its packs, segments, tokens or targets are not those in the manifest"
    return content


def _windows(stated: Sequence[WindowEntry]) -> list[Window]:
    """The windows of a split, numbered through."""
    windows = []
    first = 0
    for index, entry in enumerate(stated):
        windows.append(Window(index=index, first_row=first, num_rows=entry.rows, num_tokens=entry.tokens))
        first += entry.rows
    return windows


def _compare_figures(stated: Figures, content: Content, max_segments: int | None) -> Problems:
    """Does the manifest state what the shards hold?"""
    if not stated.counts.balances():
        return [f"{MANIFEST}: the counts do not balance"]
    problems = []
    for what in ("samples", "tokens", "targets"):
        value, other = getattr(stated.counts, f"{what}_packed"), getattr(content, what)
        if value != other:
            problems.append(f"{MANIFEST}: it states {value:,} packed {what}, the shards have {other:,}")
    by_shards = figures_of(
        stated.counts,
        packs=content.packs,
        segments=content.segments,
        most_segments=content.most_segments,
        sum_length_squared=content.sum_length_squared,
        capacity=stated.capacity,
        max_segments=max_segments,
        cuts_stream=stated.cuts_stream,
        report=stated.report,
    )
    for name in Figures.__struct_fields__:
        value, other = getattr(stated, name), getattr(by_shards, name)
        if value != other:
            problems.append(f"{MANIFEST}: {name} is {value}, by the shards it is {other}")
    return problems


def _window_totals(entry: SplitEntry) -> Problems:
    """Do the windows add up to what came in?"""
    problems = []
    for what, stated, total in (
        ("samples_in", entry.counts.samples_in, sum(window.rows for window in entry.windows)),
        ("tokens_in", entry.counts.tokens_in, sum(window.tokens for window in entry.windows)),
    ):
        if stated != total:
            problems.append(f"{MANIFEST}: {what} is {stated:,}, its windows have {total:,}")
    return problems


def _compare_counts(stated: Counts, source: Counts) -> Problems:
    """Does the manifest account for what the source has?"""
    if source == stated:
        return []
    names = [name for name in Counts.__struct_fields__ if name != "dropped"]
    differing = [name for name in names if getattr(source, name) != getattr(stated, name)]
    differing += [reason for reason, loss in source.dropped.items() if loss != getattr(stated.dropped, reason)]
    return [f"{MANIFEST}: its counts are not those of the source ({', '.join(differing)})"]
