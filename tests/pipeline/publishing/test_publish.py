"""Complete under its name or not at all: locks, staging, replacement, resuming, and the same bytes every time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from pipeline.base.engine import Monitor
from pipeline.base.lock import file_lock
from pipeline.packing.shards import ShardFacts, ShardTask, WriteStage, write_shard
from tests.conftest import Run, left_behind
from tests.pipeline.samples import random_rows, save

ROWS = random_rows(400)
FLAGS = ("--max-length", 60, "--window-samples", 90, "--shard-size", 9000)
ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(ROWS, tmp_path / "in")


def test_same_bytes_for_any_number_of_workers(run: Run, tmp_path: Path, source: Path) -> None:
    for workers in (1, 2, 5):
        assert run("pack", source, "--output", tmp_path / f"{workers}", *FLAGS, "--num-workers", workers).code == 0
    assert len(list((tmp_path / "1").glob("*.arrow"))) > 10
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")


def test_same_plan_whatever_the_record_batches_of_the_input(run: Run, tmp_path: Path, source: Path) -> None:
    datasets.load_from_disk(str(source)).save_to_disk(str(tmp_path / "sharded"), num_shards=7)
    packed = []
    for name in (source.name, "sharded"):
        run("pack", tmp_path / name, "--output", tmp_path / "out", *FLAGS, "--overwrite")
        packed.append(datasets.load_from_disk(str(tmp_path / "out"))[:])
    assert packed[0] == packed[1]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_shards_hold_the_same(run: Run, tmp_path: Path, source: Path, compression: str) -> None:
    run("pack", source, "--output", tmp_path / "plain", "--max-length", 60)
    run("pack", source, "--output", tmp_path / "small", "--max-length", 60, "--compression", compression)
    plain, small = (datasets.load_from_disk(str(tmp_path / name)) for name in ("plain", "small"))
    assert plain[:] == small[:]
    sizes = [sum(p.stat().st_size for p in (tmp_path / n).glob("*.arrow")) for n in ("plain", "small")]
    assert sizes[1] < sizes[0]
    assert run("verify", tmp_path / "small", "--source", source).code == 0


def test_shard_size_is_kept_before_compression(run: Run, tmp_path: Path, source: Path) -> None:
    run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--shard-size", "9kB")
    values = []
    for path in (tmp_path / "out").glob("*.arrow"):
        with pa.ipc.open_stream(str(path)) as stream:
            values.append(sum(a.nbytes for batch in stream for a in batch.columns))
    assert len(values) > 3
    assert max(values) <= 9000
    assert sorted(values)[1] > 7000


def test_up_to_date_run_does_nothing(run: Run, tmp_path: Path, source: Path) -> None:
    run("pack", source, "--output", tmp_path / "out", *FLAGS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    ended = run("pack", source, "--output", tmp_path / "out", *FLAGS, "--json", "--num-workers", 1)
    assert (ended.code, ended.json["status"]) == (0, "up_to_date")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_run_is_refused_with_what_differs(run: Run, tmp_path: Path, source: Path) -> None:
    first = run("pack", source, "--output", tmp_path / "out", *FLAGS, "--json").json["run_id"]
    before = contents(tmp_path / "out")
    ended = run("pack", source, "--output", tmp_path / "out", *FLAGS, "--seed", 1)
    assert ended.code == 2
    assert first in ended.err
    assert "seed: 0 there, 1 now" in ended.err
    assert "--overwrite" in ended.err
    assert contents(tmp_path / "out") == before

    other = save(ROWS[:10], tmp_path / "other")
    ended = run("pack", other, "--output", tmp_path / "out", *FLAGS)
    assert ended.code == 2
    assert "content of the inputs: in/data-00000-of-00001.arrow (" in ended.err


def test_overwrite_replaces_everything(run: Run, tmp_path: Path, source: Path) -> None:
    run("pack", source, "--output", tmp_path / "out", *FLAGS)
    assert run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--seed", 1, "--overwrite").code == 0
    run("pack", source, "--output", tmp_path / "fresh", "--max-length", 60, "--seed", 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert [name for name in left_behind(tmp_path) if name.startswith(".")] == []


def test_overwrite_where_directories_cannot_be_exchanged(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.base.storage.ctypes.CDLL", lambda *_, **__: object())
    for seed in (0, 1):
        assert run("pack", source, "--output", tmp_path / "out", *FLAGS, "--seed", seed, "--overwrite").code == 0
    assert run("verify", tmp_path / "out", "--source", source).code == 0
    assert [name for name in left_behind(tmp_path) if name.startswith(".")] == []


def test_overwrite_mends_damage_and_spares_foreign_files(run: Run, tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    run("pack", source, "--output", out, *FLAGS)
    whole = contents(out)
    shard = next(out.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert run("pack", source, "--output", out, *FLAGS).code == 0, "by names and sizes it is up to date"
    assert run("pack", source, "--output", out, *FLAGS, "--overwrite").code == 0
    assert contents(out) == whole
    (out / "notes.txt").write_text("precious")
    ended = run("pack", source, "--output", out, *FLAGS, "--seed", 1, "--overwrite")
    assert ended.code == 2
    assert "notes.txt" in ended.err
    assert (out / "notes.txt").read_text() == "precious"


def test_an_output_that_is_a_link_is_followed(run: Run, tmp_path: Path, source: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for seed in (0, 1):
        assert run("pack", source, "--output", tmp_path / "link", *FLAGS, "--seed", seed, "--overwrite").code == 0
    assert (tmp_path / "link").is_symlink()
    assert run("verify", tmp_path / "target", "--source", source).code == 0


def test_the_order_of_splits_is_part_of_the_identity(run: Run, tmp_path: Path) -> None:
    parts = {"a": datasets.Dataset.from_list(ROWS[:9]), "b": datasets.Dataset.from_list(ROWS[9:20])}
    ids = []
    for order in ("ab", "ba"):
        datasets.DatasetDict({split: parts[split] for split in order}).save_to_disk(str(tmp_path / order))
        ids.append(
            run("pack", tmp_path / order, "--output", tmp_path / f"out-{order}", *FLAGS, "--json").json["run_id"]
        )
    assert ids[0] != ids[1]


def test_a_reader_during_replacement_sees_one_version(run: Run, tmp_path: Path, source: Path) -> None:
    run("pack", source, "--output", tmp_path / "out", *FLAGS)
    old = datasets.load_from_disk(str(tmp_path / "out"))
    rows = old[:]
    run("pack", source, "--output", tmp_path / "out", *FLAGS, "--seed", 1, "--overwrite")
    assert old[:] == rows, "what was opened before stays whole"
    assert old._fingerprint != datasets.load_from_disk(str(tmp_path / "out"))._fingerprint


@pytest.mark.parametrize("what", ["file", "folder with something else", "damaged"])
def test_what_is_in_the_way_is_kept(run: Run, tmp_path: Path, source: Path, what: str) -> None:
    out = tmp_path / "out"
    if what == "file":
        out.write_text("precious")
    elif what == "folder with something else":
        out.mkdir()
        (out / "precious.txt").write_text("precious")
    else:
        run("pack", source, "--output", out, *FLAGS)
        next(out.glob("*.arrow")).unlink()
    before = left_behind(tmp_path)
    ended = run("pack", source, "--output", out, *FLAGS)
    assert ended.code == 2
    assert str(out) in ended.err
    assert left_behind(tmp_path) == before
    ended = run("pack", source, "--output", out, *FLAGS, "--overwrite")
    assert ended.code == (0 if what == "damaged" else 2)
    if what != "damaged":
        assert left_behind(tmp_path) == before


def test_an_empty_output_directory_is_used(run: Run, tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("pack", source, "--output", tmp_path / "out", *FLAGS).code == 0
    assert run("verify", tmp_path / "out").code == 0


def test_output_and_input_must_not_hold_each_other(run: Run, tmp_path: Path, source: Path) -> None:
    for out in (source, source / "out", tmp_path):
        before = left_behind(tmp_path)
        ended = run("pack", source, "--output", out, *FLAGS, "--overwrite")
        assert ended.code == 2, out
        assert "choose another output" in ended.err
        assert left_behind(tmp_path) == before


def test_a_second_run_is_told_to_wait(run: Run, tmp_path: Path, source: Path) -> None:
    with file_lock(tmp_path / ".out.lock", "busy"):
        ended = run("pack", source, "--output", tmp_path / "out", *FLAGS)
        assert ended.code == 75
        assert "another run" in ended.err
    assert run("pack", source, "--output", tmp_path / "out", *FLAGS).code == 0
    assert not (tmp_path / ".out.lock").exists()


def test_a_lock_file_left_by_a_killed_run_does_not_matter(run: Run, tmp_path: Path, source: Path) -> None:
    (tmp_path / ".out.lock").touch()
    assert run("pack", source, "--output", tmp_path / "out", *FLAGS).code == 0


def test_a_lock_on_a_removed_file_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".out.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    path.unlink()
    with file_lock(path, "busy"):
        assert path.exists()
    os.close(descriptor)


def test_abandoned_staging_is_removed(run: Run, tmp_path: Path, source: Path) -> None:
    ours, other = tmp_path / ".out.staging-0123abcd", tmp_path / ".output.staging-0123abcd"
    for folder in (ours, other):
        folder.mkdir()
        (folder / "x").touch()
    assert run("pack", source, "--output", tmp_path / "out", *FLAGS).code == 0
    assert not ours.exists()
    assert other.exists()


def test_input_that_changes_meanwhile_is_an_error(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch_and_write(task: ShardTask, stage: WriteStage, monitor: Monitor) -> ShardFacts:
        os.utime(next(source.glob("*.arrow")))
        return write_shard(task, stage, monitor)

    monkeypatch.setattr("pipeline.packing.shards.write_shard", touch_and_write)
    ended = run("pack", source, "--output", tmp_path / "out", *FLAGS)
    assert ended.code == 3
    assert "changed while it was being packed" in ended.err
    assert [name for name in left_behind(tmp_path) if not name.startswith("in")] == []


def test_a_changed_input_is_another_run(run: Run, tmp_path: Path, source: Path) -> None:
    run("pack", source, "--output", tmp_path / "out", *FLAGS)
    shard = next(source.glob("*.arrow"))
    stamp = shard.stat().st_mtime_ns
    content = bytearray(shard.read_bytes())
    at = content.rfind(np.array(ROWS[-1]["input_ids"], np.int32).tobytes())
    content[at] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(stamp, stamp))
    ended = run("pack", source, "--output", tmp_path / "out", *FLAGS)
    assert ended.code == 2
    assert "inputs" in ended.err
