"""Files that were damaged or tampered with: one message and an exit code, whatever the bytes; no other file."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run
from tests.pipeline.chats import chat
from tests.pipeline.hostile.processes import SECONDS, forked
from tests.pipeline.reading.inputs import stream
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


def raw(run: Run, folder: Path, raw_flags: list[object]) -> tuple[Path, list[object]]:
    rows = [{"messages": chat("why?", "because"), "id": number} for number in range(40)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "in.jsonl", ["tokenize", folder / "in.jsonl", "--output", folder / "out", *raw_flags]


def job(run: Run, folder: Path, raw_flags: list[object]) -> tuple[Path, list[object]]:
    write_jsonl(ROWS, folder / "in.jsonl")
    told = f"input: [{folder}/in.jsonl]\noutput: {folder}/out\nmax_length: 60\nset: {{}}\nseed: 3\n"
    (folder / "job.yaml").write_text(told)
    return folder / "job.yaml", ["pack", folder / "in.jsonl", "--config", folder / "job.yaml"]


PACK = ["pack", "in", "--output", "out", *FLAGS]
KINDS: dict[str, Prepare] = {
    "parquet": as_input(".parquet", lambda path: pq.write_table(table(ROWS), path)),
    "arrow": as_input(".arrow", lambda path: stream(ROWS, path)),
    "lz4": as_input(".arrow", lambda path: stream(ROWS, path, compression="lz4")),
    "jsonl": as_input(".jsonl", lambda path: write_jsonl(ROWS, path)),
    "raw": raw,
    "job": job,
    "manifest": of_output("manifest.json", *PACK),
    "manifest, verified": of_output("manifest.json", "verify", "out"),
    "manifest, appended to": of_output("manifest.json", *PACK, "--append"),
    "state": of_output("a/state.json", "verify", "out"),
    "state, packed": of_output("a/state.json", "pack", "out", "--unpack", "--output", "again", *FLAGS),
    "splits, packed": of_output("dataset_dict.json", "pack", "out", "--unpack", "--output", "again", *FLAGS),
}


def attack(kind: str, run: Run, folder: Path, raw_flags: list[object], seed: int, cases: int) -> None:
    """So many mutations of one kind of file."""
    target, command = KINDS[kind](run, folder, raw_flags)
    command = [folder / "again" if one == "again" else one for one in command]
    original, draw = target.read_bytes(), random.Random(f"{kind}{seed}")
    outputs = [folder / "again", *([] if target.is_relative_to(folder / "out") else [folder / "out"])]
    before = {path for path in folder.rglob("*") if "cache" not in path.parts}
    for case in range(cases):
        target.write_bytes(mutated(original, draw))
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
    attack(kind, run, tmp_path, flags, seed=0, cases=3 if kind == "raw" else 8)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 7))
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(run: Run, tmp_path: Path, flags: list[object], kind: str, seed: int) -> None:
    attack(kind, run, tmp_path, flags, seed=seed, cases=140)


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
