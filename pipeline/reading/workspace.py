"""What the steps of a run share: where they compute, what they remember, where they write, and whom they tell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.base.dealing.stages import Dealer, LocalDealer, Result, Stage, Task
from pipeline.base.engine import LocalEngine
from pipeline.base.options import RunOptions
from pipeline.base.progress import ProgressCallback, stage
from pipeline.base.staging import Staging
from pipeline.base.words import counted
from pipeline.reading.cache import FileCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workspace:
    """Engine, cache and staging of a run, its progress callback, and who does its tasks."""

    engine: LocalEngine
    cache: FileCache
    staging: Staging
    progress: ProgressCallback | None = None
    dealer: Dealer | None = None
    """None for the engine's own threads."""

    def results(self, stage: Stage[Task, Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """What the tasks of a stage give, in their order, done before or now. Raises as `Dealer.deal`."""
        dealer = self.dealer or LocalDealer(self.engine)
        num_found = 0
        with self.stage(stage.title, sum(map(stage.units, tasks)), stage.unit) as advance:
            for outcome in dealer.deal(stage, tasks, self.staging, advance):
                num_found += outcome.was_finished
                yield outcome.result
        if num_found and stage.kind != "embed":
            log.info("%s of %s done before", num_found, counted(len(tasks), stage.noun))

    def alone(self, name: str) -> AbstractContextManager[object]:
        """As `Dealer.alone`."""
        return (self.dealer or LocalDealer(self.engine)).alone(name, self.staging)

    def stage(self, name: str, total: int, unit: str = "tok") -> AbstractContextManager[Callable[[int], None]]:
        """Tell of a stage; yields what has to be called with the units done since the last call."""
        return stage(self.progress, name, total, unit)


def engine_of(run: RunOptions) -> LocalEngine:
    """The engine that a run asks for."""
    num_workers = run.resolved().num_workers
    assert num_workers is not None
    return LocalEngine(num_workers)


def cache_of(run: RunOptions) -> FileCache:
    """The cache that a run asks for."""
    folder = run.resolved().cache_dir
    assert folder is not None
    return FileCache(folder, rehash=run.rehash)
