"""Pipes, devices, links to nothing and names that cannot be told: each is named, and nothing waits or is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run
from tests.pipeline.hostile.processes import forked
from tests.pipeline.samples import random_rows, write_jsonl

FLAGS = ["--max-length", "60"]
NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "a pipe, a device or a folder"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "a pipe, a device or a folder"),
    "a link to nothing": (lambda path: path.symlink_to("nothing.jsonl"), "a link to what is not there"),
    "a link to itself": (lambda path: path.symlink_to(path), "leads back to itself"),
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_jsonl(random_rows(60), tmp_path / "in" / "a.jsonl")
    return tmp_path / "in" / "*.jsonl"


@pytest.mark.parametrize("what", NO_FILES)
def test_an_input_that_is_no_file(tmp_path: Path, source: Path, what: str) -> None:
    make, why = NO_FILES[what]
    make(source.with_name("b.jsonl"))
    ended = forked(["pack", source, "--output", tmp_path / "out", *FLAGS], tmp_path)
    assert (ended.code, ended.said.count("ERROR"), why in ended.said) == (3, 1, True), ended.said
    assert f"{source.with_name('b.jsonl')}:" in ended.said


def test_names_that_are_not_utf8(run: Run, tmp_path: Path, source: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    ended = run("pack", source, "--output", odd, *FLAGS)
    assert (ended.code, "caf\\xe9: its name" in ended.err) == (2, True), ended.err
    shutil.copytree(source.parent, odd)
    ended = run("pack", odd / "a.jsonl", "--output", tmp_path / "out", *FLAGS)
    assert (ended.code, "caf\\xe9/a.jsonl: its name" in ended.err) == (3, True), ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "README.md", "data-*"])
def test_a_pipe_in_a_dataset(run: Run, tmp_path: Path, source: Path, name: str) -> None:
    out = tmp_path / "out"
    assert run("pack", source, "--output", out, *FLAGS).code == 0
    file = next(out.glob(name))
    file.unlink()
    os.mkfifo(file)
    assert forked(["verify", out], tmp_path).code == 4
    unpacked = forked(["pack", out, "--unpack", "--output", tmp_path / "again", *FLAGS], tmp_path)
    assert unpacked.code == (3 if name in ("state.json", "data-*") else 0), unpacked.said
    ended = forked(["pack", source, "--output", out, *FLAGS], tmp_path)
    assert ended.code in (2, 74) and file.name in ended.said, ended.said


def test_versions_are_named_by_their_run(run: Run, tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    assert run("pack", source, "--output", out, "--versioned", *FLAGS).code == 0
    write_jsonl(random_rows(9), source.with_name("b.jsonl"))
    version = Path(os.path.realpath(out / "latest"))
    for place, how in ((out / "latest", "--overwrite"), (version, "--append")):
        ended = run("pack", source, "--output", place, how, *FLAGS)
        assert (ended.code, f"name --output {out} --versioned" in ended.err) == (2, True), ended.err
    ended = run("pack", out, "--output", tmp_path / "again", *FLAGS)
    assert (ended.code, f"'{out}/latest'" in ended.err) == (3, True), ended.err
    (out / "latest").unlink()
    (out / "latest").write_text("mine")
    ended = run("pack", source, "--output", out, "--versioned", *FLAGS)
    assert (ended.code, "no link to a version" in ended.err) == (2, True), ended.err
    assert (out / "latest").read_text() == "mine" and [path.name for path in out.iterdir() if path.is_dir()] == [
        version.name
    ]


def test_a_log_on_a_full_disk(run: Run, tmp_path: Path, source: Path) -> None:
    ended = run("pack", source, "--output", tmp_path / "out", *FLAGS, "--log-file", "/dev/full")
    assert (ended.code, ended.err.count("No space left on device")) == (0, 1), ended.err
    assert "Traceback" not in ended.err and "Logging error" not in ended.err


def test_json_that_is_nested_without_end(run: Run, tmp_path: Path, flags: list[object], source: Path) -> None:
    deep = "[" * 100_000
    assert run("pack", source, "--output", tmp_path / "packed", *FLAGS).code == 0
    (tmp_path / "packed" / "state.json").write_text(deep)
    assert run("verify", tmp_path / "packed").code == 4
    ended = run("pack", tmp_path / "packed", "--output", tmp_path / "again", "--unpack", *FLAGS)
    assert (ended.code, "state.json: not valid JSON" in ended.err) == (3, True), ended.err
    (tmp_path / "packed" / "state.json").write_text('{"_data_files": [{"filename": "\\ud800"}]}')
    ended = run("pack", tmp_path / "packed", "--output", tmp_path / "again", "--unpack", *FLAGS)
    assert (ended.code, "state.json: not valid JSON" in ended.err) == (3, True), ended.err
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text()) | {"\ud800": 1}
    manifest["self"] = hash_of_rest(manifest)
    (tmp_path / "packed" / "manifest.json").write_bytes(canonical_json(manifest))
    assert run("verify", tmp_path / "packed").code == 4
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    (tmp_path / "tools.jsonl").write_text(json.dumps({"messages": turns, "tools": deep}) + "\n")
    pq.write_table(pa.table({"messages": pa.array([deep, "{x"], pa.json_())}), tmp_path / "typed.parquet")
    for name in ("tools.jsonl", "typed.parquet"):
        command = ["tokenize", tmp_path / name, "--output", tmp_path / "out", "--format", "messages", *flags]
        ended = run(*command)
        assert (ended.code, f"{name}, row 0" in ended.err) == (3, True), ended.err
