"""A version that training reads is not removed, and the one that it began with is what it reads."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline import PackOptions, pack
from tests.conftest import Run
from tests.training.forked import Forked, free_port
from tests.training.runs import command
from tests.training.samples import config_file, packed_shards


def published(folder: Path, seed: int, **options: Any) -> str:
    """Publish packs in another order as the latest version; returns its name."""
    out = folder / "out"
    pack(folder / "tokens", out, PackOptions(max_length=64, seed=seed), versioned=True, **options)
    return os.readlink(out / "latest")


@contextmanager
def meanwhile(folder: Path, seed: int) -> Iterator[None]:
    """When a model computes for the first time: two more versions, of which no other is to stay."""
    done = False

    def publish(*_: Any) -> None:
        nonlocal done
        if not done:
            done = True
            published(folder, seed)
            published(folder, seed + 1, keep=0)

    handle = register_module_forward_pre_hook(publish)
    try:
        yield
    finally:
        handle.remove()
        assert done


def test_a_version_stays_while_it_is_read(training: Run, run: Run, tmp_path: Path) -> None:
    packed_shards(run, tmp_path, num_samples=40)
    out = tmp_path / "out"
    begun = first = published(tmp_path, 0)
    given = ["--shards", out / "latest", "--model", config_file(tmp_path)]
    some = ["--layouts", "packed", "--rounds", 1, "--steps", 1]
    trained = command(out / "latest", tmp_path, tmp_path / "run", "--eval-shards", out / "latest", steps=2)
    for seed, arguments in ((1, trained), (3, ["parity", *given]), (5, ["bench", *given, *some])):
        with meanwhile(tmp_path, seed):
            ended = training(*arguments)
        assert ended.code == 0, ended.err
        assert f"latest is {out / first}" in ended.err
        assert "1 old version not removed: a reader holds the manifest's lock" in ended.err
        latest = os.readlink(out / "latest")
        assert {each.name for each in out.iterdir() if each.name != "latest"} == {first, latest}
        gc.unfreeze()  # a command that ends freezes what is there: its process is about to end as well
        gc.collect()
        first = published(tmp_path, seed + 1, keep=0)
        assert {each.name for each in out.iterdir() if each.name != "latest"} == {first} == {latest}
    other = training(*trained)
    assert other.code == 2
    assert f"it is evaluated on other shards, or on none ('{begun}' was given, and '{first}' now)" in other.err


def test_a_version_that_is_being_removed_is_not_read(training: Run, shards: Path, tmp_path: Path) -> None:
    arguments = command(shards, tmp_path, tmp_path / "run", steps=1)
    with open(shards / "manifest.json", "rb") as remover:
        fcntl.flock(remover, fcntl.LOCK_EX)
        busy = training(*arguments)
    assert (busy.code, "being removed" in busy.err) == (75, True), busy.err
    assert training(*arguments).code == 0


@pytest.mark.soak
def test_ranks_read_the_same_version(run: Run, shards: Path, tmp_path: Path) -> None:
    """As where the link to the latest moved on while they began, or each has a disk of its own."""
    packed_shards(run, tmp_path / "other", seed=1)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        Forked(
            tmp_path,
            *command(folder / "shards", tmp_path, tmp_path / "run"),
            environment=group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, folder in enumerate((tmp_path, tmp_path / "other"))
    ]
    for rank in ranks:
        code, _, said = rank.wait()
        assert (code, "other ranks have opened others" in said) == (75, True), said
    assert not (tmp_path / "run").exists()
