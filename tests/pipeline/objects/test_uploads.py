"""Shards go to a store as they are finished, and what is there already is not made again, whatever machine goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.base.storage import Step, intercepted
from tests.conftest import Run
from tests.pipeline.objects.datasets import contents, files, puts
from tests.pipeline.objects.server import Proxy

pytestmark = [pytest.mark.needs("moto", "s3fs"), pytest.mark.usefixtures("quick")]

_SHARDS = 3  # at least, of the jobs below


def _is_made(step: Step) -> bool:
    """Whether a shard is begun."""
    return step.operation == "create" and "/dataset/data-" in step.path


def test_sent_while_others_are_built_and_found_from_another_machine(
    run: Run, job: list[object], tmp_path: Path, proxy: Proxy, store: fsspec.AbstractFileSystem, bucket: str
) -> None:
    assert run(*job, "--output", tmp_path / "local").code == 0
    expected = files(tmp_path / "local")
    made: list[str] = []
    is_sent = threading.Event()

    def until_the_last(step: Step, act: Callable[[], Any]) -> Any:
        if _is_made(step):
            made.append(step.path)
            if len(made) == _SHARDS:
                assert is_sent.wait(30), "the first is sent before the last is made"
                raise KeyboardInterrupt
        done = act()
        if step.operation == "put" and step.path.endswith(".arrow"):
            is_sent.set()
        return done

    out = f"{bucket}/out"
    with intercepted(until_the_last):
        assert run(*job, "--output", f"s3://{out}", "--cache-dir", tmp_path / "one").code == 130
    sent = set(contents(store, out)) - {".lease"}
    assert sent
    assert sent < set(expected)

    proxy.seen.clear()
    made.clear()

    def listening(step: Step, act: Callable[[], Any]) -> Any:
        if _is_made(step):
            made.append(Path(step.path).name)
        return act()

    with intercepted(listening):
        ended = run(*job, "--output", f"s3://{out}", "--cache-dir", tmp_path / "two")
    assert ended.code == 0, ended.err
    assert contents(store, out) == expected
    assert not sent & set(puts(proxy, out))
    assert not [name for name in made if any(name.startswith(one.removesuffix(".arrow")) for one in sent)]


def test_nothing_stays_after_an_error_of_the_input(
    run: Run,
    tokenizing: Callable[[object], list[object]],
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
) -> None:
    ended = run(*tokenizing(5), "--output", f"s3://{bucket}/out")
    assert (ended.code, "row 12" in ended.err) == (3, True), ended.err
    assert puts(proxy, f"{bucket}/out"), "shards were sent before the last row was read"
    assert contents(store, f"{bucket}/out") == {}
