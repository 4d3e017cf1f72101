"""Is a packed dataset what its manifest says, and does it hold every token of its source?"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import manifest as manifests
from pipeline.check import ShardCheck, check_shard, misplaced
from pipeline.config import PackConfig
from pipeline.engine import LocalEngine
from pipeline.files import FileCache, hash_file
from pipeline.inputs import SINGLE, resolve
from pipeline.open_rows import open_inputs
from pipeline.plan import scan_block, scan_blocks
from pipeline.progress import bar
from pipeline.publish import Staging
from pipeline.rows import Int64Array, Rows
from pipeline.scan import MOST_TOKENS, Facts
from pipeline.segments import Counts, Loss, account
from pipeline.windows import SplitRows, Window
from strategies import find

log = logging.getLogger(__name__)

_SHARD = re.compile(r"data-[0-9a-f]{8}-w(\d+)-s(\d+)\.arrow")
_MOST_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    directory: str
    problems: list[str]
    files: int
    bytes: int
    packs: int
    segments: int
    tokens: int
    source: bool
    """Whether the tokens were compared with their source."""

    seconds: float


def verify(directory: Path, sources: tuple[str, ...], *, num_workers: int, cache_dir: Path) -> Verified:
    """Check files and their checksums, every invariant of the format, the counts, and with `sources` every token.

    Raises `DataError` and the like for a source that cannot be read; what is wrong with the packed dataset
    itself is returned as problems.
    """
    started = time.monotonic()
    problems, manifest = _check_manifest(directory)
    found = _Found()
    if manifest is not None:
        with tempfile.TemporaryDirectory(prefix="verify-") as folder, LocalEngine(num_workers) as engine:
            cache = FileCache(cache_dir)
            try:
                problems += _check_small_files(directory, manifest)
                opened = _open_sources(manifest, sources, cache, engine, Path(folder)) if sources else None
                if opened is not None and set(opened.splits) != set(_splits(manifest)):
                    problems.append(f"source: its splits are not those packed ({', '.join(opened.splits) or 'none'})")
                    opened = None
                checker = _Checker(directory, manifest, engine, opened)
                problems += checker.run()
                found = checker.found
            finally:
                cache.forget_downloads()
    return Verified(
        directory=str(directory),
        problems=problems[:_MOST_PROBLEMS],
        files=len(manifest["files"]) + 1 if manifest else 0,
        bytes=sum(facts["bytes"] for facts in manifest["files"].values()) if manifest else 0,
        packs=found.packs,
        segments=found.segments,
        tokens=found.tokens,
        source=bool(sources),
        seconds=time.monotonic() - started,
    )


def _check_manifest(directory: Path) -> tuple[list[str], dict[str, Any] | None]:
    """The manifest, if it is whole and in its canonical form."""
    if not directory.is_dir():
        return [f"{directory}: no such directory"], None
    try:
        manifest = manifests.read(directory)
        raw = (directory / manifests.MANIFEST).read_bytes()
    except (ValueError, OSError) as error:
        return [str(error)], None
    if manifests.canonical(manifest) != raw:
        return [f"{manifests.MANIFEST}: was changed after it was written"], None
    if manifest["format_version"] != manifests.FORMAT_VERSION:
        return [f"{manifests.MANIFEST}: format version {manifest['format_version']} is not known to this release"], None
    try:
        config = PackConfig(**manifest["config"])
    except TypeError as error:
        return [f"{manifests.MANIFEST}: its config is not one of ours ({error})"], None
    hashes = [entry["xxh3_128"] for entry in manifest["inputs"]]
    if manifests.identity(config, hashes, manifest["algorithm_version"]) != manifest["run_id"]:
        return [f"{manifests.MANIFEST}: run_id is not that of its config and inputs"], None
    return [], manifest


def _splits(manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict(manifest["splits"]) if "splits" in manifest else {SINGLE: manifest}


def _shards(manifest: Mapping[str, Any], split: str) -> list[tuple[int, str]]:
    """(window, name) of a split's shards in their order."""
    found = []
    for name in manifest["files"]:
        folder, _, base = name.rpartition("/")
        match = _SHARD.fullmatch(base)
        if match and folder == split:
            found.append((int(match[1]), int(match[2]), name))
    return [(window, name) for window, _, name in sorted(found)]


def _check_small_files(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Everything but the shards' content."""
    problems = []
    for name, facts in manifest["files"].items():
        if not (directory / name).is_file():
            problems.append(f"{name}: missing")
        elif "packs" not in facts and hash_file(str(directory / name)) != facts["xxh3_128"]:
            problems.append(f"{name}: its checksum is not the manifest's")
    for split in _splits(manifest):
        try:
            state = json.loads((directory / split / "state.json").read_bytes())
            listed = [entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # reported above by its checksum
        if listed != [Path(name).name for _, name in _shards(manifest, split)]:
            problems.append(
                f"{split + '/' if split else ''}state.json: it does not list the manifest's shards in their order"
            )
    known = {*manifest["files"], manifests.MANIFEST}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and str(path.relative_to(directory)) not in known:
            log.warning("%s is not part of the packed dataset", path)
    return problems


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The inputs that a dataset was packed from, by split, and how they were to be packed."""

    splits: Mapping[str, SplitRows]
    config: PackConfig
    cuts_stream: bool


def _open_sources(
    manifest: Mapping[str, Any], sources: tuple[str, ...], cache: FileCache, engine: LocalEngine, folder: Path
) -> _Source:
    config = PackConfig(**manifest["config"])
    inputs = resolve(sources, split=config.split, subset=config.subset, revision=config.revision)
    staging = Staging(folder / "source", "verify")
    staging.open()
    mapped = open_inputs(inputs, config.column, cache, engine, staging)
    return _Source(
        splits={s: SplitRows([mapped[file] for entry in inputs for file in entry.splits[s]]) for s in inputs[0].splits},
        config=config,
        cuts_stream=_cuts_stream(config.strategy),
    )


def _cuts_stream(name: str) -> bool:
    try:
        return find(name).stream_order is not None
    except ValueError:
        return False  # somebody else's strategy, not installed here; all of ours are known


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the shards of a split, or of all splits, hold."""

    counts: Counts = field(default_factory=Counts)
    packs: int = 0
    segments: int = 0
    most_segments: int = 0
    sum_length_squared: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0

    def __add__(self, other: _Found) -> _Found:
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return _Found(**{**sums, "most_segments": max(self.most_segments, other.most_segments)})

    @staticmethod
    def of(check: ShardCheck) -> _Found:
        return _Found(
            packs=check.packs,
            segments=len(check.sample),
            most_segments=int(np.bincount(check.pack).max()) if check.packs else 0,
            sum_length_squared=int(np.dot(check.length, check.length)),
            tokens=check.tokens,
            targets=check.targets,
        )


class _Checker:
    """Checks the shards, window by window."""

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], engine: LocalEngine, source: _Source | None
    ) -> None:
        self._directory, self._manifest, self._engine, self._source = directory, manifest, engine, source
        self.found = _Found()

    def run(self) -> list[str]:
        tokens = sum(facts.get("tokens", 0) for facts in self._manifest["files"].values())
        problems: list[str] = []
        with bar("verifying", tokens) as advance:
            for split, described in _splits(self._manifest).items():
                wrong, found = self._check_split(split, described, advance)
                problems += wrong
                self.found += found
        if not problems and "splits" in self._manifest:
            problems += _compare_figures(self._manifest, self.found)
        return problems

    def _check_split(
        self, split: str, described: Mapping[str, Any], advance: Callable[[int], object]
    ) -> tuple[list[str], _Found]:
        windows = _windows(described)
        rows = self._source.splits[split] if self._source is not None else None
        if self._source is not None and rows is not None:
            config = self._source.config
            cut = [(w.num_rows, w.num_tokens) for w in rows.cut(config.window_samples, config.window_tokens)]
            if cut != [(window["rows"], window["tokens"]) for window in described["windows"]]:
                packed_rows = sum(window.num_rows for window in windows)
                told = f"{rows.num_rows:,} rows, but {packed_rows:,} were packed"
                if rows.num_rows == packed_rows:
                    told = "rows of other lengths than those packed"
                return [f"{split or 'source'}: it has {told}"], _Found()
        names: dict[int, list[str]] = {window.index: [] for window in windows}
        for index, name in _shards(self._manifest, split):
            names.setdefault(index, []).append(name)
        stray = [name for index in names if index >= len(windows) for name in names[index]]
        if stray:
            return [f"{stray[0]}: the manifest has no such window"], _Found()

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
        total = _Found()
        for window in windows:
            shards: list[tuple[str, ShardCheck]] = []
            wrong: list[str] = []
            for name, result in islice(checked, len(names[window.index])):
                if isinstance(result, str):
                    wrong.append(f"{name}: {result}")
                else:
                    shards.append((name, result))
                    total += _Found.of(result)
            if not wrong:
                problem, packed = misplaced(shards, window.first_row, window.num_rows)
                wrong += [problem] if problem is not None else []
                total += _Found(samples=int(np.count_nonzero(packed)))
                stated = described["windows"][window.index]["packs"] if described["windows"] else 0
                num_packs = sum(result.packs for _, result in shards)
                if not wrong and num_packs != stated:
                    wrong.append(f"{manifests.MANIFEST}: window {window.index} has {num_packs} packs, not {stated}")
                if not wrong and self._source is not None:
                    wrong, counts = _account(self._source, split, window, packed, shards)
                    total += _Found(counts=counts)
            problems += wrong
        if not problems:
            problems += _compare_figures(described, total)
            if self._source is not None:
                problems += _compare_counts(described, total.counts)
        return problems, total

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


def _windows(described: Mapping[str, Any]) -> list[Window]:
    """The windows of a split; one without rows where the split has none, for its empty shard."""
    windows = []
    first = 0
    for index, window in enumerate(described["windows"] or [{"rows": 0, "tokens": 0}]):
        windows.append(Window(index=index, first_row=first, num_rows=window["rows"], num_tokens=window["tokens"]))
        first += window["rows"]
    return windows


def _account(
    source: _Source, split: str, window: Window, packed: Int64Array, shards: list[tuple[str, ShardCheck]]
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


def _compare_figures(described: Mapping[str, Any], found: _Found) -> list[str]:
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
