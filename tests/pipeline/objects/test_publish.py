"""Published on an object store: as on a disk, byte for byte, and in an order that hides what is half."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import fsspec
import pytest

from tests.conftest import Run
from tests.pipeline.objects.datasets import FLAGS, contents, files, puts
from tests.pipeline.objects.server import Proxy
from tests.pipeline.samples import random_rows, save

ROWS = random_rows(120)

pytestmark = pytest.mark.needs("moto", "s3fs")


@pytest.mark.parametrize("has_splits", [False, True])
def test_same_bytes_as_on_a_disk(
    run: Run,
    tmp_path: Path,
    source: Path,
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
    has_splits: bool,
) -> None:
    if has_splits:
        source = tmp_path / "dict"
        datasets.DatasetDict(
            {
                name: datasets.load_from_disk(str(save(rows, tmp_path / name)))
                for name, rows in {"train": ROWS[:90], "test": ROWS[90:]}.items()
            }
        ).save_to_disk(str(source))
    out = f"{bucket}/deep/out"
    assert run("pack", source, "--output", tmp_path / "out", *FLAGS).code == 0
    ended = run("pack", source, "--output", f"s3://{out}", *FLAGS, "--json")
    assert ended.code == 0, ended.err
    assert (ended.json["status"], ended.json["output"]) == ("packed", f"s3://{out}")
    assert contents(store, out) == files(tmp_path / "out")
    order = puts(proxy, out)
    shards = [name for name in order if name.endswith(".arrow")]
    assert len(shards) > 2
    assert order[: len(shards)] == order[: order.index("manifest.json")]
    assert order[-1] == ("dataset_dict.json" if has_splits else "state.json")
    assert not list((tmp_path / "cache").rglob("*.arrow")), "what was built is gone"

    proxy.seen.clear()
    again = run("pack", source, "--output", f"s3://{out}", *FLAGS, "--json", "--unchanged-exit-code", 9)
    assert (again.code, again.json["status"]) == (9, "up_to_date")
    assert puts(proxy, out) == []

    loaded = datasets.load_from_disk(f"s3://{out}")
    local = datasets.load_from_disk(str(tmp_path / "out"))
    for split in ["train", "test"] if has_splits else [None]:
        there, here = (each[split] if split else each for each in (loaded, local))
        assert there.to_list() == here.to_list()
        state = json.loads(store.cat(f"{out}/{split}/state.json" if split else f"{out}/state.json"))
        names = [f"s3://{out}/{f'{split}/' if split else ''}{each['filename']}" for each in state["_data_files"]]
        stream = datasets.load_dataset("arrow", data_files=names, streaming=True, split="train")
        assert [row["input_ids"] for row in stream] == here["input_ids"][:]


def test_what_is_in_the_way(
    run: Run, tmp_path: Path, source: Path, store: fsspec.AbstractFileSystem, bucket: str
) -> None:
    out = f"s3://{bucket}/out"
    assert run("pack", source, "--output", out, *FLAGS).code == 0
    before = contents(store, f"{bucket}/out")
    store.pipe_file(f"{bucket}/other/notes.txt", b"")
    save(ROWS, tmp_path / "saved")
    store.put(str(tmp_path / "saved"), f"{bucket}/saved", recursive=True)
    for flags, where, told in [
        (["--seed", "1"], out, "holds another run"),
        (["--seed", "1", "--overwrite"], out, "add --versioned"),
        (["--append"], out, "add --versioned"),
        (["--versioned"], out, "is a dataset itself"),
        ([], f"s3://{bucket}/other", "holds notes.txt and no manifest.json"),
        (["--versioned"], f"s3://{bucket}/other", "holds notes.txt and no version"),
        ([], f"s3://{bucket}/saved", "no manifest.json"),
        ([], f"s3://{bucket}", "name a folder in a bucket"),
        ([], f"s3://{bucket}/../out", "name a folder in a bucket"),
        ([], "gs://bucket/out", "only s3://"),
        ([], "s3://nowhere-at-all/out", "make the bucket first"),
    ]:
        ended = run("pack", source, "--output", where, *FLAGS, *flags)
        assert (ended.code, told in ended.err) == (2, True), ended.err
    inside = run("pack", f"{out}/*.arrow", "--output", out, *FLAGS, "--unpack")
    assert (inside.code, "holds the input" in inside.err) == (2, True), inside.err
    assert contents(store, f"{bucket}/out") == before
    assert store.find(f"{bucket}/other") == [f"{bucket}/other/notes.txt"]
