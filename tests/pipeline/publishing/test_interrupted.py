"""A real process, stopped in the middle, then run again: finished work is kept, and the bytes are the same."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import PackOptions, RunOptions, pack
from pipeline.base.digests import hash_file

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.soak
OPTIONS = PackOptions(max_length=512, shard_size=2_000_000)


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough samples that a run can be stopped in the middle."""
    draws = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(draws.integers(50, 500, 50_000))]).astype(np.int32)
    ids = pa.ListArray.from_arrays(pa.array(offsets), pa.array(draws.integers(0, 1000, offsets[-1], np.int32)))
    path = tmp_path_factory.mktemp("big") / "big.arrow"
    with pa.ipc.new_stream(str(path), pa.schema({"input_ids": ids.type})) as stream:
        stream.write_table(pa.table({"input_ids": ids}), max_chunksize=1000)
    return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, big: Path) -> dict[str, str]:
    """The hashes of what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("whole")
    pack(big, folder / "out", OPTIONS, run=RunOptions(cache_dir=folder / "cache"))
    hashed = hashes(folder / "out")
    shutil.rmtree(folder)
    return hashed


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def command(source: Path, output: Path) -> list[str]:
    flags = ["--max-length", "512", "--shard-size", "2MB", "--num-workers", "1", "--json"]
    cache = ["--cache-dir", str(output.parent / "cache")]
    return [sys.executable, "-m", "pipeline", "pack", str(source), "--output", str(output), *flags, *cache]


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_finished_work_is_kept_and_resumed(
    tmp_path: Path, big: Path, whole: dict[str, str], sent: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(big, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".out.staging-*/dataset/*.arrow"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert not out.exists()
    (staging,) = tmp_path.glob(".out.staging-*")
    if sent == signal.SIGKILL:
        assert stdout == ""
    else:
        assert str(staging) in stderr
        assert "resumes" in stderr
        assert "Traceback" not in stderr
        assert not (tmp_path / ".out.lock").exists()
        assert json.loads(stdout)["exit_code"] == code
        assert str(staging) in json.loads(stdout)["message"]
    kept = {path: path.stat().st_ino for path in staging.glob("dataset/*.arrow")}
    done = {json.loads(path.read_text())["file"]["xxh3_128"] for path in staging.glob("work/dataset-*.done")}
    assert len(done) >= 2

    again = subprocess.run(command(big, out), cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(again.stdout)["status"] == "packed"
    assert hashes(out) == whole
    same = [path.name for path, inode in kept.items() if (out / path.name).stat().st_ino == inode]
    assert len(same) >= len(done) - 1, "finished shards are not written again"
    assert list(tmp_path.glob(".out*")) == []


def test_a_damaged_finished_shard_is_written_again(tmp_path: Path, big: Path, whole: dict[str, str]) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(big, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".out.staging-*/**/dataset-*.done")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    record = sorted(tmp_path.glob(".out.staging-*/**/dataset-*.done"))[0]
    shard = record.parents[1] / "dataset" / record.name.removeprefix("dataset-").removesuffix(".done")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    subprocess.run(command(big, out), cwd=ROOT, check=True, capture_output=True)
    assert hashes(out) == whole


def test_a_full_disk_keeps_finished_work(tmp_path: Path, big: Path) -> None:
    out = tmp_path / "out"
    limit = f"ulimit -f 1000; exec {' '.join(command(big, out))}"  # files of at most 1,000 KiB
    ended = subprocess.run(["bash", "-c", limit], check=False, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 74, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "kept in" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert list(tmp_path.glob("*.part")) == []
    assert not out.exists()
    subprocess.run(command(big, out), cwd=ROOT, check=True, capture_output=True)
