"""A connection to a Ray cluster: what its nodes have, and how they are asked.

What is sent to a worker is defined by value and answers in plain values, so that a worker which lacks this package can
say so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.words import first_line

log = logging.getLogger(__name__)

MOST_RETRIES = 3
"""How often Ray does a task again whose worker or node died."""

_ANSWERS_WITHIN = 5.0  # seconds
_STORE_BYTES = 1 << 28  # of Ray's object store where it is started here: stages and answers are small


@dataclass(frozen=True)
class Told:
    """How a remote call answered: by words where the worker cannot do it, else by a value."""

    refusal: str
    value: Any


@contextlib.contextmanager
def connected(address: str | None, num_cores: int) -> Iterator[Any]:
    """The module `ray`, connected as long as the block lasts, if it was not before.

    address: of a cluster, None to start one here with so many cores. Raises `ConfigError` where Ray is not installed or
    not of the cluster's version, `BusyError` where it does not answer.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ConfigError("--engine ray needs Ray: pip install 'tightpack[ray]'") from None
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints what befalls a cluster; stdout carries our result only
        if ray.is_initialized():
            yield ray
            return
        _connect(ray, address, num_cores)
        try:
            with _telling_termination():
                yield ray
        finally:
            with _own_signals():
                ray.shutdown()


def _connect(ray: Any, address: str | None, num_cores: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        started: dict[str, Any] = {"num_cpus": num_cores, "object_store_memory": _STORE_BYTES}
        where = {"address": "local", "include_dashboard": False, **started}
    else:
        _require_answer(address)
        where = {"address": address}
    try:
        with _own_signals():
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError) as error:
        where_told = f"--ray-address {address}" if address else "--engine ray"
        raise BusyError(f"{where_told}: no Ray cluster is reached from here ({type(error).__name__})") from None
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray-address {address or '(none)'}: {first_line(error)}") from None


def on_every_node(ray: Any, function: str, *arguments: Any) -> dict[str, Told]:
    """What a function of `worker` gives on each node that does tasks, by the node's name, but for nodes that are gone.

    Raises `ConfigError` where there is none.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - with Ray alone

    ask = ray.remote(num_cpus=0, max_retries=MOST_RETRIES)(by_value())
    asked = {}
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0:
            there = ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            asked[f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"] = there.remote(function, arguments)
    answers = {}
    for name, ref in asked.items():
        try:
            answers[name] = answer_of(ray, ref, name)
        except BusyError:  # it has just died, and is still among the nodes
            log.warning("worker %s does not answer; the others do its tasks", name)
    if not answers:
        raise ConfigError("the cluster has no node with a CPU for tasks")
    return answers


def answer_of(ray: Any, ref: Any, name: str) -> Told:
    """How a remote call answered. name: what it is for. Raises `BusyError` where its worker died too often."""
    try:
        return Told(*ray.get(ref))
    except ray.exceptions.RayTaskError as error:
        raise RuntimeError(str(error)) from None
    except ray.exceptions.RayError as error:
        raise BusyError(
            f"{name}: its worker died {MOST_RETRIES + 1} times, for memory perhaps ({first_line(error)}); run the same"
            " command again"
        ) from None


def by_value() -> Any:
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


def near_here(ray: Any) -> Any:
    """The wish to be on this process's node, which does not go while the run lasts."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - with Ray alone

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


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
def _telling_termination() -> Iterator[None]:
    """Have SIGTERM raise what this process's handler raises: Ray, where it waits, makes a plain interruption of it."""
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: list[BaseException] = []

    def note(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    except KeyboardInterrupt as interruption:
        if not raised or isinstance(interruption, type(raised[0])):
            raise
        for words in getattr(interruption, "__notes__", ()):
            raised[0].add_note(words)
        raise raised[0] from None
    finally:
        signal.signal(signal.SIGTERM, handler)


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
