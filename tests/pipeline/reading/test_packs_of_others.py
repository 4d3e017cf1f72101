"""Rows that other packers packed are refused by the column that tells, or taken apart where that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import ConfigError, DataError
from pipeline.format.options import PackOptions
from pipeline.packing.setup import set_up
from pipeline.reading.columns import Selection
from pipeline.reading.decoding.spool import DecodeTask, decode
from pipeline.reading.files import InputFile
from tests.conftest import Run
from tests.pipeline.reading.inputs import KINDS, Rows, as_arrow_file, as_parquet, stream
from tests.pipeline.samples import random_rows, save, table, write_jsonl

IDS = [6, 7, 8, 9, 1, 2, 3]
LABELS = [-100, -100, 8, 9, -100, 2, 3]
ROW: dict[str, Any] = {"input_ids": IDS, "labels": LABELS}
SEGMENTS = [([6, 7, 8, 9], [-100, -100, 8, 9]), ([1, 2, 3], [-100, 2, 3])]

TELLING: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("boundaries", ROW | {"boundaries": [0, 4, 7], "position_ids": [0, 1, 2, 3, 0, 1, 2]}),
    "TRL": ("seq_lengths", ROW | {"seq_lengths": [4, 3]}),
    "ArcticTraining": ("packed_sample_seqlens", ROW | {"packed_sample_seqlens": [4, 0, 3]}),
    "LLaMA-Factory": ("attention_mask", ROW | {"attention_mask": [1, 1, 1, 1, 2, 2, 2]}),
    "Axolotl": ("position_ids", ROW | {"position_ids": [0, 1, 2, 3, 0, 1, 2]}),
    "Megatron-Bridge": (
        "seq_start_id",
        {"input_ids": IDS, "loss_mask": [0, 1, 1, 0, 1, 1, 0], "seq_start_id": [0, 4]},
    ),
}

OTHER_NAMES: dict[str, list[Any]] = {
    **{key: [0, 4, 7] for key in ("cu_seqlens", "cu_seq_lens_q")},
    **{key: [[0, 4, 7]] for key in ("cu_seqlens ", "cu_seq_lens_q ")},
    "seq_lens": [4, 3],
    **{key: [0, 0, 0, 0, 1, 1, 1] for key in ("seq_idx", "sequence_id", "doc_ids")},
    **{key: [1, 1, 1, 1, 2, 2, 2] for key in ("segment_ids", "decoder_segment_ids")},
    "document_ids": [9, 9, 9, 9, 4, 4, 4],
    "input_pos": [0, 1, 2, 3, 0, 1, 2],
    "position_ids": [1, 2, 3, 4, 1, 2, 3],
    "position_ids ": [[0, 1, 2, 3, 0, 1, 2]],
    "position_ids  ": [[0, 1, 2, 3, 0, 1, 2]] * 3,
}
"""Other names, and lists in lists (a blank tells the keys apart)."""

ONE_SEGMENT: dict[str, list[Any]] = {
    "cu_seqlens": [0, 7],
    "seq_lens": [7],
    "position_ids": [[1, 2, 3, 4, 5, 6, 7]],
    **{key: [3] * 7 for key in ("seq_idx", "sequence_id", "doc_ids", "segment_ids", "document_ids")},
}

PLAIN: dict[str, dict[str, Any]] = {
    "positions that never restart": ROW | {"position_ids": [0, 1, 2, 3, 4, 5, 6]},
    "positions of a row padded on the left": ROW
    | {"position_ids": [1, 1, 1, 0, 1, 2, 3], "attention_mask": [0, 0, 0, 1, 1, 1, 1]},
    "a mask of 0 and 1": ROW | {"attention_mask": [0, 1, 1, 1, 1, 1, 0]},
    "one length": ROW | {"seq_lengths": [7]},
    "one start beside labels": ROW | {"seq_start_id": [0]},
    "a column of another type": ROW | {"boundaries": "none", "seq_lengths": 7, "position_ids": [[0.5]]},
    "a null": ROW | {"seq_lengths": None},
}

WAYS = {"parquet": as_parquet, "arrow": as_arrow_file, "jsonl": KINDS["jsonl"], "saved": KINDS["saved"]}


def packed(run: Run, source: object, out: Path, *flags: object) -> list[dict[str, Any]]:
    """What becomes of a source when each sample is a pack of its own, in order."""
    flags = ("--strategy", "padding", "--pack-order", "plan", "--keep-untrainable", "--max-length", 200, *flags)
    ended = run("pack", source, "--output", out, *flags)
    assert ended.code == 0, ended.err
    packs: list[dict[str, Any]] = datasets.load_from_disk(str(out)).to_list()
    return packs


def samples(packs: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    return [(pack["input_ids"], pack["labels"]) for pack in packs]


@pytest.mark.parametrize("packer", TELLING)
@pytest.mark.parametrize("way", WAYS)
def test_refused_by_the_column_that_tells_or_unpacked(way: str, packer: str, run: Run, tmp_path: Path) -> None:
    column, row = TELLING[packer]
    source = WAYS[way]([row, row], tmp_path)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 16)
    assert ended.code == 3 and not (tmp_path / "out").exists()
    for words in ("row 0", f"packed dataset (column {column!r} tells)", "where its samples begin", "--unpack"):
        assert words in ended.err
    packs = packed(run, source, tmp_path / "out", "--unpack")
    assert samples(packs) == SEGMENTS * 2
    assert [pack["sample_ids"] for pack in packs] == [[0], [1], [2], [3]]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["unpack"] is True and manifest["inputs"][0]["rows"] == 2
    assert way != "arrow" or run("verify", tmp_path / "out", "--source", source).code == 0


@pytest.mark.parametrize("way", ["parquet", "arrow", "jsonl"])
def test_every_other_name_and_lists_in_lists(way: str, tmp_path: Path) -> None:
    for number, (name, told) in enumerate(OTHER_NAMES.items()):
        column = name.strip()
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = [ROW | {column: told}] * 2
        source = folder / f"x.{way}"
        if way == "jsonl":
            write_jsonl(rows, source)
        elif way == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), source)
        else:
            stream([], source, pa.Table.from_pylist(rows))
        task = DecodeTask(
            file=InputFile(
                system=fsspec.filesystem("file"), path=str(source), format="json" if way == "jsonl" else way
            ),
            path=str(source),
            selection=Selection(),
            spool=folder / "spool.arrow",
        )
        with pytest.raises(DataError, match=rf"row 0: this is a packed dataset \(column '{column}' tells"):
            decode(task, lambda _: None)
        decode(replace(task, selection=Selection(unpack=True)), lambda _: None)
        with pa.ipc.open_stream(str(task.spool)) as reader:
            taken = reader.read_all().to_pylist()
        assert [(row["input_ids"], row["labels"]) for row in taken] == [
            (IDS[:4], LABELS[:4]),
            (IDS[4:], LABELS[4:]),
        ] * 2


def test_one_segment_of_another_name_is_no_pack(run: Run, tmp_path: Path) -> None:
    content = [ROW | {name: told} for name, told in ONE_SEGMENT.items()]
    for number, row in enumerate(content):
        write_jsonl([row], tmp_path / f"{number}.jsonl")
    assert len(packed(run, f"{tmp_path}/*.jsonl", tmp_path / "out")) == len(content) == 8


def test_padding_of_segment_ids_needs_a_mask(run: Run, tmp_path: Path) -> None:
    row = ROW | {"segment_ids": [1, 1, 1, 1, 2, 0, 0]}
    source = write_jsonl([row], tmp_path / "x.jsonl")
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 16, "--unpack")
    assert ended.code == 3 and "holds 0 at position 5" in ended.err and "attention_mask" in ended.err
    packs = packed(run, source, tmp_path / "out", "--unpack", "--column", "attention_mask=segment_ids")
    assert [pack["input_ids"] for pack in packs] == [IDS[:4], IDS[4:5]]


@pytest.mark.parametrize("name", PLAIN)
def test_a_column_that_could_tell_but_does_not_is_read_over(name: str, run: Run, tmp_path: Path) -> None:
    source = write_jsonl([PLAIN[name]], tmp_path / "x.jsonl")
    assert len(packed(run, source, tmp_path / "out")) == 1
    ended = run("pack", source, "--output", tmp_path / "more", "--max-length", 16, "--unpack")
    assert ended.code == 2 and "--unpack has no effect" in ended.err


def test_a_later_row_tells(run: Run, tmp_path: Path) -> None:
    later = write_jsonl([PLAIN["one length"], TELLING["TRL"][1]], tmp_path / "later.jsonl")
    ended = run("pack", later, "--output", tmp_path / "out", "--max-length", 16)
    assert ended.code == 3 and "row 1" in ended.err and "'seq_lengths' tells" in ended.err
    only = write_jsonl([ROW, TELLING["TRL"][1]], tmp_path / "only.jsonl")
    flags: tuple[str, ...]
    for flags in ((), ("--unpack",)):
        ended = run("pack", only, "--output", tmp_path / "out", "--max-length", 16, *flags)
        assert ended.code == 3 and "row 1: has a column 'seq_lengths', which row 0 lacks" in ended.err


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "lengths too short": (ROW | {"seq_lengths": [4, 2]}, "'seq_lengths' sums to 6, but the row has 7 tokens"),
    "lengths too long": (ROW | {"packed_sample_seqlens": [4, 4]}, "sums to 8"),
    "a negative length": (ROW | {"seq_lengths": [9, -2]}, "holds the length -2"),
    "starts that decrease": (ROW | {"seq_start_id": [0, 4, 2]}, "'seq_start_id' goes from 4 to 2"),
    "starts beyond the end": (ROW | {"seq_start_id": [0, 8]}, "holds 8, but the row has 7 tokens"),
    "a first start": (ROW | {"seq_start_id": [1, 4]}, "begins with 1"),
    "offsets that end early": (ROW | {"boundaries": [0, 4, 6]}, "ends at 6, and the tokens at 7"),
    "positions that jump": (ROW | {"position_ids": [0, 1, 5, 6, 0, 1, 2]}, "holds 5 at position 2"),
    "positions that restart at 2": (ROW | {"position_ids": [0, 1, 2, 3, 2, 3, 4]}, "holds 2 at position 4"),
    "too few positions": (ROW | {"position_ids": [0, 1, 0]}, "has 3 values for 7 tokens"),
    "indices that fall": (ROW | {"attention_mask": [1, 1, 2, 2, 1, 1, 1]}, "holds 1 at position 4"),
    "a null": (ROW | {"seq_lengths": None}, "'seq_lengths' is null"),
    "a null inside": (ROW | {"seq_lengths": [7, None]}, "'seq_lengths' holds a null"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_column_that_contradicts_itself(name: str, run: Run, tmp_path: Path) -> None:
    row, words = CONTRADICTIONS[name]
    column = next(name for name in row if name not in ROW)
    good = ROW | {column: next(one for name, one in TELLING.values() if name == column)[column]}
    source = write_jsonl([good, row], tmp_path / "x.jsonl")
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 16, "--unpack")
    assert ended.code == 3 and f"{source}, row 1: column" in ended.err and words in ended.err
    assert not (tmp_path / "out").exists()


def test_padding_is_removed_and_counted(run: Run, tmp_path: Path) -> None:
    """Padding behind, between and before segments, with positions that restart at every token of it."""
    rows: list[dict[str, list[int]]] = [
        {"input_ids": [5, 6, 7, 8, 0, 0], "attention_mask": [1, 1, 2, 2, 0, 0], "position_ids": [0, 1, 0, 1, 0, 0]},
        {"input_ids": [0, 0, 5, 6, 0, 9], "attention_mask": [0, 0, 1, 1, 0, 2], "position_ids": [0, 0, 0, 1, 0, 0]},
        {"input_ids": [0, 0], "attention_mask": [0, 0], "position_ids": [0, 0]},
        {"input_ids": [], "attention_mask": [], "position_ids": []},
    ]
    for n, kinds in enumerate((("attention_mask",), ("attention_mask", "position_ids"))):
        mask = [row | {"attention_mask": [int(m > 0) if n else m for m in row["attention_mask"]]} for row in rows]
        source = write_jsonl([{k: row[k] for k in ("input_ids", *kinds)} for row in mask], tmp_path / f"{n}.jsonl")
        packs = packed(run, source, tmp_path / f"out{n}", "--unpack")
        assert [pack["input_ids"] for pack in packs] == [[5, 6], [7, 8], [5, 6], [9]]
        counts = json.loads((tmp_path / f"out{n}" / "manifest.json").read_text())["counts"]
        assert (counts["samples_in"], counts["dropped"]["empty"]["samples"]) == (6, 2)
        assert (counts["tokens_in"], counts["dropped"]["padding_removed"]["tokens"]) == (14, 7)


def test_padding_behind_lengths(run: Run, tmp_path: Path) -> None:
    row = {"input_ids": [5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "seq_lengths": [1, 2]}
    assert [
        p["input_ids"] for p in packed(run, write_jsonl([row], tmp_path / "x.jsonl"), tmp_path / "o", "--unpack")
    ] == [
        [5],
        [6, 7],
    ]


def test_packs_of_ours_come_back_as_the_samples_they_were_made_of(run: Run, tmp_path: Path) -> None:
    rows = random_rows(200, seed=3)
    save(rows, tmp_path / "x")
    assert (
        run("pack", tmp_path / "x", "--output", tmp_path / "packs", "--max-length", 64, "--compression", "lz4").code
        == 0
    )
    back = packed(run, tmp_path / "packs", tmp_path / "out", "--unpack")
    plain = packed(run, tmp_path / "x", tmp_path / "plain")
    kept = [sample for sample in samples(plain) if any(label != -100 for label in sample[1][1:])]
    assert len(kept) > 100 and sorted(samples(back)) == sorted(kept)


def test_every_form_says_the_same(run: Run, tmp_path: Path) -> None:
    """Of many rows in several record batches, looked at in several runs."""
    draws = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    for _ in range(60):
        lengths = draws.integers(1, 9, draws.integers(1, 7)).tolist()
        ends = np.cumsum(lengths).tolist()
        ids = draws.integers(1, 99, ends[-1])
        rows.append(
            {
                "input_ids": ids.tolist(),
                "labels": np.where(draws.random(len(ids)) < 0.3, -100, ids).tolist(),
                "boundaries": [0, *ends],
                "seq_lengths": lengths,
                "seq_start_id": [0, *ends[:-1]],
                "attention_mask": np.repeat(np.arange(1, len(lengths) + 1), lengths).tolist(),
                "position_ids": [i for length in lengths for i in range(length)],
            }
        )
    expected = [
        (row["input_ids"][a:b], [-100, *row["labels"][a + 1 : b]])
        for row in rows
        for a, b in pairwise(row["boundaries"])
    ]
    for name in list(rows[0])[2:]:
        source = tmp_path / f"{name}.arrow"
        stream([], source, table([{key: row[key] for key in ("input_ids", "labels", name)} for row in rows]))
        assert samples(packed(run, source, tmp_path / name, "--unpack")) == expected


def test_a_column_of_ours_is_not_taken_for_rows_of_packs(run: Run, tmp_path: Path) -> None:
    """What `tokenize` writes as `source_row` has nothing to do with the rows that messages name."""
    rows: Rows = [{"input_ids": [1]}, {"input_ids": [-1]}]
    content = table(rows).append_column("source_row", pa.array([7, 9]))
    ended = run("pack", stream(rows, tmp_path / "x.arrow", content), "--output", tmp_path / "out", "--max-length", 9)
    assert ended.code == 3 and "x.arrow, row 1: column 'input_ids' holds -1" in ended.err


def test_faults_name_the_row_of_the_pack_and_the_sample_in_it(run: Run, tmp_path: Path) -> None:
    bad = TELLING["TRL"][1] | {"input_ids": [6, 7, 8, 9, 1, -2, 3]}
    source = as_parquet([TELLING["TRL"][1], bad], tmp_path)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 16, "--unpack")
    assert ended.code == 3 and f"{source}, row 1, sample 1 in it: column 'input_ids' holds -2" in ended.err


def test_a_file_among_packs_that_is_none_is_said(run: Run, tmp_path: Path) -> None:
    write_jsonl([TELLING["TRL"][1]], tmp_path / "0.jsonl")
    write_jsonl([ROW], tmp_path / "1.jsonl")
    ended = run("pack", f"{tmp_path}/*.jsonl", "--output", tmp_path / "out", "--max-length", 16, "--unpack")
    assert ended.code == 0 and "WARNING: 1 input file, among them" in ended.err and "1.jsonl" in ended.err


def test_unpack_is_part_of_identity_and_for_tokens_alone(run: Run, tmp_path: Path) -> None:
    source = write_jsonl([TELLING["Axolotl"][1]], tmp_path / "x.jsonl")
    packed(run, source, tmp_path / "out", "--unpack")
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW))
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 200)
    assert ended.code == 2 and "unpack: True there, False now" in ended.err
    with pytest.raises(ConfigError, match="--unpack takes tokens of packed rows apart, and raw rows"):
        set_up(PackOptions(max_length=9, unpack=True), "any", None)
    by_column = {"embedder": "column", "column": "vector"}
    with pytest.raises(ConfigError, match="one embedding for all"):
        set_up(PackOptions(max_length=9, unpack=True, strategy="tfp", set=by_column), None, None)


def test_a_row_looks_like_no_pack_across_the_edges_of_rows(tmp_path: Path, run: Run) -> None:
    """Positions begin anew with every row, also where an empty row or a slice lies between."""
    rows: Rows = [
        {"input_ids": list(range(1, n + 1)), "position_ids": list(range(n))} for n in (3, 0, 1, 5, 0, 0, 2) * 30
    ]
    source = stream(rows, tmp_path / "x.arrow", pa.concat_tables([table(rows).slice(2), table(rows[:2])]))
    assert len(packed(run, source, tmp_path / "out")) == 4 * 30


@pytest.mark.parametrize("kind", [pa.list_view(pa.int32()), pa.large_list_view(pa.int64())])
def test_list_views_are_lists(kind: pa.DataType, run: Run, tmp_path: Path) -> None:
    """Also views that lie in no order, overlap, or are part of a larger column."""
    values = pa.array(np.arange(10), kind.value_type)
    offset = pa.int64() if pa.types.is_large_list_view(kind) else pa.int32()
    array = type(pa.array([], kind)).from_arrays(pa.array([9, 4, 0, 2], offset), pa.array([1, 3, 2, 4], offset), values)
    content = pa.table({"input_ids": array.slice(1)})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), content.schema) as writer:
        writer.write_table(content)
    packs = packed(run, tmp_path / "x.arrow", tmp_path / "out")
    assert [pack["input_ids"] for pack in packs] == [[4, 5, 6], [0, 1], [2, 3, 4, 5]]
