"""verify finds what is wrong: damage by checksums, mistakes by invariants, losses by comparison with the source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run
from tests.pipeline.samples import random_rows, save

ROWS = random_rows(200, padded=True)
FLAGS = ("--max-length", 40, "--overlong", "split", "--window-samples", 60, "--shard-size", 9000)


@pytest.fixture
def packed(run: Run, tmp_path: Path) -> Path:
    source = save(ROWS, tmp_path / "in")
    assert run("pack", source, "--output", tmp_path / "out", *FLAGS).code == 0
    return tmp_path / "out"


def test_a_sound_dataset_passes(run: Run, packed: Path) -> None:
    ended = run("verify", packed, "--source", packed.parent / "in", "--json")
    assert ended.code == 0
    assert ended.json["ok"]
    assert ended.json["problems"] == []
    assert ended.json["segments"] > 100


@pytest.mark.parametrize("form", ["labels", "loss_mask", "none"])
@pytest.mark.parametrize("overlong", ["drop", "truncate", "split"])
@pytest.mark.parametrize("strategy", ["best-fit-decreasing", "wrapped", "minibatch"])
def test_every_kind_passes_against_its_source(
    run: Run, tmp_path: Path, form: str, overlong: str, strategy: str
) -> None:
    rows = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in ROWS]
    for row, original in zip(rows, ROWS, strict=True):
        if form == "labels":
            row["labels"] = original["labels"]
        elif form == "loss_mask":
            row["loss_mask"] = [int(label != -100) for label in original["labels"]]
    source = save(rows, tmp_path / "in")
    flags = ["--max-length", 15, "--strategy", strategy, "--window-samples", 70]
    flags += [] if strategy == "wrapped" else ["--overlong", overlong]
    assert run("pack", source, "--output", tmp_path / "out", *flags).code == 0
    ended = run("verify", tmp_path / "out", "--source", source)
    assert ended.code == 0, ended.out


def test_any_flipped_bit_shows(run: Run, packed: Path) -> None:
    draws = np.random.default_rng(0)
    for path in sorted(packed.iterdir()):
        content = path.read_bytes()
        for at in draws.integers(0, len(content), 6):
            damaged = bytearray(content)
            damaged[at] ^= 1 << int(draws.integers(0, 8))
            path.write_bytes(damaged)
            ended = run("verify", packed)
            assert ended.code == 4, f"{path.name} byte {at}"
            assert path.name in ended.out
        path.write_bytes(content)
    assert run("verify", packed).code == 0


def test_truncated_missing_or_swapped_shards_show(run: Run, packed: Path) -> None:
    first, second = sorted(packed.glob("*.arrow"))[:2]
    whole = [first.read_bytes(), second.read_bytes()]
    first.write_bytes(whole[0][:-100])
    assert first.name in run("verify", packed).out
    first.write_bytes(whole[1])
    second.write_bytes(whole[0])
    ended = run("verify", packed)
    assert ended.code == 4
    assert first.name in ended.out
    first.unlink()
    ended = run("verify", packed)
    assert ended.code == 4
    assert f"{first.name}: missing" in ended.out


def test_missing_manifest_or_directory(run: Run, packed: Path) -> None:
    (packed / "manifest.json").unlink()
    ended = run("verify", packed)
    assert ended.code == 4
    assert "manifest.json" in ended.out
    assert run("verify", packed.parent / "nowhere").code == 4


def test_a_stray_file_is_told_but_no_failure(run: Run, packed: Path) -> None:
    (packed / "cache-123.arrow").write_bytes(b"left by map")
    ended = run("verify", packed)
    assert ended.code == 0
    assert "cache-123.arrow" in ended.err


def forge(folder: Path, change: Callable[[list[dict[str, Any]]], object], shard: int = 0) -> str:
    """Change the rows of a shard and make every checksum and figure fit again, as a packer with a bug would."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    path = sorted(folder.glob("*.arrow"))[shard]
    with pa.ipc.open_stream(str(path)) as stream:
        schema, rows = stream.schema, stream.read_all().to_pylist()
    before = _figures(rows)
    change(rows)
    with pa.ipc.new_stream(str(path), schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    after = _figures(rows)
    content = path.read_bytes()
    manifest["files"][path.name] = {"bytes": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content), **after}
    manifest["packs"] += after["packs"] - before["packs"]
    for what in ("tokens", "targets"):
        manifest["counts"][f"{what}_packed"] += after[what] - before[what]
        manifest["counts"]["dropped"]["cut"][what] -= after[what] - before[what]
    reseal(folder, manifest)
    return path.name


def _figures(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "packs": len(rows),
        "segments": sum(len(row["seq_lengths"]) for row in rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "targets": sum(sum(row["target_counts"]) for row in rows),
    }


def set_item(column: str, position: int, value: int) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[2][column].__setitem__(position, value)


def drop_last_token(rows: list[dict[str, Any]]) -> None:
    for column in ("input_ids", "labels", "position_ids"):
        rows[2][column].pop()


def merge_two_segments(rows: list[dict[str, Any]]) -> None:
    row = next(row for row in rows if len(row["seq_lengths"]) > 1)
    del row["boundaries"][1]
    row["seq_lengths"][:2] = [sum(row["seq_lengths"][:2])]
    row["target_counts"][:2] = [sum(row["target_counts"][:2])]
    del row["sample_ids"][1], row["sample_offsets"][1]


def overfill(rows: list[dict[str, Any]]) -> None:
    for column in (
        "input_ids",
        "labels",
        "position_ids",
        "seq_lengths",
        "sample_ids",
        "sample_offsets",
        "target_counts",
    ):
        rows[2][column] += rows[3][column]
    rows[2]["boundaries"] += [rows[2]["boundaries"][-1] + b for b in rows[3]["boundaries"][1:]]
    del rows[3]


INVARIANTS: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "boundaries do not begin at 0": (set_item("boundaries", 0, 1), "boundaries do not begin at 0"),
    "boundaries do not end at T": (drop_last_token, "boundaries do not end at the pack's length"),
    "seq_lengths": (set_item("seq_lengths", 0, 99), "seq_lengths"),
    "positions": (set_item("position_ids", -1, 0), "position_ids"),
    "two segments made one": (merge_two_segments, "position_ids"),
    "first label": (set_item("labels", 0, 5), "first label"),
    "negative token": (set_item("input_ids", 1, -1), "token id is negative"),
    "bad label": (set_item("labels", 1, -7), "neither -100"),
    "target_counts": (set_item("target_counts", 0, 40), "target_counts"),
    "over capacity": (overfill, "over capacity"),
    "sample of another window": (set_item("sample_ids", 0, 199), "not in the shard's window"),
    "sample twice": (lambda rows: rows.append(rows[2]), "twice"),
    "pack lost": (lambda rows: rows.pop(2), "window 0 has"),
    "start negative": (set_item("sample_offsets", 0, -(2**31)), "start is negative"),
    "start moved": (set_item("sample_offsets", 0, 39), "misses its tokens"),
}


@pytest.mark.parametrize("what", INVARIANTS)
def test_broken_invariants_show_without_the_source(run: Run, packed: Path, what: str) -> None:
    change, told = INVARIANTS[what]
    name = forge(packed, change)
    ended = run("verify", packed)
    assert ended.code == 4, ended.out
    assert told in ended.out
    assert name in ended.out or what == "pack lost"
    assert "pack" in ended.out
    assert run("verify", packed, "--source", packed.parent / "in").code == 4


def change_last_token(rows: list[dict[str, Any]]) -> None:
    rows[2]["input_ids"][-1] += 1


def change_last_label(rows: list[dict[str, Any]]) -> None:
    label = next(i for i, label in enumerate(rows[2]["labels"]) if label != -100)
    rows[2]["labels"][label] += 1


LOSSES: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "token": (change_last_token, "the token is not that of the source"),
    "label": (change_last_label, "the label is not that of the source"),
    "sample exchanged": (lambda rows: rows[2]["sample_ids"].__setitem__(0, rows[3]["sample_ids"][0]), "sample"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_losses_show_against_the_source(run: Run, packed: Path, what: str) -> None:
    change, told = LOSSES[what]
    forge(packed, change)
    ended = run("verify", packed, "--source", packed.parent / "in")
    assert ended.code == 4, ended.out
    assert told in ended.out


def test_another_source_shows(run: Run, packed: Path, tmp_path: Path) -> None:
    fewer = save(ROWS[:-1], tmp_path / "fewer")
    ended = run("verify", packed, "--source", fewer)
    assert ended.code == 4
    assert "199 rows" in ended.out
    rows = [dict(row) for row in ROWS]
    rows[0] = {**rows[0], "labels": [-100] * len(rows[0]["labels"])}
    assert run("verify", packed, "--source", save(rows, tmp_path / "other")).code == 4


def change(manifest: dict[str, Any], path: str, value: Any) -> None:
    *folders, last = path.split("/")
    at: Any = manifest
    for key in folders:
        at = at[int(key) if isinstance(at, list) else key]
    at[last] = value


def reseal(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["self"] = hash_of_rest(manifest)
    (folder / "manifest.json").write_bytes(canonical_json(manifest))


FALSE_FIGURES = {
    "fill": 0.5,
    "capacity": 41,
    "lower_bound": 3,
    "packs": 1,
    "sum_length_squared": 5,
    "segments_per_pack/max": 9999,
    "counts/samples_packed": 5,
    "counts/targets_in": 5,
    "windows/0/packs": 1,
    "windows/0/rows": 1,
    "run_id": "0" * 32,
    "config/seed": 1,
    "inputs/0/xxh3_128": "0" * 32,
    "format_version": 3,
}


@pytest.mark.parametrize("path", FALSE_FIGURES)
def test_false_figures_in_the_manifest_show(run: Run, packed: Path, path: str) -> None:
    manifest = json.loads((packed / "manifest.json").read_bytes())
    change(manifest, path, FALSE_FIGURES[path])
    reseal(packed, manifest)
    ended = run("verify", packed)
    assert ended.code == 4, ended.out
    assert "manifest.json" in ended.out or "not in the shard's window" in ended.out


def test_a_manifest_of_another_shape_is_told_and_is_in_the_way(run: Run, packed: Path) -> None:
    whole = json.loads((packed / "manifest.json").read_bytes())
    for key in whole:
        for value in (5, None, [], {}, "x", [5], {"x": 5}):
            if key == "self" or (type(value) is type(whole[key]) and key != "files"):
                continue
            reseal(packed, {**whole, key: value})
            assert run("verify", packed).code == 4, (key, value)
        reseal(packed, {other: value for other, value in whole.items() if other != key})
        if key == "self":
            continue
        ended = run("verify", packed)
        assert ended.code == 4, key
        assert "manifest.json" in ended.out
        ended = run("pack", packed.parent / "in", "--output", packed, *FLAGS)
        assert ended.code == 2, (key, ended.err)


def test_root_totals_of_several_splits_show(run: Run, tmp_path: Path) -> None:
    parts = {"train": datasets.Dataset.from_list(ROWS[:50]), "test": datasets.Dataset.from_list(ROWS[50:80])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "in"))
    out = tmp_path / "out"
    assert run("pack", tmp_path / "in", "--output", out, *FLAGS).code == 0
    assert run("verify", out, "--source", tmp_path / "in").code == 0
    manifest = json.loads((out / "manifest.json").read_bytes())
    for key in ("tokens_in", "tokens_packed"):
        manifest["counts"][key] += 5
    reseal(out, manifest)
    assert run("verify", out).code == 4


def test_an_invented_loss_shows_against_the_source(run: Run, packed: Path) -> None:
    manifest = json.loads((packed / "manifest.json").read_bytes())
    manifest["counts"]["dropped"]["first_token"]["targets"] += 1
    manifest["counts"]["targets_in"] += 1
    reseal(packed, manifest)
    assert run("verify", packed).code == 0, "the counts balance, so only the source can tell"
    ended = run("verify", packed, "--source", packed.parent / "in")
    assert ended.code == 4
    assert "first_token" in ended.out


def test_a_source_of_another_kind_shows(run: Run, packed: Path, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "dict"))
    ended = run("verify", packed, "--source", tmp_path / "dict", "--json")
    assert ended.code == 4
    assert not ended.json["ok"]


def test_a_source_of_raw_rows_is_refused_by_a_way_out_that_there_is(run: Run, packed: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"text": "a"}')
    ended = run("verify", packed, "--source", raw)
    assert (ended.code, "packed from tokens" in ended.err) == (3, True), ended.err
    assert "--column" not in ended.err and "--tokenizer" not in ended.err


def test_a_cache_has_no_effect_without_a_source(run: Run, packed: Path) -> None:
    ended = run("verify", packed, "--cache-dir", packed.parent / "cache")
    assert (ended.code, "no effect without --source" in ended.err) == (2, True), ended.err


def test_a_copy_elsewhere_is_as_good(run: Run, packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "copy")
    shutil.rmtree(packed)
    assert run("verify", tmp_path / "copy", "--source", tmp_path / "in").code == 0
