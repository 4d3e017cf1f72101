"""The packed format, held against an independent reading of its text."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import PackOptions, RunOptions, pack
from strategies import find
from tests.conftest import Run
from tests.pipeline.oracle import assert_packed, expect
from tests.pipeline.samples import save, table

WORKED_EXAMPLE = [
    {"input_ids": [11, 12, 13, 14, 15], "labels": [-100, -100, 13, 14, 15]},
    {"input_ids": [21, 22], "labels": [21, 22]},
    {"input_ids": [31, 32, 33], "labels": [-100, 32, 33]},
    {"input_ids": [41], "labels": [41]},
    {"input_ids": [51, 52, 53, 54, 55, 56], "labels": [-100, -100, -100, -100, 55, 56]},
]


def test_worked_example(run: Run, tmp_path: Path) -> None:
    source = save(WORKED_EXAMPLE, tmp_path / "in")
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 6, "--pack-order", "plan", "--json")
    assert ended.code == 0
    packs = datasets.load_from_disk(str(tmp_path / "out"))
    assert packs[:] == {
        "input_ids": [[51, 52, 53, 54, 55, 56], [11, 12, 13, 14, 15], [31, 32, 33, 21, 22]],
        "labels": [[-100, -100, -100, -100, 55, 56], [-100, -100, 13, 14, 15], [-100, 32, 33, -100, 22]],
        "position_ids": [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 1, 2, 0, 1]],
        "boundaries": [[0, 6], [0, 5], [0, 3, 5]],
        "seq_lengths": [[6], [5], [3, 2]],
        "sample_ids": [[4], [0], [2, 1]],
        "sample_offsets": [[0], [0], [0, 0]],
        "target_counts": [[2], [3], [2, 1]],
    }
    counts = ended.json["counts"]
    assert (counts["samples_in"], counts["samples_packed"]) == (5, 4)
    assert (counts["tokens_in"], counts["tokens_packed"]) == (17, 16)
    assert (counts["targets_in"], counts["targets_packed"]) == (10, 8)
    assert counts["dropped"]["first_token"] == {"samples": 0, "tokens": 0, "targets": 2, "samples_affected": 2}
    assert counts["dropped"]["no_targets"] == {"samples": 1, "tokens": 1, "targets": 0, "samples_affected": 1}
    assert (ended.json["packs"], ended.json["lower_bound"]) == (3, 3)
    assert ended.json["fill"] == 16 / 18
    assert "no_targets" in ended.err, "samples left out unasked must be told loudly"


def test_columns_types_and_files(run: Run, tmp_path: Path) -> None:
    source = save(WORKED_EXAMPLE, tmp_path / "in")
    run("pack", source, "--output", tmp_path / "out", "--max-length", 6)
    packs = datasets.load_from_disk(str(tmp_path / "out"))
    kinds = dict.fromkeys(
        ["input_ids", "labels", "position_ids", "boundaries", "seq_lengths", "sample_offsets", "target_counts"], "int32"
    ) | {"sample_ids": "int64"}
    assert packs.features == datasets.Features({name: datasets.List(datasets.Value(k)) for name, k in kinds.items()})
    assert "attention_mask" not in packs.features
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    shard = f"data-{manifest['run_id'][:8]}-w0000-s0000.arrow"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(manifest["files"]) == {shard, "state.json", "dataset_info.json", "README.md"}
    assert manifest["files"][shard].keys() == {"bytes", "xxh3_128", "packs", "segments", "tokens", "targets"}
    assert manifest["windows"] == [{"rows": 5, "tokens": 17, "packs": 3}]
    assert manifest["inputs"][0]["name"] == "in/data-00000-of-00001.arrow"
    assert manifest["inputs"][0]["rows"] == 5
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    with pa.ipc.open_stream(str(tmp_path / "out" / shard)) as stream:
        assert sorted(stream.schema.names) == sorted(kinds)
    state = json.loads((tmp_path / "out" / "state.json").read_bytes())
    assert state.keys() == {
        *("_data_files", "_fingerprint", "_format_columns", "_format_kwargs", "_format_type"),
        *("_output_all_columns", "_split"),
    }


def lists_of(length: int, values: st.SearchStrategy[int]) -> st.SearchStrategy[list[int]]:
    return st.lists(values, min_size=length, max_size=length)


@st.composite
def sample_sets(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows with labels, one kind of mask, or neither, and with or without an attention mask."""
    form = draw(st.sampled_from(["none", "labels", "completion_mask", "assistant_masks", "loss_mask"]))
    padded = draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 12))):
        length = draw(st.integers(0, 14))
        row: dict[str, Any] = {"input_ids": draw(lists_of(length, st.integers(0, 99)))}
        if form == "labels":
            row["labels"] = draw(lists_of(length, st.sampled_from([-100, -100, 0, 7])))
        elif form != "none":
            row[form] = draw(lists_of(length, st.integers(0, 1)))
        if padded:
            left = draw(st.integers(0, length))
            row["attention_mask"] = draw(
                st.one_of(
                    st.just([1] * length),
                    st.just([0] * left + [1] * (length - left)),
                    st.just([1] * left + [0] * (length - left)),
                    lists_of(length, st.integers(0, 1)),
                )
            )
        rows.append(row)
    return rows


CHOICES = [
    ("best-fit-decreasing", {}),
    ("first-fit-decreasing", {}),
    ("first-fit", {}),
    ("next-fit", {}),
    ("padding", {}),
    ("minibatch", {"batch_size": "2", "shuffle": "true"}),
    ("wrapped", {}),
    ("random", {"shuffle": True}),
]


@pytest.mark.slow
@settings(
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=sample_sets(),
    max_length=st.integers(1, 14),
    choice=st.sampled_from(CHOICES),
    overlong=st.sampled_from(["drop", "truncate", "split"]),
    keep=st.booleans(),
    window=st.sampled_from([2, 5, 1 << 20]),
    kind=st.sampled_from([pa.int8(), pa.int16(), pa.int32(), pa.int64()]),
    order=st.sampled_from(["shuffle", "plan"]),
    cap=st.sampled_from([None, 2, 3]),
)
def test_any_samples_any_choice(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    max_length: int,
    choice: tuple[str, dict[str, str]],
    overlong: Literal["drop", "truncate", "split"],
    keep: bool,
    window: int,
    kind: pa.DataType,
    order: Literal["shuffle", "plan"],
    cap: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = folder / "in.arrow"
    content = table(rows, kind)
    with pa.ipc.new_stream(str(source), content.schema) as writer:
        writer.write_table(content)
    name, settings_of_strategy = choice
    is_stream = find(name).stream_order is not None
    options = PackOptions(
        max_length=max_length,
        strategy=name,
        set=settings_of_strategy,
        overlong="error" if is_stream else overlong,
        max_segments=cap,
        keep_untrainable=keep,
        window_samples=window,
        window_tokens=30,
        shard_size=400,
        pack_order=order,
    )
    pack(source, folder / "out", options, run=RunOptions(num_workers=2, cache_dir=folder / "cache"))
    told = expect(rows, max_length, overlong, keep, stream=is_stream)
    manifest = json.loads((folder / "out" / "manifest.json").read_bytes())
    assert_packed(folder / "out", told, manifest, max_segments=cap or math.inf)
    shutil.rmtree(folder)


def test_wrapped_fills_every_pack_but_the_last(run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(n))} for n in (5, 1, 9, 2, 4)]
    source = save(rows, tmp_path / "in")
    run("pack", source, "--output", tmp_path / "out", "--max-length", 4, "--strategy", "random", "--pack-order", "plan")
    packs = datasets.load_from_disk(str(tmp_path / "out"))
    kept = [token for row in rows if len(row["input_ids"]) > 1 for token in row["input_ids"]]
    assert list(itertools.chain(*packs["input_ids"])) == kept
    assert [len(ids) for ids in packs["input_ids"]] == [4] * 5


def test_shuffle_orders_packs_by_seed_and_only_packs(run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": [i, i]} for i in range(50)]
    source = save(rows, tmp_path / "in")
    orders = {}
    for name, flags in {"plan": ["--pack-order", "plan"], "zero": [], "one": ["--seed", "1"]}.items():
        run("pack", source, "--output", tmp_path / name, "--max-length", 4, *flags)
        orders[name] = [tuple(ids) for ids in datasets.load_from_disk(str(tmp_path / name))["sample_ids"]]
    assert orders["plan"] == sorted(orders["plan"])
    assert len({tuple(order) for order in orders.values()}) == 3
    assert sorted(orders["zero"]) == sorted(orders["one"]) == orders["plan"]


@pytest.mark.parametrize("rows", [[], [{"input_ids": []}, {"input_ids": []}], [{"input_ids": [1]}]])
def test_nothing_to_pack_gives_a_loadable_empty_dataset(run: Run, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source = save(rows, tmp_path / "in")
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 4, "--json")
    assert ended.code == 0
    assert "WARNING" in ended.err
    packs = datasets.load_from_disk(str(tmp_path / "out"))
    assert len(packs) == 0
    assert "boundaries" in packs.features
    assert ended.json["packs"] == 0
    assert run("verify", tmp_path / "out", "--source", source).code == 0


def test_dataset_dict_in_dataset_dict_out(run: Run, tmp_path: Path) -> None:
    parts = {"train": [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}], "test": [{"input_ids": [6, 7]}]}
    tables = {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "in"))
    ended = run("pack", tmp_path / "in", "--output", tmp_path / "out", "--max-length", 5, "--json")
    assert ended.code == 0
    packed = datasets.load_from_disk(str(tmp_path / "out"))
    assert list(packed) == ["train", "test"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    for name, rows in parts.items():
        described = manifest["splits"][name]
        assert_packed(tmp_path / "out" / name, expect(rows, 5), described)
        assert described["windows"][0]["rows"] == len(rows)
    assert manifest["counts"]["tokens_packed"] == 7
    assert "train/state.json" in manifest["files"]
    assert run("verify", tmp_path / "out", "--source", tmp_path / "in").code == 0

    assert run("pack", tmp_path / "in", "--output", tmp_path / "one", "--max-length", 5, "--split", "test").code == 0
    assert datasets.load_from_disk(str(tmp_path / "one"))["input_ids"] == [[6, 7]]


def test_numpy_view_of_boundaries_is_cu_seqlens(run: Run, tmp_path: Path) -> None:
    source = save(WORKED_EXAMPLE, tmp_path / "in")
    run("pack", source, "--output", tmp_path / "out", "--max-length", 6)
    for row in datasets.load_from_disk(str(tmp_path / "out")).with_format("numpy"):
        assert np.array_equal(np.flatnonzero(row["position_ids"] == 0), row["boundaries"][:-1])
