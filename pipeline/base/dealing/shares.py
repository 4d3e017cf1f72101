"""Array jobs: many processes of one run, each with a share of its tasks, on files that all of them see."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from pipeline.base import storage
from pipeline.base.dealing.stages import (
    Dealer,
    Kind,
    LocalDealer,
    Outcome,
    Result,
    Stage,
    Task,
    TaskContext,
    found_or_done,
)
from pipeline.base.engine import LocalEngine, Monitor
from pipeline.base.errors import BusyError
from pipeline.base.staging import Staging
from pipeline.base.words import counted

log = logging.getLogger(__name__)

_POLLED_EVERY = 0.2  # seconds
_MOST_NAMED = 5


@dataclass(frozen=True)
class Share:
    """Task `index` of `count` processes that share a run."""

    index: int
    count: int

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks of this process."""
        return list(tasks[self.index :: self.count])


class SharingDealer(Dealer):
    """Has a share of the tasks done by this process's threads.

    Of a stage on which all later ones depend this process does its own tasks, then waits for those of others; tasks
    that are claimed are done by whoever comes first, and by one process at a time.
    """

    def __init__(self, engine: LocalEngine, share: Share, wait: float) -> None:
        """wait: how many seconds to wait for what other processes do."""
        self._engine, self._share, self._wait = engine, share, wait

    def deal(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], staging: Staging, advance: Monitor
    ) -> Iterator[Outcome[Result]]:
        """As of `Dealer`; of stages that are not common the tasks are this process's own.

        Raises `BusyError` where something of others is not there in time.
        """
        context = TaskContext(self._engine, staging, self._engine.monitor(advance))
        if stage.is_claimed:
            return self._claimed(stage, tasks, replace(context, staging=replace(staging, believes_sizes=True)))
        if stage.is_common:
            return self._dealt(stage, tasks, context)
        return LocalDealer(self._engine).deal(stage, tasks, staging, advance)

    def _claimed(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], context: TaskContext
    ) -> Iterator[Outcome[Result]]:
        """Do every task that nobody else does, then wait for those who do the others: they live as long as the lock."""
        numbers = range(len(tasks))
        mine = numbers[self._share.index :: self._share.count]
        order = [*mine, *(number for number in numbers if number not in mine)]

        def claim(number: int, *, is_patient: bool = False) -> Outcome[Result] | None:
            descriptor = self._claim(stage.name(tasks[number]), context.staging, is_patient=is_patient)
            if descriptor is None:
                return None
            try:
                return found_or_done(stage, tasks[number], context)
            finally:
                os.close(descriptor)

        outcomes = dict(zip(order, self._engine.map(claim, order), strict=True))
        for number in numbers:
            outcome = outcomes[number] or claim(number, is_patient=True)
            assert outcome is not None, "who is patient gets it"
            yield outcome

    def _claim(self, name: str, staging: Staging, *, is_patient: bool) -> int | None:
        """Take the lock of some work, whose descriptor is returned; None where another process has it.

        is_patient: wait for it as long as that process lives.
        """
        while True:
            try:
                return storage.lock(staging.work / f"{name}.claim")
            except BlockingIOError:
                if not is_patient:
                    return None
                time.sleep(_POLLED_EVERY)
                self._engine.checkpoint()

    @contextmanager
    def alone(self, name: str, staging: Staging) -> Iterator[None]:
        """As of `Dealer`; who comes second waits as long as the first lives, and finds what it did."""
        descriptor = self._claim(name, staging, is_patient=True)
        assert descriptor is not None, "who is patient gets it"
        try:
            yield
        finally:
            os.close(descriptor)

    def _dealt(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], context: TaskContext
    ) -> Iterator[Outcome[Result]]:
        """Do this process's own tasks, then wait for the others."""
        numbers = range(len(tasks))
        mine = numbers[self._share.index :: self._share.count]
        done = self._engine.map(lambda number: found_or_done(stage, tasks[number], context), mine)
        outcomes = dict(zip(mine, done, strict=True))
        until = time.monotonic() + self._wait
        missing = [number for number in numbers if number not in outcomes]
        if missing and self._wait:
            log.info("waiting up to %g s for %s of other tasks", self._wait, counted(len(missing), stage.noun))
        while missing:
            found = self._engine.map(lambda number: stage.finished(tasks[number], context.staging), missing)
            for number, result in zip(missing, found, strict=True):
                if result is not None:
                    outcomes[number] = Outcome(result, was_finished=True)
                    context.monitor(stage.units(tasks[number]))
            missing = [number for number in missing if number not in outcomes]
            if missing and time.monotonic() >= until:
                others = sorted({number % self._share.count for number in missing})
                named = ", ".join(map(str, others))
                owners = f"task {named} makes" if len(others) == 1 else f"tasks {named} make"
                refuse_missing(
                    stage,
                    [tasks[number] for number in missing],
                    f"which {owners}; run this task again once they are there, or wait with --wait SECONDS",
                )
            while missing and time.monotonic() < until:  # for the first; others are asked for once it is there
                time.sleep(_POLLED_EVERY)
                self._engine.checkpoint()
                if stage.finished(tasks[missing[0]], context.staging) is not None:
                    break
        return (outcomes[number] for number in numbers)


class FinishingDealer(Dealer):
    """Finds what the tasks of an array job left, and says what is missing."""

    def __init__(self, engine: LocalEngine, kinds: Collection[Kind]) -> None:
        """kinds: of stages whose tasks have to be done; those of others are done now."""
        self._engine, self._kinds = engine, kinds

    def deal(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], staging: Staging, advance: Monitor
    ) -> Iterator[Outcome[Result]]:
        """As of `Dealer`. Raises `BusyError`, naming them, where tasks are not done."""
        if stage.kind not in self._kinds:
            yield from LocalDealer(self._engine).deal(stage, tasks, staging, advance)
            return
        if stage.is_claimed:
            staging = replace(staging, believes_sizes=True)
        found = list(self._engine.map(lambda task: stage.finished(task, staging), tasks))
        missing = [task for task, result in zip(tasks, found, strict=True) if result is None]
        if missing:
            refuse_missing(stage, missing, "so it is too early for --finish; run the array's missing tasks first")
        for task, result in zip(tasks, found, strict=True):
            advance(stage.units(task))
            assert result is not None, "nothing is missing"
            yield Outcome(result, was_finished=True)


def refuse_missing(stage: Stage[Task, Result], missing: Sequence[Task], way_out: str) -> NoReturn:
    """Raise `BusyError`, naming what tasks have not made yet."""
    named = ", ".join(stage.words(task) for task in missing[:_MOST_NAMED])
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    verb = "is" if len(missing) == 1 else "are"
    raise BusyError(f"{counted(len(missing), stage.noun)} {verb} not there yet ({named}{more}), {way_out}")
