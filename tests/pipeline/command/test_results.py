"""What a command prints where it succeeds: the result alone on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

from tests.conftest import Ended, Run
from tests.pipeline.command.conftest import ROWS
from tests.pipeline.command.processes import ROOT
from tests.pipeline.samples import save


def test_stdout_has_the_result_only(run: Run, tmp_path: Path, source: Path) -> None:
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--json")
    assert len(ended.out.strip().splitlines()) == 1
    assert ended.json["status"] == "packed"
    assert ended.json["output"] == str(tmp_path / "out")
    table = run("pack", source, "--output", tmp_path / "table", "--max-length", 60)
    assert f"{ended.json['packs']:,} of 60 tokens" in table.out
    assert f"{ended.json['fill']:.4%}" in table.out
    assert "\x1b" not in table.out + table.err


def test_dry_run_reports_what_is_too_long(run: Run, source: Path) -> None:
    ended = run("pack", source, "--max-length", 20, "--dry-run", "--json")
    assert ended.code == 0
    long = [len(row["input_ids"]) for row in ROWS if len(row["input_ids"]) > 20]
    assert ended.json["overlong"] == {"samples": len(long), "longest": max(long)}
    assert ended.json["plan"]["counts"]["dropped"]["overlong_dropped"]["samples"] == len(long)
    assert "would refuse" in run("pack", source, "--max-length", 20, "--dry-run").out


def test_what_decides_the_targets_is_told(run: Run, tmp_path: Path, source: Path) -> None:
    bare = save([{"input_ids": row["input_ids"], "goals": row["labels"]} for row in ROWS], tmp_path / "bare")
    assert "every token is trained" in run("pack", bare, "--max-length", 60, "--dry-run").err
    ended = run("pack", source, bare, "--max-length", 60, "--dry-run")
    assert "WARNING" in ended.err
    assert "others have" in ended.err
    ended = run("pack", source, "--max-length", 60, "--dry-run")
    assert "trained" not in ended.err
    trained = sum(label != -100 for row in ROWS for label in row["labels"][1:])
    assert re.search(rf"^targets +{trained:,}, ", ended.out, re.MULTILINE)


def test_strategies_lists_every_name_and_option(run: Run) -> None:
    ended = run("strategies", "--json")
    listed = {entry["name"]: entry for entry in ended.json["strategies"]}
    assert set(listed) >= {
        *("padding", "minibatch", "wrapped", "next-fit", "first-fit", "first-fit-decreasing", "best-fit-decreasing")
    }
    assert listed["wrapped"]["aliases"] == ["random"]
    assert {option["name"] for option in listed["minibatch"]["options"]} == {"batch_size", "shuffle"}
    text = run("strategies").out
    assert "alias greedy" in text
    assert "--set batch_size=..." in text


def test_progress_bars_on_a_terminal_only(run: Run, tmp_path: Path, source: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = ["-m", "pipeline", "pack", str(source), "--output", str(tmp_path / "out"), "--max-length", "60"]
    ended = subprocess.run([sys.executable, *command], check=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a pseudo-terminal ends
        while block := os.read(ours, 65536):
            shown += block
    os.close(ours)
    assert b"writing" in shown
    assert b"tok/s" in shown
    assert b"writing" not in ended.stdout
    assert "tok/s" not in run("pack", source, "--output", tmp_path / "again", "--max-length", 60).err


def object_of(ended: Ended) -> dict[str, Any]:
    """The one object on stdout of a command that succeeded."""
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1
    return ended.json


def test_objects_of_pack_and_verify_say_what_was_done(run: Run, tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    pack = ["pack", source, "--max-length", 60, "--json"]
    planned = object_of(run(*pack, "--dry-run"))
    packed = object_of(run(*pack, "--output", out))
    again = object_of(run(*pack, "--output", out))
    verified = object_of(run("verify", out, "--source", source, "--json"))
    statuses = [value["status"] for value in (planned, packed, again, verified)]
    assert statuses == ["planned", "packed", "up_to_date", "verified"]
    assert planned["plan"]["packs"] == packed["packs"] == verified["packs"] > 1
    assert {**again, "seconds": 0} == {**packed, "seconds": 0, "status": "up_to_date"}
    assert packed["output"] == str(out)
    assert (verified["exit_code"], verified["ok"], verified["source"], verified["problems"]) == (0, True, True, [])


def test_objects_of_tokenize_say_what_was_done(run: Run, tmp_path: Path, tokenizer_dir: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_text('{"text": "abc"}\n{"text": "de"}\n')
    tokenize = ["tokenize", raw, "--output", tmp_path / "out", "--tokenizer", tokenizer_dir, "--json"]
    done, again = (object_of(run(*tokenize)) for _ in range(2))
    assert (done["status"], again["status"]) == ("tokenized", "up_to_date")
    assert (done["output"], done["counts"]["samples"], done["tokenizer"]["name"]) == (str(tmp_path / "out"), 2, "small")
    assert {**again, "seconds": 0} == {**done, "seconds": 0, "status": "up_to_date"}
