"""Answers that go wrong, runs side by side, and runs that are killed: nothing half is seen, and a rerun heals it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline import BusyError, PackOptions, RunOptions, pack
from tests.conftest import Run
from tests.pipeline.objects.datasets import FLAGS, contents, files, puts, read
from tests.pipeline.objects.server import Proxy


def soak(*values: object) -> Any:
    """A case that scripts/soak alone runs."""
    return pytest.param(*values, marks=pytest.mark.soak)


pytestmark = [pytest.mark.soak, pytest.mark.needs("moto", "s3fs"), pytest.mark.usefixtures("quick")]


@pytest.fixture
def expected(run: Run, tmp_path: Path, source: Path) -> dict[str, bytes]:
    """The dataset as a disk has it."""
    assert run("pack", source, "--output", tmp_path / "local", *FLAGS).code == 0
    return files(tmp_path / "local")


@pytest.mark.parametrize("fault", ["lost", *map(soak, ["500", "503", "reset", "half"])])
def test_every_request_fails_at_first(
    run: Run,
    source: Path,
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
    expected: dict[str, bytes],
    fault: str,
) -> None:
    out, failed = f"{bucket}/out", set[str]()

    def first_time(request: str, _: int) -> str | None:
        read(proxy, out)
        if request in failed or request.startswith("HEAD") or (fault == "half" and not request.startswith("GET")):
            return None
        failed.add(request)
        return fault

    proxy.fault = first_time
    for status in ("packed", "up_to_date"):
        ended = run("pack", source, "--output", f"s3://{out}", *FLAGS, "--json")
        assert (ended.code, ended.json["status"]) == (0, status), ended.err
    if fault == "half":
        assert run("verify", f"s3://{out}").code == 0
    assert len(failed) > 4
    proxy.fault = lambda _, __: None
    assert contents(store, out) == expected


FAULTS = [
    ("500", 75, "InternalError"),
    ("503", 75, "SlowDown"),
    ("reset", 75, "onnect"),
    ("denied", 74, "AccessDenied"),
]
OUTAGES = [(at, *fault) for at in ("/.lease", ".arrow", "/manifest.json", "/state.json") for fault in FAULTS]
USUAL = [(".arrow", "denied"), ("/manifest.json", "503")]


@pytest.mark.parametrize(
    ("at", "fault", "code", "told"), [each if each[:2] in USUAL else soak(*each) for each in OUTAGES]
)
def test_an_outage(
    run: Run,
    source: Path,
    tmp_path: Path,
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
    expected: dict[str, bytes],
    at: str,
    fault: str,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    out, is_out = f"{bucket}/out", threading.Event()

    def from_then_on(request: str, _: int) -> str | None:
        if request.startswith("PUT") and request.endswith(at):
            is_out.set()
        return fault if is_out.is_set() else None

    proxy.fault = from_then_on
    ended = run("pack", source, "--output", f"s3://{out}", *FLAGS)
    assert (ended.code, told in ended.err) == (code, True), ended.err
    assert read(proxy, out) is None
    is_kept = "finished work is kept in" in ended.err
    assert is_kept == (at != "/.lease"), ended.err
    proxy.fault = lambda _, __: None
    done = {name for name in puts(proxy, out) if store.exists(f"{out}/{name}")}
    proxy.seen.clear()
    assert run("pack", source, "--output", f"s3://{out}", *FLAGS).code == 0
    assert contents(store, out) == expected
    again = {name for name in puts(proxy, out) if name.endswith(".arrow")} & done
    assert again == set(), "what was there is not sent again"


def test_credentials(run: Run, source: Path, proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    ended = run("pack", source, "--output", f"s3://{bucket}/out", *FLAGS)
    assert (ended.code, "AWS_ACCESS_KEY_ID" in ended.err) == (3, True), ended.err


class _Runs:
    """Two runs of one output, the first of which is stopped at a request until it is let go on."""

    def __init__(self, source: Path, folder: Path, out: str, proxy: Proxy, at: str) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.source, self.folder, self.out = source, folder, out
        self.outcome: list[object] = []
        self._at = at
        proxy.fault = self._stopped
        self.thread = threading.Thread(target=self._first)

    def _stopped(self, request: str, _: int) -> None:
        if request.startswith("PUT") and request.endswith(self._at) and not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(60)

    def pack(self, seed: int) -> str:
        options = PackOptions(max_length=80, shard_size=4_000, seed=seed)
        run = RunOptions(cache_dir=self.folder / f"cache-{seed}")
        return pack(self.source, f"s3://{self.out}", options, run=run).status

    def _first(self) -> None:
        try:
            self.outcome.append(self.pack(seed=1))
        except BusyError as error:
            self.outcome.append(error)


@pytest.fixture
def runs(source: Path, tmp_path: Path, bucket: str, proxy: Proxy) -> Iterator[Callable[[str], _Runs]]:
    begun: list[_Runs] = []

    def begin(at: str) -> _Runs:
        begun.append(_Runs(source, tmp_path, f"{bucket}/out", proxy, at))
        begun[0].thread.start()
        assert begun[0].reached.wait(60)
        return begun[0]

    yield begin
    for each in begun:
        each.go_on.set()
        each.thread.join(60)


@pytest.mark.parametrize("at", ["/state.json", *map(soak, [".arrow", "/manifest.json"])])
def test_the_second_of_two_runs_is_sent_away(runs: Callable[[str], _Runs], proxy: Proxy, at: str) -> None:
    both = runs(at)
    with pytest.raises(BusyError, match="another run is writing s3://"):
        both.pack(seed=2)
    both.go_on.set()
    both.thread.join(60)
    assert both.outcome == ["packed"]
    assert read(proxy, both.out)


@pytest.mark.parametrize("at", ["/manifest.json", *map(soak, [".arrow", "/state.json"])])
def test_a_run_that_is_frozen_loses_its_place(
    runs: Callable[[str], _Runs],
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    at: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.base.objects.lease.SECONDS", 2.0)
    monkeypatch.setattr("pipeline.base.objects.lease.RENEWED_AFTER", 1e6)  # as it is for a process that stands still
    both = runs(at)
    monkeypatch.setattr("pipeline.base.objects.lease.RENEWED_AFTER", 0.1)
    assert both.pack(seed=2) == "packed"
    both.go_on.set()
    both.thread.join(60)
    (lost,) = both.outcome
    assert isinstance(lost, BusyError), lost
    proxy.fault = lambda _, __: None
    assert read(proxy, both.out)
    assert both.pack(seed=2) == "up_to_date"


@pytest.mark.soak
@pytest.mark.parametrize("at", ["/.lease", ".arrow", "/state.json"])
def test_sigterm_while_the_store_does_not_answer(
    source: Path, tmp_path: Path, proxy: Proxy, bucket: str, at: str
) -> None:
    reached, is_over = threading.Event(), threading.Event()

    def silent(request: str, _: int) -> None:
        if request.startswith("PUT") and request.endswith(at):
            reached.set()
        if reached.is_set():
            is_over.wait(60)

    proxy.fault = silent
    command = [sys.executable, "-m", "pipeline", "pack", str(source), "--output", f"s3://{bucket}/out", *FLAGS]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert reached.wait(60)
        began = time.monotonic()
        process.terminate()
        told = process.communicate(timeout=60)[1]
        assert (process.returncode, "terminated" in told) == (143, True), told
        assert time.monotonic() - began < 10
    finally:
        is_over.set()
        process.kill()
