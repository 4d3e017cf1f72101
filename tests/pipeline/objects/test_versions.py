"""Versions on an object store: appended to by the store, verified, trained, and removed."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline import DataError
from tests.conftest import Run
from tests.pipeline.objects.datasets import FLAGS, contents, files
from tests.pipeline.objects.server import Proxy
from tests.pipeline.samples import random_rows, write_jsonl

pytestmark = pytest.mark.needs("moto", "s3fs")


def test_versions_grow_and_go(
    run: Run, tmp_path: Path, source: Path, proxy: Proxy, store: fsspec.AbstractFileSystem, bucket: str
) -> None:
    def packed(*flags: object) -> str:
        ended = run("pack", *inputs, "--output", f"s3://{out}", *FLAGS, "--versioned", "--json", *flags)
        assert ended.code == 0, ended.err
        told: str = ended.json["run_id"]
        assert ended.json["output"] == f"s3://{out}/{told}"
        assert store.cat_file(f"{out}/latest").decode() == told
        return told

    inputs, out = [source], f"{bucket}/out"
    first = packed("--append")
    inputs.append(write_jsonl(random_rows(30, seed=1), tmp_path / "two.jsonl"))
    proxy.seen.clear()
    second = packed("--append")
    fetched = [request for request in proxy.seen if request.startswith("GET") and ".arrow" in request]
    assert len(fetched) == 1, "old shards are copied by the store; the columns of one are looked at"
    local = tmp_path / "local"
    for names in ([source], inputs):
        assert run("pack", *names, "--output", local, *FLAGS, "--append").code == 0
    assert contents(store, f"{out}/{second}") == files(local)

    assert packed("--append") == second, "nothing is new"
    third = packed("--seed", 1)
    inputs.pop()
    assert packed() == first, "it is there, so latest moves alone"
    store.pipe_file(f"{out}/{'0' * 32}/data-00000000-w0000-s0000.arrow", b"of a run that never came back")
    age = {name: store.info(f"{out}/{name}/state.json")["LastModified"] for name in (first, second, third)}
    newest = packed("--seed", 2, "--keep", 1)
    (kept,) = {name.removeprefix(f"{out}/").partition("/")[0] for name in store.find(out)} - {"latest", newest}
    assert age[kept] == max(age.values())
    assert run("verify", f"s3://{out}/{newest}").code == 0
    plain = run("pack", source, "--output", f"s3://{out}", *FLAGS)
    assert (plain.code, "holds versions" in plain.err) == (2, True), plain.err


def test_verify_finds_what_is_wrong(
    run: Run, tmp_path: Path, source: Path, store: fsspec.AbstractFileSystem, bucket: str
) -> None:
    out = f"s3://{bucket}/out"
    assert run("pack", source, "--output", out, *FLAGS, "--versioned").code == 0
    ended = run("verify", f"{out}/latest", "--source", source, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["directory"], ended.json["status"]) == (f"{out}/latest", "verified")
    assert "fetching" in ended.err
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    versions = run("verify", out)
    assert (versions.code, "name the current one" in versions.err) == (2, True), versions.err
    shard = next(name for name in store.find(f"{bucket}/out") if name.endswith(".arrow"))
    content = bytearray(store.cat_file(shard))
    content[len(content) // 2] ^= 1
    store.pipe_file(shard, bytes(content))
    store.pipe_file(f"{Path(shard).parent}/stranger.txt", b"")
    ended = run("verify", f"{out}/latest")
    assert ended.code == 4
    assert Path(shard).name in ended.out and "stranger.txt" in ended.out
    assert run("verify", f"s3://{bucket}/nothing").code == 4
    store.rm(f"{Path(shard).parent}/stranger.txt")
    ended = run("pack", source, "--output", out, *FLAGS, "--versioned", "--overwrite")
    assert (ended.code, ended.err.count("up to date")) == (0, 0), ended.err
    assert run("verify", f"{out}/latest").code == 0, "what was damaged is mended"


def test_tokens_by_their_current_version(
    run: Run, tmp_path: Path, tokenizer_dir: Path, store: fsspec.AbstractFileSystem, bucket: str
) -> None:
    source = write_jsonl(
        [{"text": f"a text of its own, number {number}"} for number in range(40)], tmp_path / "t.jsonl"
    )
    flags = ["--tokenizer", tokenizer_dir]
    for out, more in ((tmp_path / "tokens", []), (f"s3://{bucket}/tokens", ["--versioned"])):
        assert run("tokenize", source, "--output", out, *flags, *more).code == 0
    version = store.cat_file(f"{bucket}/tokens/latest").decode()
    assert contents(store, f"{bucket}/tokens/{version}") == files(tmp_path / "tokens")
    packed = run("pack", f"s3://{bucket}/tokens/latest", "--output", tmp_path / "packed", "--max-length", 99, "--json")
    assert packed.code == 0, packed.err
    assert packed.json["counts"]["samples_in"] == 40


@pytest.mark.needs("torch")
def test_training_reads_a_copy_that_stays(
    run: Run,
    tmp_path: Path,
    source: Path,
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
) -> None:
    from training.shards import open_shards

    for out, more in ((tmp_path / "packed", []), (f"s3://{bucket}/packed", ["--versioned"])):
        assert run("pack", source, "--output", out, *FLAGS, *more).code == 0
    local = open_shards(str(tmp_path / "packed"))
    there = open_shards(f"s3://{bucket}/packed/latest")
    assert there.packs.table(range(len(there.packs))).equals(local.packs.table(range(len(local.packs))))
    proxy.seen.clear()
    assert open_shards(f"s3://{bucket}/packed/latest").path == there.path
    assert not any(".arrow" in request and request.startswith("GET") for request in proxy.seen)
    with pytest.raises(DataError, match="there is nothing"):
        open_shards(f"s3://{bucket}/nothing")
