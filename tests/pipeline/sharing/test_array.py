"""Array jobs: many processes share a run, and what they publish is what one process would have."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, left_behind
from tests.pipeline.sharing.runs import FLAGS, RELATED, files_of, two_splits, with_vectors


def share(index: int, count: int) -> tuple[object, ...]:
    return ("--task-index", index, "--task-count", count)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return two_splits(tmp_path / "in")


def test_shares_publish_what_one_process_does(run: Run, tmp_path: Path, source: Path) -> None:
    assert run("pack", source, "--output", tmp_path / "one", *FLAGS).code == 0
    shared = [run("pack", source, "--output", tmp_path / "out", *FLAGS, *share(i, 3), "--json") for i in (2, 0, 1)]
    assert [each.code for each in shared] == [0, 0, 0], shared[0].err
    assert sum(each.json["windows"] for each in shared) == shared[0].json["all_windows"] == 9
    assert min(each.json["shards"] for each in shared) > 2
    assert not (tmp_path / "out").exists()
    finished = run("pack", source, "--output", tmp_path / "out", *FLAGS, "--finish")
    assert finished.code == 0, finished.err
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert [name for name in left_behind(tmp_path) if name.startswith(".")] == []
    again = run("pack", source, "--output", tmp_path / "out", *FLAGS, *share(0, 3), "--json")
    assert (again.code, again.json["status"]) == (0, "up_to_date")


def test_finishing_too_early_names_what_is_missing(run: Run, tmp_path: Path, source: Path) -> None:
    out = ("--output", tmp_path / "out", *FLAGS)
    assert run("pack", source, *out, *share(0, 2)).code == 0
    early = run("pack", source, *out, "--finish")
    assert early.code == 75
    assert "4 plans are not there yet (window 1 of train, window 3 of train, window 5 of train" in early.err
    assert run("pack", source, *out, *share(1, 2)).code == 0
    staging = next(tmp_path.glob(".out.staging-*"))
    shard = sorted((staging / "dataset" / "test").glob("*w0001-s0001.arrow"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    early = run("pack", source, *out, "--finish")
    assert (early.code, "1 shard is not there yet (shard 1 of window 1 of test)" in early.err) == (75, True), early.err
    assert run("pack", source, *out, *share(1, 2)).code == 0
    assert shard.read_bytes() == content
    assert run("pack", source, *out, "--finish").code == 0


def test_vectors_are_made_by_all_before_a_window_is_planned(run: Run, tmp_path: Path) -> None:
    source = with_vectors(tmp_path / "in.parquet")
    monkey = ("pack", source, *FLAGS, *RELATED)
    assert run(*monkey, "--output", tmp_path / "one", "--cache-dir", tmp_path / "cache-of-one").code == 0
    first = run(*monkey, "--output", tmp_path / "out", *share(1, 2))
    assert first.code == 75
    assert "1 chunk is not there yet (rows 0 to 229), which task 0 makes" in first.err
    assert [run(*monkey, "--output", tmp_path / "out", *share(i, 2)).code for i in (0, 1)] == [0, 0]
    assert run(*monkey, "--output", tmp_path / "out", "--finish").code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


def test_a_run_of_other_options_takes_nothing_away(run: Run, tmp_path: Path, source: Path) -> None:
    out, others = ("pack", source, "--output", tmp_path / "out"), (*FLAGS, "--seed", 1)
    assert [run(*out, *FLAGS, *share(i, 2)).code for i in (0, 1)] == [0, 0]
    assert run(*out, *others, "--finish").code == 75
    stray = run(*out, *others, *share(0, 2))
    assert (stray.code, "of run" in stray.err, "have the same inputs and options" in stray.err) == (0, True, True)
    assert run(*out, *others, "--finish").code == 75, "the other half is missing"
    assert run(*out, *FLAGS, "--finish").code == 0
    assert not list(tmp_path.glob(".out*"))


def test_more_tasks_than_windows(run: Run, tmp_path: Path, source: Path) -> None:
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 80, *share(2, 3))
    assert (ended.code, "2 windows for 3 tasks" in ended.err) == (0, True), ended.err


def test_a_job_file_may_name_the_tasks(run: Run, tmp_path: Path, source: Path) -> None:
    (tmp_path / "job.yaml").write_text("max_length: 80\ntask_count: 1\nwait: 5\n")
    out = ("pack", source, "--output", tmp_path / "out", "--config", tmp_path / "job.yaml")
    assert run(*out, "--task-index", 0).code == 0
    (tmp_path / "job.yaml").write_text("max_length: 80\ntask_count: 1\n")
    assert run(*out, "--finish").code == 0


def test_what_another_machine_decoded_is_looked_at_before_it_is_packed(run: Run, tmp_path: Path) -> None:
    source = with_vectors(tmp_path / "in.parquet")
    out = ("pack", source, "--output", tmp_path / "out", *FLAGS)
    assert run("pack", source, "--output", tmp_path / "one", *FLAGS).code == 0
    assert run(*out, *share(0, 2)).code == 0
    (spool,) = tmp_path.rglob("spool-*.arrow")
    content = spool.read_bytes()
    spool.write_bytes(content[:-2000] + bytes(1000) + content[-1000:])
    damaged = run(*out, *share(1, 2))
    assert (damaged.code, "are not what was written" in damaged.err) == (75, True), damaged.err
    assert run(*out, *share(1, 2)).code == 0
    assert spool.read_bytes() == content
    assert run(*out, "--finish").code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


def test_shares_run_at_the_same_time(run: Run, tmp_path: Path) -> None:
    source = with_vectors(tmp_path / "in.parquet")
    assert run("pack", source, "--output", tmp_path / "one", *FLAGS, *RELATED).code == 0
    command = [sys.executable, "-m", "pipeline", "pack", source, "--output", tmp_path / "out", *FLAGS, *RELATED]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache of shares")}
    processes = [
        subprocess.Popen([*map(str, [*command, *share(i, 2), "--wait", 60])], env=environment, stderr=subprocess.PIPE)
        for i in range(2)
    ]
    for process in processes:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told.decode()
    environment_of_run = ("--cache-dir", tmp_path / "cache of shares" / "tightpack")
    assert run(*command[3:], *environment_of_run, "--finish").code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


def test_shares_of_machines_with_nothing_but_a_store_in_common(
    run: Run, bucket: str, store: Any, tmp_path: Path, source: Path
) -> None:
    out, caches = ("--output", f"s3://{bucket}/out", *FLAGS), [tmp_path / f"cache of {i}" for i in range(3)]
    assert run("pack", source, "--output", tmp_path / "one", *FLAGS).code == 0
    assert run("pack", source, *out, *share(0, 2), "--cache-dir", caches[0]).code == 0
    early = run("pack", source, *out, "--finish", "--cache-dir", caches[2])
    assert (early.code, "of window 1 of train" in early.err) == (75, True), early.err
    assert run("pack", source, *out, *share(1, 2), "--cache-dir", caches[1]).code == 0
    assert run("pack", source, *out, "--finish", "--cache-dir", caches[2]).code == 0
    store.get(f"{bucket}/out/", f"{tmp_path}/out/", recursive=True)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")


def test_a_share_and_a_whole_run_keep_apart(run: Run, tmp_path: Path, source: Path) -> None:
    out = ("--output", tmp_path / "out", *FLAGS)
    lock = os.open(tmp_path / ".out.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)
    assert run("pack", source, *out, *share(0, 2)).code == 0, "shares hold it together"
    for whole in ((), ("--finish",)):
        ended = run("pack", source, *out, *whole)
        assert (ended.code, "another run is writing" in ended.err) == (75, True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert run("pack", source, *out, *share(1, 2)).code == 75
    os.close(lock)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (share(3, 3), "--task-index 3 is out of range: of 3 it is 0 to 2"),
        (("--task-index", 0), "--task-count is missing"),
        (("--task-count", 2), "--task-index is missing"),
        (("--wait", 3), "no effect without --task-index"),
        ((*share(0, 2), "--finish"), "leave it out"),
        ((*share(0, 2), "--engine", "ray"), "--engine ray deals tasks itself"),
        ((*share(0, 2), "--dry-run"), "--dry-run is of a whole run"),
        (("--ray-address", "a:1"), "no effect without --engine ray"),
        (("--resources", "embed=gpu:1"), "no effect without --engine ray"),
    ],
)
def test_flags_that_do_not_go_together(
    run: Run, tmp_path: Path, source: Path, flags: tuple[object, ...], told: str
) -> None:
    ended = run("pack", source, "--output", tmp_path / "out", *FLAGS, *flags)
    assert (ended.code, told in ended.err) == (2, True), ended.err
    assert not list(tmp_path.glob(".out*"))
