"""Files that were damaged or tampered with: one message and an exit code, whatever the bytes; no other file."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run
from tests.pipeline.chats import chat
from tests.pipeline.hostile.processes import SECONDS, forked
from tests.pipeline.reading.inputs import json_lines, stream
from tests.pipeline.samples import random_rows, table, write_jsonl

ROWS = random_rows(60)
FLAGS = ["--max-length", "60", "--num-workers", "1"]


TOKENS = [b"{", b"]", b"\n", b'"', b"\xf0\x9f", b"NaN", b"-1", b"1e999", b"null", b"../../x"]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Bytes with some of them flipped, cut out, doubled, set to extremes, or put elsewhere."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(changed) or 1)
        size = draw.choice([1, 1, 4, 8, 64])
        way = draw.randrange(6)
        if way == 0 and changed:
            changed[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del changed[at : at + size]
        elif way == 2:
            changed[at:at] = changed[at : at + size]
        elif way == 3:
            changed[at : at + size] = draw.choice([b"\xff", b"\x00", b"\x7f", b"\x80"]) * size
        elif way == 4:
            changed[at:at] = draw.choice(TOKENS)
        else:
            del changed[at:]
    return bytes(changed)


EXTREMES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    0.5,
    "",
    "../x",
    "\u0000",
    "NaN",
    [],
    {},
    [[]],
    {"": None},
    "\ud800",
]


def forged(content: bytes, draw: random.Random) -> bytes:
    """A file of JSON of which some values are others, or left out; the hash of a manifest is right again."""
    whole = json.loads(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = whole
        while True:
            places = list(at) if isinstance(at, dict) else range(len(at))
            if not places:
                break
            place = draw.choice(places)
            if isinstance(at[place], dict | list) and draw.random() < 0.8:
                at = at[place]
                continue
            way = draw.randrange(4)
            if way == 0:
                del at[place]
            elif way == 1 and isinstance(at[place], int):
                at[place] += draw.choice([-1, 1, 1000, -(2**40)])
            elif way == 2 and isinstance(at, dict):
                at[str(draw.choice(EXTREMES))] = at.pop(place)
            else:
                at[place] = draw.choice(EXTREMES)
            break
    if "self" in whole:
        whole["self"] = hash_of_rest(whole)
    return canonical_json(whole)


def read(name: str, folder: Path) -> list[object]:
    return ["pack", folder / name, "--output", folder / "out", *FLAGS]


Prepare = Callable[[Run, Path, list[object]], tuple[Path, list[object]]]
"""Makes a file that is sound; returns it with the command that reads it."""


def as_input(suffix: str, make: Callable[[Path], Any]) -> Prepare:
    def prepare(run: Run, folder: Path, raw_flags: list[object]) -> tuple[Path, list[object]]:
        make(folder / f"in{suffix}")
        return folder / f"in{suffix}", read(f"in{suffix}", folder)

    return prepare


def of_output(name: str, *command: object) -> Prepare:
    def prepare(run: Run, folder: Path, raw_flags: list[object]) -> tuple[Path, list[object]]:
        splits = {name: datasets.Dataset(table(ROWS)) for name in ("a", "b")}
        datasets.DatasetDict(splits).save_to_disk(str(folder / "in"))
        assert run(*read("in", folder)).code == 0
        told = [folder / one if one in ("in", "out") else one for one in command]
        return folder / "out" / name, told

    return prepare


CHATS = [{"messages": chat("why?", "because"), "id": number} for number in range(40)]


def of_chats(name: str, target: str = "") -> Prepare:
    """Chats, of which the file itself is changed, or one that is needed to read them."""

    def prepare(run: Run, folder: Path, raw_flags: list[object]) -> tuple[Path, list[object]]:
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(CHATS), folder / name)
        else:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in CHATS))
        tokenizer, template = folder / "tokenizer", folder / "own.jinja"
        shutil.copytree(str(raw_flags[1]), tokenizer)
        shutil.copy(str(raw_flags[3]), template)
        flags = ["--tokenizer", tokenizer, "--chat-template", template, "--num-workers", "1"]
        return folder / (target or name), ["tokenize", folder / name, "--output", folder / "out", *flags]

    return prepare


def job(run: Run, folder: Path, raw_flags: list[object]) -> tuple[Path, list[object]]:
    write_jsonl(ROWS, folder / "in.jsonl")
    told = f"input: [{folder}/in.jsonl]\noutput: {folder}/out\nmax_length: 60\nset: {{}}\nseed: 3\n"
    (folder / "job.yaml").write_text(told)
    return folder / "job.yaml", ["pack", "--config", folder / "job.yaml", "--output", folder / "out"]


PACK = ["pack", "in", "--output", "out", *FLAGS]
KINDS: dict[str, Prepare] = {
    "parquet": as_input(".parquet", lambda path: pq.write_table(table(ROWS), path)),
    "arrow": as_input(".arrow", lambda path: stream(ROWS, path)),
    "lz4": as_input(".arrow", lambda path: stream(ROWS, path, compression="lz4")),
    "jsonl": as_input(".jsonl", lambda path: write_jsonl(ROWS, path)),
    "gzip": as_input(".jsonl.gz", lambda path: path.write_bytes(gzip.compress(json_lines(ROWS)))),
    "zstd": as_input(".jsonl.zst", lambda path: path.write_bytes(zstandard.compress(json_lines(ROWS)))),
    "array": as_input(".json", lambda path: path.write_text(json.dumps(ROWS))),
    "chats in jsonl": of_chats("in.jsonl"),
    "chats in parquet": of_chats("in.parquet"),
    "template": of_chats("in.jsonl", "own.jinja"),
    "tokenizer": of_chats("in.jsonl", "tokenizer/tokenizer.json"),
    "tokenizer's options": of_chats("in.jsonl", "tokenizer/tokenizer_config.json"),
    "job": job,
    "manifest": of_output("manifest.json", *PACK),
    "manifest, verified": of_output("manifest.json", "verify", "out"),
    "manifest, appended to": of_output("manifest.json", *PACK, "--append"),
    "manifest, forged": of_output("manifest.json", "verify", "out"),
    "manifest, forged and appended to": of_output("manifest.json", *PACK, "--append"),
    "manifest, forged and packed": of_output("manifest.json", "pack", "out", "--unpack", "--output", "again", *FLAGS),
    "state": of_output("a/state.json", "verify", "out"),
    "state, packed": of_output("a/state.json", "pack", "out", "--unpack", "--output", "again", *FLAGS),
    "state, forged": of_output("a/state.json", "pack", "out", "--unpack", "--output", "again", *FLAGS),
    "splits, packed": of_output("dataset_dict.json", "pack", "out", "--unpack", "--output", "again", *FLAGS),
}


def attack(kind: str, run: Run, folder: Path, raw_flags: list[object], seed: int, cases: int) -> None:
    """So many mutations of one kind of file."""
    target, command = KINDS[kind](run, folder, raw_flags)
    command = [folder / "again" if one == "again" else one for one in command]
    original, draw = target.read_bytes(), random.Random(f"{kind}{seed}")
    assert run(*command).code == 0, "what is not damaged is read, and this process is warm"
    if not target.is_relative_to(folder / "out"):
        shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.rmtree(folder / "again", ignore_errors=True)
    outputs = [folder / "again", *([] if target.is_relative_to(folder / "out") else [folder / "out"])]
    before = {path for path in folder.rglob("*") if "cache" not in path.parts}
    for case in range(cases):
        target.write_bytes(forged(original, draw) if "forged" in kind else mutated(original, draw))
        started = time.monotonic()
        code, said, _ = forked(command, folder)
        what = f"{kind}, case {case} of seed {seed}: exit code {code}: {said[-500:]}"
        assert code in (0, 2, 3, 4), what
        assert "Traceback" not in said and "a bug of ours" not in said, what
        assert code in (0, 4) or said.count("ERROR:") + said.count("Error:") >= 1, what
        assert time.monotonic() - started < SECONDS, what
        for output in outputs:
            shutil.rmtree(output, ignore_errors=True)
        left = {path for path in folder.rglob("*") if "cache" not in path.parts} - before - {folder / "said"}
        if target.is_relative_to(folder / "out"):
            left = {path for path in left if not path.is_relative_to(folder / "out")}
        assert not left, f"{what}: it left {left}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gets_one_message(run: Run, tmp_path: Path, flags: list[object], kind: str) -> None:
    attack(kind, run, tmp_path, flags, seed=0, cases=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(run: Run, tmp_path: Path, flags: list[object], kind: str, seed: int) -> None:
    attack(kind, run, tmp_path, flags, seed=seed, cases=100)


def test_paths_that_lead_outside(run: Run, tmp_path: Path) -> None:
    datasets.Dataset(table(ROWS)).save_to_disk(str(tmp_path / "in"))
    out = tmp_path / "out"
    assert run(*read("in", tmp_path)).code == 0
    stream(ROWS, tmp_path / "elsewhere.arrow")
    state = json.loads((tmp_path / "in" / "state.json").read_text())
    for name in ("../elsewhere.arrow", str(tmp_path / "elsewhere.arrow"), "..", ""):
        state["_data_files"] = [{"filename": name}]
        (tmp_path / "in" / "state.json").write_text(json.dumps(state))
        ended = run("pack", tmp_path / "in", "--output", tmp_path / "other", *FLAGS)
        assert (ended.code, "tampered" in ended.err) == (3, True), ended.err
    manifest = json.loads((out / "manifest.json").read_text())
    shard = next(name for name in manifest["files"] if name.endswith(".arrow"))
    for name in ("../stolen.arrow", "/etc/passwd", "a/../../x.arrow"):
        forged = manifest | {"files": manifest["files"] | {name: manifest["files"][shard]}}
        forged["self"] = hash_of_rest(forged)
        (out / "manifest.json").write_text(json.dumps(forged, indent=1, sort_keys=True) + "\n")
        for command in (["verify", out], [*read("in", tmp_path), "--append"], [*read("in", tmp_path), "--overwrite"]):
            ended = run(*command)
            assert (ended.code in (2, 3, 4) and "could lie anywhere" in ended.err + ended.out) or ended.code == 3, (
                ended.err
            )
        assert not (tmp_path / "stolen.arrow").exists()
