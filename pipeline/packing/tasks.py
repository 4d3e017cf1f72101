"""The tasks of a run: pure functions of inputs, configuration and index that leave one file each, or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.base.engine import LocalEngine
from pipeline.base.progress import bar
from pipeline.base.storage import FileFacts
from pipeline.base.words import counted
from pipeline.embedding.vectors import Embedded
from pipeline.format import manifest as manifests
from pipeline.format.dataset_files import SCHEMA, card
from pipeline.format.folder import finish_folder, inside
from pipeline.packing.config import Chosen, PackConfig
from pipeline.packing.plan import WindowPlan, WindowSummary, place_window, scan_block, scan_blocks
from pipeline.packing.shards import ShardFacts, write_empty_shard, write_shard
from pipeline.publishing.publication import Staging
from pipeline.reading.files import FileCache
from pipeline.reading.input_rows import Opened
from pipeline.reading.inputs import SINGLE, Input
from pipeline.reading.rows import Rows
from pipeline.reading.scan import Facts
from pipeline.reading.windows import SplitRows, Window

log = logging.getLogger(__name__)

Planned = dict[str, list[tuple[Window, WindowSummary]]]
"""The planned windows of each split."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be written."""

    name: str
    """Path in the dataset directory."""

    split: str
    window: Window
    shard: int
    tokens: int


class Run:
    """One run over resolved inputs. A task whose file an earlier run left in staging is skipped."""

    def __init__(
        self,
        config: PackConfig,
        chosen: Chosen,
        inputs: list[Input],
        opened: Opened,
        origin: Mapping[str, Any],
        cache: FileCache,
        engine: LocalEngine,
        staging: Staging,
        embed: Callable[[Mapping[str, SplitRows], Mapping[str, Sequence[Window]]], Embedded] | None,
    ) -> None:
        """origin: what the manifest tells of where the tokens come from; embed: makes the vectors, if they are used."""
        self._config, self._chosen, self._origin, self._embed = config, chosen, origin, embed
        self._embedded: Embedded | None = None
        self._inputs, self._cache, self._engine, self._staging = inputs, cache, engine, staging
        self._num_rows = opened.rows
        self.splits = opened.splits

    def tell_targets(self) -> None:
        """Say where nothing decides which tokens are trained."""
        filled = [mapped for rows in self.splits.values() for mapped in rows.files]
        silent = [mapped.name for mapped in filled if mapped.columns.targets is None]
        way_out = "if yours has another name, give it with --column labels=NAME"
        if silent and len(silent) < len(filled):
            log.warning("%s has no labels or mask, others have: every token of it is trained; %s", silent[0], way_out)
        elif silent:
            log.info("no labels or mask column: every token is trained; %s", way_out)

    def plan(self) -> Planned:
        """Plan every window; its integers are left in staging."""
        config = self._config
        windows = {split: rows.cut(config.window_samples, config.window_tokens) for split, rows in self.splits.items()}
        if self._embed is not None:
            self._embedded = self._embed(self.splits, windows)
        todo: list[tuple[str, Window]] = []
        planned: dict[tuple[str, int], WindowSummary] = {}
        for split, cut in windows.items():
            for window in cut:
                record = self._staging.finished(self._plan_path(split, window))
                if record is None:
                    todo.append((split, window))
                else:
                    planned[split, window.index] = WindowSummary.from_json(record["summary"])
        tasks = ((split, block) for split, window in todo for block in scan_blocks(window))
        with bar("planning", sum(window.num_tokens for _, window in todo)) as advance:

            def scanned(task: tuple[str, tuple[int, int]]) -> Facts:
                split, (start, stop) = task
                facts = scan_block(self.splits[split], start, stop, config)
                advance(facts.num_tokens())
                self._engine.checkpoint()
                return facts

            facts = self._engine.map(scanned, tasks)
            for split, window in todo:
                joined = Facts.join([next(facts) for _ in scan_blocks(window)])
                plan, summary = place_window(
                    joined,
                    self.splits[split],
                    window,
                    config,
                    self._chosen,
                    vectors=self._embedded.of_rows(split, window) if self._embedded else None,
                    prepared=self._embedded.prepared if self._embedded else {},
                    num_threads=self._engine.num_workers,
                )
                path = self._plan_path(split, window)
                self._staging.record(path, plan.save(path), summary=summary.to_json())
                planned[split, window.index] = summary
        return {split: [(window, planned[split, window.index]) for window in cut] for split, cut in windows.items()}

    def _plan_path(self, split: str, window: Window) -> Path:
        vectors = f"-{self._embedded.content[:8]}" if self._embedded else ""
        return self._staging.work / f"plan-{split}-w{window.index:04d}{vectors}.npz"

    def write(
        self, planned: Planned, run_id: str, hashes: list[str], beside: Mapping[str, FileFacts]
    ) -> dict[str, Any]:
        """Write every shard and the files around them; returns the manifest.

        beside: files that are in the dataset's folder already.
        """
        manifest = self.describe(planned, hashes) | {"run_id": run_id}
        files = {**beside, **self._write_shards(planned, run_id)}
        packed = sum(facts.targets for facts in files.values() if isinstance(facts, ShardFacts))
        assert packed == manifest["counts"]["targets_packed"], "targets written and targets planned differ"
        self._cache.require_unchanged()
        root = self._staging.dataset
        shards = {split: [name for _, name in _shard_names(planned[split], run_id)] for split in planned}
        finish_folder(root, shards, SCHEMA, manifest, card(manifest), files, self._config.split)
        return manifests.read(root)

    def _write_shards(self, planned: Planned, run_id: str) -> dict[str, FileFacts]:
        files: dict[str, FileFacts] = {}
        todo: list[ShardTask] = []
        for split, windows in planned.items():
            (self._staging.dataset / split).mkdir(exist_ok=True)
            for task, shard_name in _shard_names(windows, run_id):
                name = inside(split, shard_name)
                record = self._staging.finished(self._staging.dataset / name)
                if record is not None:
                    files[name] = ShardFacts(**record["file"])
                elif task is None:
                    files[name] = write_empty_shard(self._staging.dataset / name)
                else:
                    window, shard, tokens = task
                    todo.append(ShardTask(name=name, split=split, window=window, shard=shard, tokens=tokens))
        if files and todo:
            log.info("resuming: %s of an earlier run kept, %s to write", counted(len(files), "shard"), len(todo))
        with bar("writing", sum(task.tokens for task in todo)) as advance:

            def advance_or_stop(done: int) -> None:
                advance(done)
                self._engine.checkpoint()

            def write(loaded: tuple[ShardTask, Rows, WindowPlan]) -> tuple[str, ShardFacts]:
                task, rows, plan = loaded
                path = self._staging.dataset / task.name
                facts = write_shard(
                    path, rows, task.window.first_row, plan, task.shard, self._config.compression, advance_or_stop
                )
                self._staging.record(path, facts)
                return task.name, facts

            files.update(self._engine.map(write, self._with_rows(todo)))
        return files

    def _with_rows(self, todo: list[ShardTask]) -> Iterator[tuple[ShardTask, Rows, WindowPlan]]:
        """Each shard with its window's rows and plan, loaded once a window."""
        for (split, window), tasks in groupby(todo, key=lambda task: (task.split, task.window)):
            rows = self.splits[split].read(window.first_row, window.first_row + window.num_rows)
            plan = WindowPlan.load(self._plan_path(split, window))
            for task in tasks:
                yield task, rows, plan

    def describe(self, planned: Planned, hashes: list[str] | None = None) -> dict[str, Any]:
        """The manifest, but for its identity and files."""
        capacity = self._chosen.capacity
        described = {
            "format_version": manifests.FORMAT_VERSION,
            "algorithm_version": manifests.ALGORITHM_VERSION,
            "config": self._config.to_json(),
            **self._origin,
            **({"embedding": self._embedded.describe()} if self._embedded else {}),
            "inputs": [
                {
                    "name": entry.name,
                    "rows": num_rows,
                    "bytes": sum(file.size() for file in entry.files()),
                }
                for entry, num_rows in zip(self._inputs, self._num_rows, strict=True)
            ],
            **manifests.summarise([window for windows in planned.values() for window in windows], capacity, self._told),
        }
        if hashes is not None:
            for entry, digest in zip(described["inputs"], hashes, strict=True):
                entry["xxh3_128"] = digest
        if SINGLE in planned:
            return described | {"windows": manifests.describe_windows(planned[SINGLE])}
        return described | {
            "splits": {
                split: manifests.summarise(windows, capacity, self._told)
                | {"windows": manifests.describe_windows(windows)}
                for split, windows in planned.items()
            }
        }

    def _told(self, report: Mapping[str, int | float]) -> Mapping[str, int | float]:
        """What is told of the sums that the strategy reported."""
        figures = self._chosen.strategy.figures
        if figures is None or not report:
            return report
        return figures(report, self._embedded.prepared if self._embedded else {})


def _shard_names(
    windows: list[tuple[Window, WindowSummary]], run_id: str
) -> Iterator[tuple[tuple[Window, int, int] | None, str]]:
    """(window, shard, tokens) and file name of each shard of a split; one empty shard where there are no packs.

    A split without any shard could be saved, but not loaded.
    """

    def name(window: int, shard: int) -> str:
        return f"data-{run_id[:8]}-w{window:04d}-s{shard:04d}.arrow"

    if not any(summary.num_packs for _, summary in windows):
        yield None, name(0, 0)
    for window, summary in windows:
        for shard, (_, tokens) in enumerate(summary.shards):
            yield (window, shard, tokens), name(window.index, shard)
