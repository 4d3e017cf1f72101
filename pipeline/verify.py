"""Is a packed dataset what its manifest says, and does it hold every token of its source?"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import manifest as manifests
from pipeline.check import ShardCheck, check_shard, misplaced
from pipeline.config import PackConfig
from pipeline.engine import LocalEngine
from pipeline.errors import VerificationError
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
    found: Counter[str] = Counter()
    if manifest is not None:
        with tempfile.TemporaryDirectory(prefix="verify-") as folder, LocalEngine(num_workers) as engine:
            cache = FileCache(cache_dir)
            try:
                opened = _open_sources(manifest, sources, cache, engine, Path(folder)) if sources else None
                problems += _check_small_files(directory, manifest)
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
        packs=found["packs"],
        segments=found["segments"],
        tokens=found["tokens"],
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
    names = set(inputs[0].splits)
    if names != set(_splits(manifest)):
        raise VerificationError(
            f"the source has the splits {sorted(names)}, the packed dataset {sorted(_splits(manifest))}"
        )
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


class _Checker:
    """Checks the shards, window by window."""

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], engine: LocalEngine, source: _Source | None
    ) -> None:
        self._directory, self._manifest, self._engine, self._source = directory, manifest, engine, source
        self.found: Counter[str] = Counter()

    def run(self) -> list[str]:
        tokens = sum(facts.get("tokens", 0) for facts in self._manifest["files"].values())
        with bar("verifying", tokens) as advance:
            problems = [
                problem
                for split, described in _splits(self._manifest).items()
                for problem in self._check_split(split, described, advance)
            ]
        if not problems and not Counts.from_json(self._manifest["counts"]).balances():
            problems.append(f"{manifests.MANIFEST}: the counts do not balance")
        return problems

    def _check_split(self, split: str, described: Mapping[str, Any], advance: Callable[[int], object]) -> list[str]:
        windows = _windows(described)
        rows = self._source.splits[split] if self._source is not None else None
        if rows is not None and rows.num_rows != sum(window.num_rows for window in windows):
            packed_rows = sum(window.num_rows for window in windows)
            return [f"{split or 'source'}: it has {rows.num_rows:,} rows, but {packed_rows:,} were packed"]
        names: dict[int, list[str]] = {window.index: [] for window in windows}
        for index, name in _shards(self._manifest, split):
            names.setdefault(index, []).append(name)

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
            advance(self._manifest["files"][task[0]]["tokens"])
            return task[0], result

        checked = self._engine.map(check, tasks())
        problems: list[str] = []
        counts, found = Counts(), Counter[str]()
        for window in windows:
            shards: list[tuple[str, ShardCheck]] = []
            wrong: list[str] = []
            for name, result in islice(checked, len(names[window.index])):
                if isinstance(result, str):
                    wrong.append(f"{name}: {result}")
                else:
                    shards.append((name, result))
                    found.update(
                        packs=result.packs, segments=len(result.sample), tokens=result.tokens, targets=result.targets
                    )
            if not wrong:
                problem, packed = misplaced(shards, window.first_row, window.num_rows)
                wrong += [problem] if problem is not None else []
                if not wrong and self._source is not None:
                    wrong, window_counts = _account(self._source, split, window, packed, shards)
                    counts += window_counts
            problems += wrong
        self.found.update(found)
        if not problems:
            problems += _compare_counts(described, found, counts if self._source is not None else None)
        return problems

    def _check_shard(self, name: str, source: tuple[Rows, int] | None, capacity: int) -> ShardCheck | str:
        """The content of a shard, or what is wrong with it."""
        path, facts = self._directory / name, self._manifest["files"][name]
        try:
            size = path.stat().st_size
            if size != facts["bytes"]:
                return f"it has {size:,} bytes, the manifest says {facts['bytes']:,}"
            told = None if hash_file(str(path)) == facts["xxh3_128"] else "its checksum is not the manifest's"
            result = check_shard(path, capacity, source)
        except FileNotFoundError:
            return "missing"
        except (OSError, pa.ArrowException, IndexError) as error:
            return f"it cannot be read ({' '.join(str(error).split())})"
        if result.problem is not None:
            return f"{result.problem} ({told})" if told else result.problem
        if told is None and (result.packs, len(result.sample), result.tokens, result.targets) != (
            facts["packs"],
            facts["segments"],
            facts["tokens"],
            facts["targets"],
        ):
            told = "its packs, segments, tokens or targets are not those in the manifest"
        return told or result


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


def _compare_counts(described: Mapping[str, Any], found: Mapping[str, int], source: Counts | None) -> list[str]:
    """Does the manifest state what the shards hold, and what the source has?"""
    stated = Counts.from_json(described["counts"])
    problems = []
    for what, value, other in (
        ("packs", described["packs"], found["packs"]),
        ("tokens_packed", stated.tokens_packed, found["tokens"]),
        ("targets_packed", stated.targets_packed, found["targets"]),
    ):
        if value != other:
            problems.append(f"{manifests.MANIFEST}: it states {value:,} {what}, the shards have {other:,}")
    if source is not None and source != stated:
        differing = [
            key for key, value in source.to_json().items() if value != stated.to_json()[key] and key != "dropped"
        ] + [reason for reason, loss in source.dropped.items() if loss != stated.dropped[reason]]
        problems.append(f"{manifests.MANIFEST}: its counts are not those of the source ({', '.join(differing)})")
    return problems
