"""What the steps of a run share: where they compute, what they remember, where they write, and whom they tell."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.base.engine import LocalEngine
from pipeline.base.options import RunOptions
from pipeline.base.progress import ProgressCallback, stage
from pipeline.base.staging import Staging
from pipeline.reading.cache import FileCache


@dataclass(frozen=True)
class Workspace:
    """Engine, cache and staging of a run, and its progress callback."""

    engine: LocalEngine
    cache: FileCache
    staging: Staging
    progress: ProgressCallback | None = None

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
