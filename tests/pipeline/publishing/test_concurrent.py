"""Who reads while an output is replaced or grows sees one version whole, or misses a file; never a mixture."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline import PackOptions, RunOptions, pack
from pipeline.base import storage
from pipeline.base.errors import BusyError
from tests.pipeline.samples import random_rows, write_jsonl

ROWS = random_rows(200)
OPTIONS = PackOptions(max_length=80)
ROUNDS = 12


def seen(folder: Path) -> tuple[tuple[int, ...], ...]:
    """What stands in a dataset: the samples of each pack, with the tokens that they begin with."""
    packs = datasets.load_from_disk(str(folder)).to_list()
    return tuple((*pack["sample_ids"], *pack["input_ids"][:5]) for pack in packs)


def _read(folder: Path, pipe: Connection) -> None:
    """Read again and again until something is sent; tell every version seen, and whatever else came up."""
    versions: set[Any] = set()
    pipe.send("reading")
    while not pipe.poll():
        try:
            versions.add(seen(folder))
        except FileNotFoundError:
            continue
        except Exception as error:  # told, and not what may happen
            versions.add(repr(error))
    pipe.send(versions)


@contextmanager
def reader(folder: Path) -> Iterator[Any]:
    """A process that reads a dataset meanwhile; yields what gives what it saw."""
    context = multiprocessing.get_context("spawn")  # not forked: this process has threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_read, args=(folder, theirs))
    process.start()
    assert ours.recv() == "reading"

    def told() -> set[Any]:
        ours.send("stop")
        answer: set[Any] = ours.recv()
        return answer

    try:
        yield told
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_reader_never_sees_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool) -> None:
    if not can_exchange:
        monkeypatch.setattr(storage, "exchange", lambda path, other: False)
    run = RunOptions(num_workers=1, cache_dir=tmp_path / "cache")
    one, two = write_jsonl(ROWS[:100], tmp_path / "one.jsonl"), write_jsonl(ROWS[100:], tmp_path / "two.jsonl")
    out = tmp_path / "out"
    pack(one, out, OPTIONS, run=run)
    whole = {seen(out)}
    with reader(out) as told:
        for number in range(ROUNDS):
            pack(two if number % 2 else one, out, OPTIONS, overwrite=True, run=run)
            whole.add(seen(out))
            pack([one, two], out, OPTIONS, append=True, run=run)
            whole.add(seen(out))
        versions = told()
    assert versions <= whole, versions - whole
    assert len(versions) > 1, "it looked while versions came"


def _hold(out: Path, source: Path, cache: Path, pipe: Connection) -> None:
    """Pack, and wait in the middle of writing until something is sent."""

    waited: list[bool] = []

    def wait(step: storage.Step, act: Any) -> Any:
        if step.operation == "create" and "data-" in Path(step.path).name and not waited:
            waited.append(True)
            pipe.send("writing")
            pipe.recv()
        return act()

    with storage.intercepted(wait):
        pack(source, out, OPTIONS, run=RunOptions(num_workers=1, cache_dir=cache))


def test_of_two_runs_for_an_output_one_works(tmp_path: Path) -> None:
    source, out = write_jsonl(ROWS, tmp_path / "in.jsonl"), tmp_path / "out"
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    first = context.Process(target=_hold, args=(out, source, tmp_path / "cache", theirs))
    first.start()
    assert ours.recv() == "writing"
    run = RunOptions(num_workers=1, cache_dir=tmp_path / "cache")
    for versioned in (False, True):
        started = time.monotonic()
        with pytest.raises(BusyError, match="another run is writing") as raised:
            pack(source, out, OPTIONS, versioned=versioned, run=run)
        assert (raised.value.exit_code, time.monotonic() - started < 10) == (75, True)
    ours.send("go on")
    first.join(60)
    assert first.exitcode == 0
    assert pack(source, out, OPTIONS, run=run).status == "up_to_date"
