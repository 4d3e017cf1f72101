"""Every run a version of its own, `latest` the current one."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import datasets
import pytest

from tests.conftest import Run
from tests.pipeline.samples import random_rows, write_jsonl

ROWS = random_rows(120)
FLAGS = ["--max-length", "80"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(ROWS[:60], tmp_path / "one.jsonl")


def packed(run: Run, source: Path, out: Path, *flags: object) -> str:
    ended = run("pack", source, "--output", out, *FLAGS, "--versioned", *flags, "--json")
    assert ended.code == 0, ended.err
    told: str = ended.json["run_id"]
    assert ended.json["output"] == str(out / told)
    assert os.readlink(out / "latest") == told
    return told


def versions(out: Path) -> set[str]:
    return {path.name for path in out.iterdir() if path.name != "latest"}


def test_latest_moves_and_old_versions_go(run: Run, tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    runs = [packed(run, source, out, "--seed", seed) for seed in range(4)]
    for age, name in enumerate(runs):
        os.utime(out / name / "manifest.json", (age, age))
    assert versions(out) == {*runs}
    assert packed(run, source, out, "--seed", 0) == runs[0], "it is there, so latest moves alone"
    assert datasets.load_from_disk(str(out / "latest")).num_rows == datasets.load_from_disk(str(out / runs[0])).num_rows
    with open(out / runs[1] / "manifest.json", "rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        ended = run("pack", source, "--output", out, *FLAGS, "--versioned", "--keep", 1)
        assert (ended.code, "1 old version not removed" in ended.err) == (0, True), ended.err
    assert versions(out) == {runs[0], runs[1], runs[3]}
    (out / f".removed-{runs[2]}").mkdir()
    packed(run, source, out, "--keep", 0)
    assert versions(out) == {runs[0]}
    assert run("verify", out / "latest", "--source", source).code == 0
    told = run("verify", out)
    assert (told.code, "name the current one, latest" in told.out) == (4, True)
    damaged = next((out / runs[0]).glob("*.arrow"))
    damaged.write_bytes(b"")
    assert run("pack", source, "--output", out, *FLAGS, "--versioned").code == 2
    packed(run, source, out, "--overwrite")
    assert run("verify", out / "latest").code == 0


def test_appending_makes_the_next_version(run: Run, tmp_path: Path, source: Path) -> None:
    out, more = tmp_path / "deep" / "out", write_jsonl(ROWS[60:], tmp_path / "two.jsonl")
    first = packed(run, source, out, "--append")
    second = packed(run, tmp_path / "*.jsonl", out, "--append")
    assert versions(out) == {first, second}
    assert packed(run, tmp_path / "*.jsonl", out, "--append") == second
    assert run("verify", out / "latest", "--source", source, "--source", more).code == 0
    plain = tmp_path / "plain"
    assert run("pack", source, "--output", plain, *FLAGS).code == 0
    assert run("pack", tmp_path / "*.jsonl", "--output", plain, *FLAGS, "--append").code == 0
    for name in ("manifest.json", "state.json"):
        assert (plain / name).read_bytes() == (out / "latest" / name).read_bytes()
    planned = run(
        "pack", tmp_path / "*.jsonl", "--output", out, *FLAGS, "--versioned", "--append", "--dry-run", "--json"
    )
    assert planned.json["status"] == "up_to_date"


def test_what_is_no_place_for_versions(run: Run, tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    assert run("pack", source, "--output", out, *FLAGS).code == 0
    before = json.loads((out / "manifest.json").read_text())
    ended = run("pack", source, "--output", out, *FLAGS, "--versioned")
    assert (ended.code, "is a dataset itself" in ended.err) == (2, True)
    assert json.loads((out / "manifest.json").read_text()) == before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    ended = run("pack", source, "--output", mine, *FLAGS, "--versioned")
    assert (ended.code, "notes.txt" in ended.err) == (2, True)
    ended = run("pack", source, "--output", out, *FLAGS, "--keep", "3")
    assert (ended.code, "--versioned" in ended.err) == (2, True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
