"""A Ray cluster that does tasks: its workers see the same files as this process.

Ray does a task again whose worker or node died; a task that was finished is found finished.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pipeline.base import storage
from pipeline.base.dealing.connection import MOST_RETRIES, answer_of, by_value, near_here, on_every_node
from pipeline.base.dealing.stages import Dealer, Kind, Outcome, Result, Stage, Task
from pipeline.base.dealing.worker import Answer, code
from pipeline.base.engine import Monitor, anonymous_bytes
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.staging import Staging
from pipeline.base.words import counted, did_you_mean

log = logging.getLogger(__name__)

_POLLED_EVERY = 0.5  # seconds
_LOOKED_AFTER = 30.0  # seconds without any answer, after which it is asked whether a node can do the tasks at all
_CANCELLED_WITHIN = 5.0  # seconds

_LEAST = 1e-4  # of a resource that Ray counts
_OF_RAY = ("", "CPU", "GPU", "memory", "object_store_memory")  # names that Ray does not take among others

Resources = Mapping[str, Mapping[str, float]]
"""What one task of a kind of stage takes: cpu, gpu, or a resource of the cluster's own, and how much of it."""


def parse_resources(texts: Mapping[str, str]) -> Resources:
    """Resources from texts such as {"embed": "gpu:1,cpu:4"}. Raises `ConfigError`."""
    kinds = get_args(Kind)
    parsed: dict[str, dict[str, float]] = {}
    for kind, text in texts.items():
        if kind not in kinds:
            raise ConfigError(f"--resources {kind}={text}: no stage is called {kind!r}{did_you_mean(kind, kinds)}")
        parsed[kind] = {}
        for part in text.split(","):
            name, _, amount = part.partition(":")
            try:
                parsed[kind][name.strip()] = float(amount)
                usable = name.strip() not in _OF_RAY and _is_amount(float(amount))
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError(
                    f"--resources {kind}={text}: write it as gpu:1, cpu:4, or both; what is above 1 is whole"
                )
    return parsed


def _is_amount(amount: float) -> bool:
    """Whether Ray takes so much of something: a part of one, or a whole number."""
    return amount == 0 or _LEAST <= amount < 1 or (math.isfinite(amount) and amount.is_integer())


class RayDealer(Dealer):
    """Has tasks done by the workers of a Ray cluster."""

    def __init__(self, ray: Any, resources: Resources, num_workers: int | None) -> None:
        """ray: the module, connected; num_workers: tasks at once, None for all that the cluster takes.

        Raises `ConfigError` for nodes that have not so much, or not this very code.
        """
        self._ray, self._resources, self._num_workers = ray, resources, num_workers
        self._require_resources()
        self._require_same_code()
        self._counter = (
            ray.remote(num_cpus=0, max_restarts=-1)(_counter()).options(scheduling_strategy=near_here(ray)).remote()
        )

    def _require_resources(self) -> None:
        for kind in self._resources:
            if not self._has_room(kind):
                told = ",".join(f"{name}:{amount:g}" for name, amount in self._taken(kind).items())
                raise ConfigError(f"--resources {kind}={told}: no node of the cluster has so much")

    def _taken(self, kind: str) -> dict[str, float]:
        """What a task takes."""
        return {"cpu": 1.0, **self._resources.get(kind, {})}

    def _has_room(self, kind: str) -> bool:
        """Whether a living node has what a task takes, if it does nothing else."""
        names = {"cpu": "CPU", "gpu": "GPU"}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        taken = {names.get(name, name): amount for name, amount in self._taken(kind).items()}
        return any(all(node.get(name, 0) >= amount for name, amount in taken.items()) for node in nodes)

    def _require_same_code(self) -> None:
        ours, our_digest = code()
        for node, answer in on_every_node(self._ray, "code").items():
            if answer.refusal:
                raise ConfigError(f"worker {node} cannot do tasks: {answer.refusal}; install tightpack there")
            version, digest = answer.value
            if version != ours:
                raise ConfigError(f"worker {node} has tightpack {version}, and this is {ours}; install the same there")
            if digest != our_digest:
                raise ConfigError(
                    f"worker {node} has tightpack {version} of other code ({digest}) than this ({our_digest}); install"
                    " the same there"
                )

    def require_seen(self, folder: Path, way_out: str) -> None:
        """Raise `ConfigError` for a folder that a worker does not see; way_out: what to do then.

        For one that is still to be made, the one that it will be in is looked at.
        """
        while not folder.exists():
            folder = folder.parent
        token, content = folder / f".seen-{uuid.uuid4().hex}", uuid.uuid4().hex
        storage.write_file(token, content.encode())
        try:
            for node, answer in on_every_node(self._ray, "sees", token, content).items():
                if answer.value is not True:
                    raise ConfigError(f"worker {node} does not see {folder}; {way_out}")
        finally:
            storage.remove(token)

    def deal(
        self, stage: Stage[Task, Result], tasks: Sequence[Task], staging: Staging, advance: Monitor
    ) -> Iterator[Outcome[Result]]:
        """As of `Dealer`. Raises also `BusyError` for a task whose workers died again and again."""
        ray, bar = self._ray, _Bar(self._ray, self._counter, uuid.uuid4().hex, advance)
        begin = self._beginning(stage, staging, bar.key)
        waiting: dict[Any, int] = {}
        outcomes: dict[int, Outcome[Result] | Exception] = {}
        todo, following, answered = iter(range(len(tasks))), 0, time.monotonic()
        most = self._num_workers or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        try:
            while following < len(tasks):
                while len(waiting) < most and (number := next(todo, None)) is not None:
                    sent = None if staging.mirror is None else stage.finished(tasks[number], staging)
                    if sent is None:
                        waiting[begin(tasks[number], number)] = number
                    else:
                        outcomes[number] = Outcome(sent, was_finished=True)
                        bar.ended(number, stage.units(tasks[number]))
                ready, _ = ray.wait(list(waiting), timeout=_POLLED_EVERY) if waiting else ((), ())
                if ready:
                    answered = time.monotonic()
                elif waiting and time.monotonic() - answered > _LOOKED_AFTER:
                    answered = time.monotonic()
                    if not self._has_room(stage.kind):
                        raise BusyError(f"{stage.title}: no node is left that can do it; run the same command again")
                for ref in ready:
                    number = waiting.pop(ref)
                    outcomes[number] = _outcome(ray, ref, stage.words(tasks[number]), staging)
                    bar.ended(number, stage.units(tasks[number]))
                bar.poll()
                while following in outcomes:
                    outcome = outcomes.pop(following)
                    if isinstance(outcome, Exception):
                        raise outcome  # the first in the order of the tasks, whatever failed first
                    yield outcome
                    following += 1
        finally:
            with contextlib.suppress(Exception):
                for ref in waiting:
                    ray.cancel(ref, force=True)
                if waiting:  # so that nothing is written any more when staging is removed
                    ray.wait(list(waiting), num_returns=len(waiting), timeout=_CANCELLED_WITHIN)
        log.info(
            "%s: %s by the cluster; this process holds %.0f MB",
            stage.title,
            counted(len(tasks), stage.noun),
            anonymous_bytes() / 1e6,
        )

    def _beginning(self, stage: Stage[Task, Any], staging: Staging, key: str) -> Callable[[Task, int], Any]:
        """What sends a task, and its number, to a worker, and returns a reference to its `Answer`."""
        taken = self._taken(stage.kind)
        cpus, gpus = taken.pop("cpu"), taken.pop("gpu", 0)
        perform = self._ray.remote(max_retries=MOST_RETRIES)(by_value()).options(
            num_cpus=cpus, num_gpus=gpus, resources=taken, scheduling_strategy="SPREAD"
        )
        shared = self._ray.put(pickle.dumps(stage))

        def begin(task: Task, number: int) -> Any:
            reporting = (self._counter, key, number)
            return perform.remote(
                "perform", (key, [shared], pickle.dumps(task), staging.folder, max(1, int(cpus)), reporting)
            )

        return begin


class _Bar:
    """Units of work done, from tasks that ended and from what workers report of those that have not."""

    def __init__(self, ray: Any, counter: Any, key: str, advance: Monitor) -> None:
        self._ray, self._counter, self._advance = ray, counter, advance
        self.key = key
        self._ended: set[int] = set()
        self._of_ended = 0
        self._told = 0
        self._asked: Any = None

    def ended(self, number: int, units: int) -> None:
        self._ended.add(number)
        self._of_ended += units
        self._counter.forget.remote(self.key, number)
        self._tell({})

    def poll(self) -> None:
        """Ask for reports, and tell of those that came."""
        if self._asked is None:
            self._asked = self._counter.units.remote(self.key)
        elif self._ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            with contextlib.suppress(self._ray.exceptions.RayError):  # a bar that stands is no reason to end
                self._tell(self._ray.get(asked))

    def _tell(self, reported: Mapping[int, int]) -> None:
        done = self._of_ended + sum(units for number, units in reported.items() if number not in self._ended)
        if done > self._told:
            self._advance(done - self._told)
            self._told = done


def _outcome(ray: Any, ref: Any, name: str, staging: Staging) -> Outcome[Any] | Exception:
    """The outcome of a task that a worker did, or what the task raised. Raises as `answer_of`."""
    told = answer_of(ray, ref, name)
    if told.refusal:
        raise ConfigError(f"a worker cannot do tasks: {told.refusal}; install tightpack there")
    answer: Answer = pickle.loads(told.value)
    for logger, level, words in answer.told:
        logging.getLogger(logger).log(level, "%s", words)
    if staging.mirror is not None:
        for file in answer.files:
            staging.mirror.keep(*file)
    result = answer.error or answer.outcome
    assert result is not None, "there is one or the other"
    return result


def _counter() -> Any:
    """The class of an actor that adds up what workers report; Ray pickles it by value, as no module has it by name."""

    class Counter:
        def __init__(self) -> None:
            self._units: dict[str, dict[int, int]] = {}

        def report(self, key: str, number: int, units: int) -> None:
            self._units.setdefault(key, {})[number] = units

        def forget(self, key: str, number: int) -> None:
            self._units.get(key, {}).pop(number, None)

        def units(self, key: str) -> dict[int, int]:
            return self._units.get(key, {})

    return Counter
