"""What is appended equals what packing the new files alone gives, and what was there stays as it is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run
from tests.pipeline.chats import chat
from tests.pipeline.samples import random_rows, save, table, write_jsonl
from tests.pipeline.tokenizing.conftest import Lines

ROWS = random_rows(300)
FLAGS = ["--max-length", "80", "--window-samples", "70", "--window-tokens", "100000"]
STRATEGIES = {
    "best-fit-decreasing": [],
    "wrapped": [],
    "minibatch": ["--max-segments", "8"],
    "threshold-filtering": ["--set", "embedder=tokens"],
}


def manifest_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return value


def packs_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = datasets.load_from_disk(str(folder)).to_list()
    return rows


def moved(packs: list[dict[str, Any]], samples: int, source_rows: int = 0) -> list[dict[str, Any]]:
    """Packs as they are after so many samples, and rows of the source."""
    by = {"sample_ids": samples, "source_rows": source_rows}
    return [
        {name: [value + by[name] for value in values] if name in by else values for name, values in pack.items()}
        for pack in packs
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_append_equals_packing_the_new_files_alone(run: Run, tmp_path: Path, strategy: str) -> None:
    flags = [*FLAGS, "--strategy", strategy, *STRATEGIES[strategy]]
    flags += [] if strategy == "wrapped" else ["--overlong", "drop"]
    files = {"b": write_jsonl(ROWS[:100], tmp_path / "b.jsonl"), "c": write_jsonl(ROWS[100:200], tmp_path / "c.jsonl")}
    files["a"] = tmp_path / "a.parquet"
    pq.write_table(table(ROWS[200:]), files["a"])
    out, alone = tmp_path / "out", []
    for name in "bca":
        assert run("pack", files[name], "--output", tmp_path / f"alone-{name}", *flags).code == 0
        alone.append(tmp_path / f"alone-{name}")
    first = run("pack", files["b"], "--output", out, *flags, "--append", "--json").json
    assert (first["status"], first["run_id"]) == ("packed", manifest_of(alone[0])["run_id"])
    before = {path.name: path.stat().st_ino for path in out.glob("*.arrow")}
    for inputs in ((files["c"], files["b"]), (files["a"], files["b"], files["c"])):
        ended = run("pack", *inputs, "--output", out, *flags, "--append", "--json")
        assert ended.json["status"] == "packed", ended.err
    again = run("pack", *(files[name] for name in "abc"), "--output", out, *flags, "--append", "--json")
    assert (again.code, again.json["status"]) == (0, "up_to_date")
    assert {name: (out / name).stat().st_ino for name in before} == before
    wanted = [pack for number, folder in enumerate(alone) for pack in moved(packs_of(folder), 100 * number)]
    assert packs_of(out) == wanted
    told, parts = manifest_of(out), [manifest_of(folder) for folder in alone]
    for name in ("samples_in", "tokens_packed", "targets_packed"):
        assert told["counts"][name] == sum(part["counts"][name] for part in parts)
    assert [file["name"] for file in told["inputs"]] == ["b.jsonl", "c.jsonl", "a.parquet"]
    for append, part in zip(told["appends"], parts[1:], strict=True):
        assert (append["report"], append["windows"]) == (part["report"], part["windows"])
        assert append.get("embedding") == part.get("embedding")
    assert told["report"] == parts[0]["report"]
    assert run("verify", out, "--source", tmp_path / "[abc].*").code == 0
    write_jsonl(ROWS[:100][::-1], files["b"])
    ended = run("verify", out, *(flag for name in "abc" for flag in ("--source", files[name])))
    assert (ended.code, "b.jsonl" in ended.out) == (4, True)
    refused = run("pack", *(files[name] for name in "abc"), "--output", out, *flags, "--append")
    assert (refused.code, "b.jsonl" in refused.err) == (2, True)


def test_splits_and_shuffled_directories(run: Run, tmp_path: Path) -> None:
    def saved(name: str, train: list[Any], test: list[Any]) -> Path:
        splits = {"train": datasets.Dataset(table(train)), "test": datasets.Dataset(table(test))}
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    one, two = saved("one", ROWS[:80], []), saved("two", ROWS[80:150], ROWS[150:160])
    out = tmp_path / "out"
    assert run("pack", one, "--output", out, *FLAGS).code == 0
    assert run("pack", one, "--output", out, *FLAGS, "--append", "--unchanged-exit-code", 9).code == 9
    planned = run("pack", one, two, "--output", out, *FLAGS, "--append", "--dry-run", "--json").json
    assert planned["plan"]["counts"]["samples_in"] == 80
    ended = run("pack", two, one, "--output", out, *FLAGS, "--append")
    assert ended.code == 0, ended.err
    assert run("verify", out, "--source", one, "--source", two).code == 0
    loaded = datasets.load_from_disk(str(out))
    assert {i for pack in loaded["test"]["sample_ids"] for i in pack} <= set(range(10))
    assert max(i for pack in loaded["train"]["sample_ids"] for i in pack) >= 80
    single = save(ROWS[:5], tmp_path / "single")
    assert "has test, train, the inputs have no splits" in run("pack", single, "--output", out, *FLAGS, "--append").err


@pytest.mark.parametrize("history", ["whole", "expand"])
def test_raw_rows_and_tokenised_ones(run: Run, tmp_path: Path, lines: Lines, flags: list[object], history: str) -> None:
    draw = random.Random(0)

    def chats(count: int) -> list[Any]:
        rows: list[Any] = [{"messages": chat(*(f"w{draw.randrange(50)} " * 3 for _ in range(4)))} for _ in range(count)]
        return [*rows, {"messages": [{"role": "user", "content": "alone"}]}]

    one, two = lines(chats(20), "one.jsonl"), lines(chats(15), "two.jsonl")
    more = [*flags, "--on-error", "drop", "--history", history]
    tokens, packs, raw = tmp_path / "tokens", tmp_path / "packs", tmp_path / "raw"
    for number, inputs in enumerate(([one], [two, one])):
        for command, output in (("tokenize", tokens), ("pack", raw)):
            ended = run(command, *inputs, "--output", output, *more, *(FLAGS if command == "pack" else []), "--append")
            assert ended.code == 0, ended.err
        ended = run("pack", tokens, "--output", packs, *FLAGS, "--append", "--json")
        assert ended.json["status"] == "packed", ended.err
        assert len(manifest_of(packs).get("appends", [])) == len(manifest_of(tokens).get("appends", [])) == number
    assert run("tokenize", one, two, "--output", tmp_path / "at-once", *more).code == 0
    assert (
        datasets.load_from_disk(str(tokens)).to_list() == datasets.load_from_disk(str(tmp_path / "at-once")).to_list()
    )
    dropped = [json.loads(line) for line in (tokens / "dropped.jsonl").read_text().splitlines()]
    assert [entry["row"] for entry in dropped] == [20, 36]
    assert (raw / "dropped.jsonl").read_text() == (tokens / "dropped.jsonl").read_text()
    counts, told = manifest_of(tmp_path / "at-once")["counts"], manifest_of(tokens)["counts"]
    assert told == counts == manifest_of(raw)["tokenized"]
    checked = run("verify", raw, "--source", two, "--source", one, *flags)
    assert checked.code == 0, checked.out
    if history == "expand":
        rows = {row for pack in packs_of(raw) for row in pack["source_rows"]}
        assert rows == {row for pack in packs_of(packs) for row in pack["source_rows"]} == {*range(20), *range(21, 36)}


def test_what_cannot_be_appended(run: Run, tmp_path: Path) -> None:
    one, two = write_jsonl(ROWS[:50], tmp_path / "one.jsonl"), write_jsonl(ROWS[50:90], tmp_path / "two.jsonl")
    out = tmp_path / "out"
    assert run("pack", one, "--output", out, *FLAGS).code == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}

    def refused(*flags: object, inputs: tuple[Path, ...] = (one, two)) -> str:
        ended = run("pack", *inputs, "--output", out, *FLAGS, "--append", *flags)
        assert ended.code == 2, ended.err
        assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
        return ended.err

    assert "choose one" in refused("--overwrite")
    assert "seed: 0 there, 7 now" in refused("--seed", "7")
    assert "one.jsonl" in refused(inputs=(two,))
    assert "with 0 appends there" not in refused(inputs=(two,))
    rows = [row | {"source_row": 0, "source_turn": 1} for row in ROWS[50:90]]
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink:
        content = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(content)
    assert "new ones would have" in refused(inputs=(one, tmp_path / "x.arrow"))
    (out / "mine.txt").write_text("keep me")
    whole["mine.txt"] = b"keep me"
    assert "mine.txt is not part of the dataset" in refused()
    (out / "mine.txt").unlink()
    (out / "state.json").write_bytes(b"{}")
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "state.json is damaged" in refused()
