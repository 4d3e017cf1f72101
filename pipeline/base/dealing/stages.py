"""What tasks are: a stage of a run is one kind of them, and a dealer has them done.

A task is a small frozen value that can be pickled; its stage holds what all tasks of a kind share, and can be pickled
as well. A task leaves exactly one complete file and its record in staging, or nothing, and opens what it needs itself.
So it may be done in any process that sees the same files, done twice, or found done.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

from pipeline.base.engine import LocalEngine, Monitor
from pipeline.base.staging import Staging

Task = TypeVar("Task")
Result = TypeVar("Result")

Kind = Literal["decode", "embed", "plan", "write"]
"""What a stage is called where resources are named for it."""


@dataclass(frozen=True)
class TaskContext:
    """What a task is given where it is done."""

    engine: LocalEngine
    """Threads for work inside the task."""

    staging: Staging
    """Where it leaves its file."""

    monitor: Monitor
    """Is called with units of work done."""


class Stage(ABC, Generic[Task, Result]):
    """A kind of task, and what all tasks of the kind share."""

    kind: ClassVar[Kind]
    title: ClassVar[str]
    """What the bar says, as "writing"."""

    noun: ClassVar[str]
    """What a task makes, as "shard"."""

    unit: ClassVar[str] = "tok"
    """What `units` counts."""

    takes_all_cores: ClassVar[bool] = False
    """Whether one task keeps all cores busy."""

    is_common: ClassVar[bool] = False
    """Whether every task of the run is needed before any task of later stages can begin."""

    is_claimed: ClassVar[bool] = False
    """Whether, where processes share a run, its tasks belong to none of them, but to whoever comes first. What others
    left is then believed by its size, and has to be looked at by who reads more of it than lengths."""

    @abstractmethod
    def units(self, task: Task) -> int:
        """How much work a task is."""

    @abstractmethod
    def name(self, task: Task) -> str:
        """The name of the file that a task leaves, which no other task of the run has."""

    @abstractmethod
    def words(self, task: Task) -> str:
        """What messages call what a task makes."""

    @abstractmethod
    def finished(self, task: Task, staging: Staging) -> Result | None:
        """What a task gave that was done before; None if it was not."""

    @abstractmethod
    def do(self, task: Task, context: TaskContext) -> Result:
        """Do a task."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a task gave."""

    result: Result
    was_finished: bool
    """Whether an earlier run, or somebody else, had done it."""


class Dealer(ABC):
    """Has tasks done."""

    def alone(self, name: str, staging: Staging) -> AbstractContextManager[object]:
        """Work that is no task, and is done by one process of those that share a run at a time.

        name: what tells it from other such work.
        """
        return nullcontext()

    @abstractmethod
    def deal(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], staging: Staging, advance: Monitor
    ) -> Iterator[Outcome[Result]]:
        """The outcomes of all tasks, in their order. advance: called with units of work done, all of them in the end.

        Raises what a task raised.
        """


def found_or_done(stage: Stage[Task, Result], task: Task, context: TaskContext) -> Outcome[Result]:
    """The outcome of a task, done only if it was not done before."""
    result = stage.finished(task, context.staging)
    if result is None:
        return Outcome(stage.do(task, context), was_finished=False)
    context.monitor(stage.units(task))
    return Outcome(result, was_finished=True)


class LocalDealer(Dealer):
    """Has tasks done by this process's threads."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def deal(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], staging: Staging, advance: Monitor
    ) -> Iterator[Outcome[Result]]:
        """As of `Dealer`; tasks that take all cores are done one after the other."""
        context = TaskContext(self._engine, staging, self._engine.monitor(advance))
        if stage.takes_all_cores:
            return (found_or_done(stage, task, context) for task in tasks)
        return self._engine.map(lambda task: found_or_done(stage, task, context), tasks)
