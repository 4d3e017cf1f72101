"""Dialogue trees: each answer is a target in one path alone, whatever the shape, and every message is accounted for."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding import raw
from pipeline.tokenizing import shards
from pipeline.tokenizing.rows import gathering
from tests.conftest import Run
from tests.pipeline.chats import template
from tests.pipeline.tokenizing.conftest import Lines, manifest_of, same_files, stopped_after
from tests.pipeline.tokenizing.oracle import trained_runs
from tests.pipeline.tokenizing.test_chats import TEMPLATES

Row = dict[str, Any]


def message(id_: str, parent: str | None, role: str, text: str | None = None, **keys: Any) -> Row:
    return {"message_id": id_, "parent_id": parent, "role": role, "text": text or f"says {id_}", **keys}


def forest(seed: int, size: int) -> list[Row]:
    """Messages of random trees in any order: mostly speakers in turn, some deleted, ranked, or marked as untrained."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for number in range(size):
        parent = draw.choice(rows[-12:]) if rows and draw.random() < 0.9 else None
        asks = parent is None or (parent["role"] == "assistant") == (draw.random() < 0.9)
        row = message(f"m{number}", parent["message_id"] if parent else None, "prompter" if asks else "assistant")
        row |= {"deleted": draw.random() < 0.06, "rank": draw.choice([None, 0, 1, 2.0]), "lang": "en"}
        rows.append(row | {"train": False if not asks and draw.random() < 0.1 else None})
    draw.shuffle(rows)
    return rows


def nested(rows: list[Row]) -> list[Row]:
    """The same trees as OASST's other shape has them."""

    def with_replies(row: Row) -> Row:
        replies = [with_replies(other) for other in rows if other["parent_id"] == row["message_id"]]
        return {key: value for key, value in row.items() if key != "parent_id"} | {"replies": replies}

    return [
        {"message_tree_id": row["message_id"], "prompt": with_replies(row)} for row in rows if row["parent_id"] is None
    ]


def oracle(rows: list[Row]) -> list[tuple[list[Row], list[str]]]:
    """Every path and the answers trained in it, by brute force: all ways down, cut, without those that others begin."""

    def ways(row: Row) -> list[list[Row]]:
        if row["deleted"]:
            return [[]]
        below = [way for other in rows if other["parent_id"] == row["message_id"] for way in ways(other)]
        return [[row, *way] for way in below or [[]]]

    def is_trained(row: Row) -> bool:
        return bool(row["role"] == "assistant" and row["train"] is not False)

    found: list[list[Row]] = []
    for way in [way for row in rows if row["parent_id"] is None for way in ways(row)]:
        stop = max((number + 1 for number, row in enumerate(way) if is_trained(row)), default=0)
        found.append(way[:stop])
    found = [way for number, way in enumerate(found) if way and way not in found[:number]]
    whole = [way for way in found if not any(len(way) < len(other) and other[: len(way)] == way for other in found)]
    told = set[str]()
    paths = []
    for way in whole:
        paths.append((way, [row["text"] for row in way if is_trained(row) and row["message_id"] not in told]))
        told |= {row["message_id"] for row in way}
    return paths


def samples(folder: Path, whole: Any) -> list[tuple[str, list[str], int, int]]:
    """Text, trained texts, source row and turn of each sample."""
    return [
        (
            whole.decode(row["input_ids"]),
            [whole.decode(run).removesuffix("<|im_end|>") for run in trained_runs(row["input_ids"], row["labels"])],
            row["source_row"],
            row["source_turn"],
        )
        for row in datasets.load_from_disk(str(folder))
    ]


def rendered(way: list[Row], whole: Any) -> str:
    turns = [{"role": {"prompter": "user"}.get(row["role"], row["role"]), "content": row["text"]} for row in way]
    return str(whole.apply_chat_template(turns, chat_template=template("chatml", marks=False), tokenize=False))


@pytest.mark.parametrize("seed", range(2))
def test_random_forests_in_all_shapes_against_brute_force(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any, seed: int
) -> None:
    rows = forest(seed, 150)
    wanted = oracle(rows)
    trees = nested(rows)
    flat, shaped = lines(rows, "flat.jsonl"), lines(trees, "nested.jsonl")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "flat.parquet")
    pq.write_table(pa.Table.from_pylist(trees), tmp_path / "nested.parquet")
    found = {}
    for path in (flat, shaped, tmp_path / "flat.parquet", tmp_path / "nested.parquet"):
        ended = run("tokenize", path, "--output", tmp_path / "out" / path.name, *flags)
        assert ended.code == 0 and "format tree" in ended.err, ended.err
        found[path.name] = samples(tmp_path / "out" / path.name, whole)
    assert [sample[:2] for sample in found["flat.jsonl"]] == [(rendered(way, whole), told) for way, told in wanted]
    assert found["flat.parquet"] == found["flat.jsonl"] and found["nested.parquet"] == found["nested.jsonl"]
    assert [sample[:2] + sample[3:] for sample in found["nested.jsonl"]] == [
        sample[:2] + sample[3:] for sample in found["flat.jsonl"]
    ]
    assert [rows[sample[2]] for sample in found["flat.jsonl"]] == [way[-1] for way, _ in wanted]
    assert [trees[sample[2]]["message_tree_id"] for sample in found["nested.jsonl"]] == [
        way[0]["message_id"] for way, _ in wanted
    ]
    texts = Counter(text for _, told, _, _ in found["flat.jsonl"] for text in told)
    assert len(wanted) > 10 and len(texts) > len(wanted) and set(texts.values()) == {1}
    counts = manifest_of(tmp_path / "out" / "flat.jsonl")["counts"]
    used = {row["message_id"] for way, _ in wanted for row in way}
    assert counts["rows"] == len(rows) == len(used) + sum(counts["dropped"].values())
    assert counts["dropped"]["deleted"] >= sum(row["deleted"] for row in rows) and counts["samples"] == len(wanted)


def test_many_shards_are_resumed_and_rows_stay_those_of_the_file(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    monkeypatch.setattr(gathering, "BLOCK_BYTES", 300)
    monkeypatch.setattr(raw, "BLOCK_BYTES", 2000)
    files = [lines(forest(7, 120), "one.jsonl"), lines(forest(8, 120), "two.jsonl")]
    rows = [*forest(7, 120), *forest(8, 120)]
    asked = [*files, *flags, "--on-error", "drop"]
    assert run("tokenize", *asked, "--output", tmp_path / "whole", "--num-workers", 3).code == 0
    with stopped_after(2, monkeypatch):
        assert run("tokenize", *asked, "--output", tmp_path / "out", "--num-workers", 1).code == 130
    assert run("tokenize", *asked, "--output", tmp_path / "out", "--num-workers", 1).code == 0
    assert same_files(tmp_path / "whole", tmp_path / "out") and len(list((tmp_path / "out").glob("*.arrow"))) > 3
    manifest = manifest_of(tmp_path / "out")
    assert [entry["rows"] for entry in manifest["inputs"]] == [120, 120]
    wanted = [*oracle(rows[:120]), *oracle(rows[120:])]
    found = samples(tmp_path / "out", whole)
    assert [sample[0] for sample in found] == [rendered(way, whole) for way, _ in wanted]
    assert [rows[sample[2]]["text"] for sample in found] == [way[-1]["text"] for way, _ in wanted]
    listed = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    told = {(120 if entry["file"] == "two.jsonl" else 0) + entry["file_row"] for entry in listed}
    used = {id(row) for way, _ in wanted for row in way}
    assert told == {entry["row"] for entry in listed} == {n for n, row in enumerate(rows) if id(row) not in used}


ANSWERED = [message("a", None, "prompter"), message("b", "a", "assistant")]


@pytest.mark.parametrize(
    ("rows", "reason", "told"),
    [
        ([message("b", "a", "prompter")], "duplicate_id", "row 2: its message_id 'b' is that of row 1, too"),
        ([message("x", "gone", "assistant")], "no_parent", "row 2: the message that it replies to (parent_id 'gone')"),
        ([message("x", "x", "prompter")], "cycle", "row 2: it replies to itself"),
        (
            [message("y", "x", "assistant"), message("x", "z", "prompter"), message("z", "y", "prompter")],
            "cycle",
            "row 2: it replies to row 3",
        ),
        ([message("x", None, "assistant")], "assistant_root", "row 2: message x: a tree begins with the assistant"),
        ([message("x", None, "prompter"), message("y", "x", "pet")], "unknown_role", "row 3: message y: from 'pet'"),
        (
            [message("x", None, "prompter") | {"text": None}, message("y", "x", "assistant")],
            "null_content",
            "row 2: message x (user): its content is null",
        ),
        ([message("x", None, "prompter") | {"message_id": None}], "no_id", "row 2: column 'message_id' has no id"),
        (
            [message("x", None, "prompter", deleted="maybe")],
            "unknown_mark",
            "row 2: message x: deleted 'maybe' is neither",
        ),
        (
            [message("x", None, "prompter") | {"text": ["a", 1]}],
            "not_text",
            "row 2: message x (user): part 1 is a number",
        ),
        (['{"message_id": '], "unreadable", "row 2: not valid JSON"),
    ],
)
def test_messages_that_fit_no_tree(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], rows: list[Any], reason: str, told: str
) -> None:
    source = lines([*ANSWERED, *rows])
    ended = run("tokenize", source, "--output", tmp_path / "out", *flags)
    assert ended.code == 3 and told in ended.err and "Traceback" not in ended.err, ended.err
    assert run("tokenize", source, "--output", tmp_path / "out", *flags, "--on-error", "drop").code == 0
    counts = manifest_of(tmp_path / "out")["counts"]
    assert counts["dropped"] == {reason: len(rows)} and counts["samples"] == 1


TREE = [
    message("a", None, "prompter"),
    message("b", "a", "assistant", rank=2),
    message("c", "a", "assistant", rank=1),
    message("d", "a", "assistant", rank=0, deleted=True),
    message("e", "c", "prompter", rank=0),
    message("f", "c", "prompter"),
    message("g", "f", "assistant"),
    message("h", "f", "assistant"),
    message("i", None, "prompter"),
]


@pytest.mark.parametrize("shape", [list, nested])
def test_the_best_path_follows_the_ranks(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any, shape: Any
) -> None:
    source = lines(shape(TREE))
    ended = run("tokenize", source, "--output", tmp_path / "out", *flags, "--paths", "best")
    assert ended.code == 0 and "1 sample, the first in" in ended.err and "has a rank" in ended.err, ended.err
    ((text, told, _, turn),) = samples(tmp_path / "out", whole)
    way = [TREE[0], TREE[2], TREE[5], TREE[6]]
    assert text == rendered(way, whole) and told == ["says c", "says g"] and turn == 3
    if shape is list:
        assert manifest_of(tmp_path / "out")["counts"]["dropped"] == {"deleted": 1, "not_best": 2, "unanswered": 2}
    else:
        assert "2 messages of trees left out" in ended.err and "1 row left out (unanswered 1)" in ended.err
    bad = lines(shape([*ANSWERED, message("c", "a", "assistant", rank="first")]))
    ended = run("tokenize", bad, "--output", tmp_path / "bad", *flags, "--paths", "best")
    assert ended.code == 3 and "message c: rank 'first' is no number" in ended.err, ended.err


def test_other_names(run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any) -> None:
    rows = [
        {"key": 1, "who": "asker", "said": "Hi", "to": None},
        {"key": 2, "who": "helper", "said": "Hello", "to": 1.0},
    ]
    roles = ["--roles", "user=asker,assistant=helper"]
    asked = ["--map", "id=key,parent=to,role=who,text=said", *roles]
    assert run("tokenize", lines(rows), "--output", tmp_path / "flat", *flags, *asked).code == 0
    root = {"who": "asker", "said": "Hi", "replies": [{"who": "helper", "said": "Hello"}]}
    for name, row, more in (("column", {"tree": root}, ["--map", "prompt=tree"]), ("row", root, [])):
        asked = ["--format", "tree", "--keys", "role=who,content=said", *roles, *more]
        ended = run("tokenize", lines([row], f"{name}.jsonl"), "--output", tmp_path / name, *flags, *asked)
        assert ended.code == 0, ended.err
    assert {samples(tmp_path / name, whole)[0][0] for name in ("flat", "column", "row")} == {
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    }


def test_a_root_without_a_parent_is_no_plain_text(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    rows = [{key: value for key, value in row.items() if value is not None} for row in ANSWERED]
    ended = run("tokenize", lines(rows), "--output", tmp_path / "out", *flags)
    assert ended.code == 0 and "format tree" in ended.err, ended.err


@pytest.mark.parametrize("nobody", ["", 0, "0", -1])
def test_what_is_written_for_no_parent(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], nobody: Any
) -> None:
    """Unless it is the id of a message, which is then replied to."""
    rows = [row if row["parent_id"] else row | {"parent_id": nobody} for row in ANSWERED]
    ended = run("tokenize", lines(rows), "--output", tmp_path / "out", *flags, "--json")
    assert ended.code == 0 and ended.json["counts"]["dropped"] == {}, ended.err
    if nobody in (0, "0"):
        ended = run("tokenize", lines([message("0", nobody, "prompter"), *rows]), "--output", tmp_path / "no", *flags)
        assert ended.code == 3 and ("no_parent" in ended.err or "replies to" in ended.err), ended.err


def test_other_names_are_told_the_map_that_reads_them(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object]
) -> None:
    rows = [{"content" if key == "text" else key: value for key, value in row.items()} for row in ANSWERED]
    source, out = lines(rows), ["--output", tmp_path / "out"]
    ended = run("tokenize", source, *out, *flags)
    assert ended.code == 3 and "--format tree reads them, as does --map text=content" in ended.err, ended.err
    for asked in (["--map", "text=content"], ["--format", "tree"]):
        assert run("tokenize", source, *out, *flags, *asked, "--overwrite").code == 0
    nested = [{"prompt": {"role": "prompter", "content": "a", "replies": []}}]
    ended = run("tokenize", lines(nested), "--output", tmp_path / "nested", *flags)
    assert ended.code == 3 and "it has no text (its keys are: role, content, replies)" in ended.err


def test_flags_that_fit_no_trees(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], tokenizer_dir: Path
) -> None:
    texts, trees = lines([{"text": "a"}], "texts.jsonl"), lines(ANSWERED)
    out = ["--output", tmp_path / "out"]
    for source, asked, code, told in (
        (texts, ["--tokenizer", tokenizer_dir, "--paths", "best"], 2, "--paths has no effect"),
        (texts, [*flags, "--format", "tree"], 3, "--format tree needs id, parent, role, text"),
        (trees, [*flags, "--train-on", "all"], 2, "would be trained once for each"),
        (trees, ["--tokenizer", tokenizer_dir], 2, "no chat template"),
    ):
        ended = run("tokenize", source, *out, *asked)
        assert ended.code == code and told in ended.err, ended.err


def test_expanded_and_packed_in_one_step(run: Run, tmp_path: Path, lines: Lines, tok: Path, whole: Any) -> None:
    draw = random.Random(3)
    rows = [row | {"train": None, "reasoning_content": None} for row in forest(11, 90)]
    for row in rows:
        if row["role"] == "assistant" and draw.random() < 0.7:
            row["reasoning_content"] = f"thinks {row['message_id']}"
    source = lines(rows)
    flags = ["--tokenizer", tok, "--chat-template", TEMPLATES / "qwen3.jinja"]
    ended = run("tokenize", source, "--output", tmp_path / "whole", *flags)
    assert ended.code == 3 and "--history expand" in ended.err, ended.err
    ended = run("tokenize", source, "--output", tmp_path / "out", *flags, "--history", "expand")
    assert ended.code == 0, ended.err
    answers = {row["text"]: row for way, _ in oracle(rows) for row in way if row["role"] == "assistant"}
    found = samples(tmp_path / "out", whole)
    told = Counter(text.strip().removeprefix("<think>\n\n</think>\n\n") for sample in found for text in sample[1])
    thought = {text: row["reasoning_content"] for text, row in answers.items()}
    wanted = [f"<think>\n{thought[text]}\n</think>\n\n{text}" if thought[text] else text for text in answers]
    assert told == Counter(wanted) and len(found) > len(oracle(rows))
    assert all(told_here[-1].endswith(rows[number]["text"]) for _, told_here, number, _ in found)
    asked = [source, *flags, "--history", "expand", "--max-length", 512]
    assert run("pack", *asked, "--output", tmp_path / "packed").code == 0
    packed = datasets.load_from_disk(str(tmp_path / "packed"))
    places = [pair for pack in packed for pair in zip(pack["source_rows"], pack["source_turns"], strict=True)]
    assert sorted(places) == sorted((row_number, turn) for _, _, row_number, turn in found)
    manifest = manifest_of(tmp_path / "packed")
    assert manifest["counts"]["samples_in"] == len(found) + sum(manifest["dropped_rows"].values())
    assert run("verify", tmp_path / "packed", "--source", source, *flags).code == 0


def test_deep_trees(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    below = [message(str(n), str(n - 1) if n else "b", "prompter") for n in range(3000)]
    assert run("tokenize", lines([*ANSWERED, *below][::-1]), "--output", tmp_path / "out", *flags).code == 0
    assert manifest_of(tmp_path / "out")["counts"]["dropped"] == {"unanswered": 3000}


def test_paths_is_a_part_of_identity_where_it_is_not_the_default() -> None:
    assert "paths" not in TokenizeOptions().changed() and TokenizeOptions(paths="best").changed()["paths"] == "best"
