"""A Ray cluster that does tasks: its workers see the same files as this process.

What is sent to a worker is defined by value and answers in plain values, so that a worker which lacks this package can
say so. Ray does a task again whose worker or node died; a task that was finished is found finished.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pipeline.base import storage
from pipeline.base.dealing.stages import Dealer, Kind, Outcome, Result, Stage, Task
from pipeline.base.dealing.worker import Answer, code
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.staging import Staging
from pipeline.base.words import did_you_mean, first_line

log = logging.getLogger(__name__)

_MOST_RETRIES = 3
_POLLED_EVERY = 0.5  # seconds
_ANSWERS_WITHIN = 5.0  # seconds
_STORE_BYTES = 1 << 28  # of Ray's object store where it is started here: stages and answers are small

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
                usable = bool(name.strip()) and 0 <= float(amount) < math.inf
            except ValueError:
                usable = False
            if not usable:
                raise ConfigError(f"--resources {kind}={text}: write it as gpu:1, cpu:4, or both with a comma")
    return parsed


@dataclass(frozen=True)
class _Told:
    """How a remote call answered: by words where the worker cannot do it, else by a value."""

    refusal: str
    value: Any


class RayDealer(Dealer):
    """Has tasks done by the workers of a Ray cluster, for as long as it is open."""

    def __init__(self, address: str | None, resources: Resources, num_workers: int | None, num_cores: int) -> None:
        """address: of a cluster, None to start one here with so many cores; num_workers: tasks at once, None for all
        that the cluster takes.
        """
        self._address, self._resources, self._num_cores = address, resources, num_cores
        self._num_workers = num_workers
        self._open = contextlib.ExitStack()

    def __enter__(self) -> RayDealer:
        """Raises `ConfigError` where Ray is not installed or not of the cluster's version, `BusyError` where it does
        not answer."""
        ray = _ray()
        # Ray prints what befalls a cluster to stdout, which carries our result only.
        self._open.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            if not ray.is_initialized():
                self._connect(ray)
                self._open.callback(_disconnect, ray)
            self._require_resources(ray)
            self._require_same_code(ray)
            self._counter = _remote_counter(ray)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _connect(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            where: dict[str, Any] = {"num_cpus": self._num_cores, "object_store_memory": _STORE_BYTES, **quiet}
        else:
            _require_answer(self._address)
            where = {"address": self._address, "log_to_driver": False, "logging_level": logging.ERROR}
        try:
            with _own_signals():
                ray.init(**where)
        except (ConnectionError, TimeoutError) as error:
            raise BusyError(f"--ray-address {self._address}: {first_line(error)}") from None
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"--ray-address {self._address}: {first_line(error)}") from None

    def _require_resources(self, ray: Any) -> None:
        """Raise `ConfigError` for resources that no node has."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        names = {"cpu": "CPU", "gpu": "GPU"}
        for kind, taken in self._resources.items():
            for name, amount in taken.items():
                most = max((node.get(names.get(name, name), 0) for node in nodes), default=0)
                if most < amount:
                    raise ConfigError(
                        f"--resources {kind}={name}:{amount:g}: no node of the cluster has so much ({most:g} at most)"
                    )

    def _require_same_code(self, ray: Any) -> None:
        """Raise `ConfigError` for a node that has not this very code."""
        for node, answer in self._on_every_node(ray, "code", ()).items():
            if answer.refusal:
                raise ConfigError(f"worker {node} cannot do tasks: {answer.refusal}; install tightpack there")
            (version, digest), (ours, our_digest) = answer.value, code()
            if version != ours:
                raise ConfigError(f"worker {node} has tightpack {version}, and this is {ours}; install the same there")
            if digest != our_digest:
                raise ConfigError(
                    f"worker {node} has tightpack {version} of other code ({digest}) than this ({our_digest}); install"
                    " the same there"
                )

    def require_seen(self, folder: Path, way_out: str) -> None:
        """Raise `ConfigError` for a folder that a worker does not see; way_out: what to do then.

        Of one that is still to be made, the folder is looked at where it will be."""
        while not folder.exists():
            folder = folder.parent
        token, content = folder / f".seen-{uuid.uuid4().hex}", uuid.uuid4().hex
        storage.write_file(token, content.encode())
        try:
            for node, answer in self._on_every_node(_ray(), "sees", (token, content)).items():
                if answer.value is not True:
                    raise ConfigError(f"worker {node} does not see {folder}; {way_out}")
        finally:
            storage.remove(token)

    def _on_every_node(self, ray: Any, function: str, arguments: tuple[Any, ...]) -> dict[str, _Told]:
        """What a function of `worker` gives on each node that does tasks."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - with Ray alone

        asked = {}
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ask = ray.remote(num_cpus=0, max_retries=_MOST_RETRIES)(_by_value()).options(scheduling_strategy=there)
                asked[f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = ask.remote(function, arguments)
        if not asked:
            raise ConfigError("the cluster has no node with a CPU for tasks")
        return {name: _Told(*_answer(ray, ref, name)) for name, ref in asked.items()}

    def deal(
        self,
        stage: Stage[Task, Result],
        tasks: Sequence[Task],
        staging: Staging,
        advance: Callable[[int], object],
    ) -> Iterator[Outcome[Result]]:
        """As of `Dealer`. Raises also `BusyError` for a task whose workers died again and again."""
        ray = _ray()
        taken = {"cpu": 1.0, **self._resources.get(stage.kind, {})}
        cpus, gpus = taken.pop("cpu"), taken.pop("gpu", 0)
        perform = ray.remote(max_retries=_MOST_RETRIES)(_by_value()).options(
            num_cpus=cpus, num_gpus=gpus, resources=taken, scheduling_strategy="SPREAD"
        )
        key, shared = uuid.uuid4().hex, ray.put(pickle.dumps(stage))
        most = 2 * (self._num_workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        if self._num_workers is not None:
            most = self._num_workers
        bar = _Bar(ray, self._counter, key, advance)
        waiting: dict[Any, int] = {}
        outcomes: dict[int, Outcome[Result]] = {}
        todo = iter(range(len(tasks)))
        following = 0

        def begin(number: int) -> None:
            if staging.mirror is not None and (found := stage.finished(tasks[number], staging)) is not None:
                outcomes[number] = Outcome(found, was_finished=True)
                bar.ended(number, stage.units(tasks[number]))
                return
            call = (key, [shared], pickle.dumps(tasks[number]), staging.folder, max(1, int(cpus)))
            waiting[perform.remote("perform", (*call, (self._counter, key, number)))] = number

        try:
            while following < len(tasks):
                while len(waiting) < most and (number := next(todo, None)) is not None:
                    begin(number)
                ready, _ = ray.wait(list(waiting), timeout=_POLLED_EVERY) if waiting else ((), ())
                for ref in ready:
                    number = waiting.pop(ref)
                    outcomes[number] = _outcome(ray, ref, stage.words(tasks[number]), staging)
                    bar.ended(number, stage.units(tasks[number]))
                bar.poll()
                while following in outcomes:
                    yield outcomes.pop(following)
                    following += 1
        finally:
            for ref in waiting:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=True)


class _Bar:
    """Units of work done, from tasks that ended and from what workers report of those that have not."""

    def __init__(self, ray: Any, counter: Any, key: str, advance: Callable[[int], object]) -> None:
        self._ray, self._counter, self._key, self._advance = ray, counter, key, advance
        self._of_ended: dict[int, int] = {}
        self._told = 0
        self._asked: Any = None

    def ended(self, number: int, units: int) -> None:
        self._of_ended[number] = units
        self._tell({})

    def poll(self) -> None:
        """Ask for reports, and tell of those that came."""
        if self._asked is None:
            self._asked = self._counter.units.remote(self._key)
        elif self._ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            with contextlib.suppress(self._ray.exceptions.RayError):  # a bar that stands is no reason to end
                self._tell(self._ray.get(asked))

    def _tell(self, reported: Mapping[int, int]) -> None:
        under_way = sum(units for number, units in reported.items() if number not in self._of_ended)
        done = sum(self._of_ended.values()) + under_way
        if done > self._told:
            self._advance(done - self._told)
            self._told = done


def _outcome(ray: Any, ref: Any, name: str, staging: Staging) -> Outcome[Any]:
    """The outcome of a task that a worker did. Raises what the task raised."""
    refusal, value = _answer(ray, ref, name)
    if refusal:
        raise ConfigError(f"a worker cannot do tasks: {refusal}; install tightpack there")
    answer: Answer = pickle.loads(value)
    if staging.mirror is not None:
        for file in answer.files:
            staging.mirror.keep(*file)
    if answer.error is not None:
        raise answer.error
    assert answer.outcome is not None, "there is no error"
    return answer.outcome


def _answer(ray: Any, ref: Any, name: str) -> tuple[str, Any]:
    """What a remote call returned. Raises `BusyError` where its worker died too often."""
    try:
        answer: tuple[str, Any] = ray.get(ref)
        return answer
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(str(error)) from None
    except ray.exceptions.RayError as error:
        raise BusyError(
            f"{name}: its worker died {_MOST_RETRIES + 1} times, for memory perhaps ({first_line(error)}); run the same"
            " command again"
        ) from None


def _by_value() -> Any:
    """The function that workers are sent: Ray pickles it by value, as no module has it by name."""

    def call(function: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        try:
            from pipeline.base.dealing import worker  # noqa: PLC0415 - it may not be there
        except ImportError as error:
            return f"{type(error).__name__}: {error}", None
        if function != "perform":
            return "", getattr(worker, function)(*arguments)
        import ray  # noqa: PLC0415

        key, shared, task, folder, num_threads, (counter, of_stage, number) = arguments
        report = lambda units: counter.report.remote(of_stage, number, units)  # noqa: E731
        return "", worker.perform(key, lambda: ray.get(shared[0]), task, folder, num_threads, report)

    return call


def _remote_counter(ray: Any) -> Any:
    """An actor that adds up what workers report; it is near this process, not on a node that may go."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - with Ray alone

    class Counter:
        def __init__(self) -> None:
            self._units: dict[str, dict[int, int]] = {}

        def report(self, key: str, number: int, units: int) -> None:
            self._units.setdefault(key, {})[number] = units

        def units(self, key: str) -> dict[int, int]:
            return self._units.get(key, {})

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0, max_restarts=-1)(Counter).options(scheduling_strategy=here).remote()


def _disconnect(ray: Any) -> None:
    with _own_signals():
        ray.shutdown()


def _ray() -> Any:
    """The module. Raises `ConfigError` where it is not installed."""
    try:
        import ray  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ConfigError("--engine ray needs Ray: pip install 'tightpack[ray]'") from None
    return ray


def _require_answer(address: str) -> None:
    """Raise `BusyError` where nobody listens at an address, which Ray would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto", or a name that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN).close()
    except (OSError, ValueError, OverflowError) as error:
        raise BusyError(f"--ray-address {address} does not answer ({error}); is the cluster up?") from None


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers, which Ray replaces."""
    try:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        yield
    finally:
        for number, handler in handlers.items():
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, handler)
