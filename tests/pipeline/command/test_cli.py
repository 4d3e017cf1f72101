"""The command line contract: options and where they come from, exit codes, messages, stdout and stderr."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import Run, left_behind
from tests.pipeline.samples import random_rows, save

ROOT = Path(__file__).parents[3]
ROWS = random_rows(100)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(ROWS, tmp_path / "in")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def call_main(*arguments: object, after: str = "") -> str:
    """Python code that runs a command and then goes on."""
    lines = [
        "import sys",
        f"sys.argv = {['pipeline', *map(str, arguments)]!r}",
        "from pipeline.command.main import main",
    ]
    lines += ["try: main()", "except SystemExit as end: assert end.code == 0", after]
    return "\n".join(lines)


def not_imported(*modules: str) -> str:
    return f"found = {set(modules)!r} & set(sys.modules)\nassert not found, found"


def test_help_imports_nothing_heavy() -> None:
    heavy = not_imported("torch", "datasets", "numba", "pyarrow", "numpy", "transformers")
    ended = python("-c", call_main("--help", after=heavy))
    assert ended.returncode == 0, ended.stderr
    assert "pack" in ended.stdout


def test_pack_imports_neither_torch_nor_datasets(tmp_path: Path, source: Path) -> None:
    heavy = not_imported("torch", "datasets", "transformers", "pandas")
    ended = python("-c", call_main("pack", source, "--output", tmp_path / "out", "--max-length", 60, after=heavy))
    assert ended.returncode == 0, ended.stderr


def test_stdout_has_the_result_only(run: Run, tmp_path: Path, source: Path) -> None:
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--json")
    assert len(ended.out.strip().splitlines()) == 1
    assert ended.json["status"] == "packed"
    assert ended.json["output"] == str(tmp_path / "out")
    table = run("pack", source, "--output", tmp_path / "table", "--max-length", 60)
    assert f"{ended.json['packs']:,} of 60 tokens" in table.out
    assert f"{ended.json['fill']:.4%}" in table.out
    assert "\x1b" not in table.out + table.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--max-length", "0"], ["--max-length", "0"]),
        (["--max-length", "many"], ["--max-length", "many"]),
        ([], ["--max-length"]),
        (["--max-length", "60", "--strategy", "best-fit-decresing"], ["did you mean 'best-fit-decreasing'"]),
        (["--max-length", "60", "--set", "batch_size=2"], ["'best-fit-decreasing' has no such option"]),
        (
            ["--max-length", "60", "--strategy", "minibatch", "--set", "batchsize=2"],
            ["--set batchsize", "did you mean 'batch_size'"],
        ),
        (
            ["--max-length", "60", "--strategy", "minibatch", "--set", "batch_size=two"],
            ["batch_size", "'two' is no int"],
        ),
        (["--max-length", "60", "--strategy", "minibatch", "--set", "batch_size=0"], ["at least 1"]),
        (["--max-length", "60", "--strategy", "minibatch", "--set", "shuffle=maybe"], ["neither true nor false"]),
        (["--max-length", "60", "--set", "batch_size"], ["KEY=VALUE"]),
        (["--max-length", "60", "--colum", "input_ids=x"], ["--colum", "--column"]),
        (["--max-length", "60", "--column", "label=x"], ["--column label", "did you mean 'labels'"]),
        (["--max-length", "60", "--shard-size", "big"], ["'big' is no size"]),
        (["--max-length", "60", "--overlong", "cut"], ["--overlong", "truncate"]),
        (["--max-length", "60", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--max-length", "16777216", "--strategy", "minibatch", "--set", "batch_size=1000"], ["at most 1073741824"]),
    ],
)
def test_usage_errors(run: Run, tmp_path: Path, source: Path, flags: list[str], told: list[str]) -> None:
    before = left_behind(tmp_path)
    ended = run("pack", source, "--output", tmp_path / "new" / "out", *flags)
    assert ended.code == 2, ended.err
    assert ended.out == ""
    for word in told:
        assert word in ended.err
    assert left_behind(tmp_path) == before


def test_output_is_required_but_for_a_dry_run(run: Run, source: Path) -> None:
    ended = run("pack", source, "--max-length", 60)
    assert ended.code == 2
    assert "--output" in ended.err
    assert run("pack", source, "--max-length", 60, "--dry-run").code == 0


def test_dry_run_shows_options_with_their_sources_and_writes_nothing(run: Run, tmp_path: Path, source: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("max_length: 60\nseed: 3\nstrategy: minibatch\nset: {batch_size: 2, shuffle: true}\n")
    before = left_behind(tmp_path)
    flags = ["--config", job, "--seed", 4, "--set", "batch_size=5", "--dry-run"]
    ended = run("pack", source, "--output", tmp_path / "out", *flags, "--json")
    assert ended.code == 0, ended.err
    options = ended.json["options"]
    assert options["max_length"] == {"value": 60, "source": "file"}
    assert options["seed"] == {"value": 4, "source": "flag"}
    assert options["input"] == {"value": [str(source)], "source": "flag"}
    assert options["num_workers"]["source"] == "default"
    assert options["overlong"] == {"value": "error", "source": "default"}
    assert options["set"] == {
        "batch_size": {"value": 5, "source": "flag"},
        "shuffle": {"value": True, "source": "file"},
    }
    assert left_behind(tmp_path) == before
    real = run("pack", source, "--output", tmp_path / "out", *flags[:-1], "--json").json
    assert {key: real[key] for key in ended.json["plan"]} == ended.json["plan"]
    assert "4  (flag)" in run("pack", source, *flags).out


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


def test_dry_run_reports_what_is_too_long(run: Run, source: Path) -> None:
    ended = run("pack", source, "--max-length", 20, "--dry-run", "--json")
    assert ended.code == 0
    long = [len(row["input_ids"]) for row in ROWS if len(row["input_ids"]) > 20]
    assert ended.json["overlong"] == {"samples": len(long), "longest": max(long)}
    assert ended.json["plan"]["counts"]["dropped"]["overlong_dropped"]["samples"] == len(long)
    assert "would refuse" in run("pack", source, "--max-length", 20, "--dry-run").out


def test_job_file_alone(run: Run, tmp_path: Path, source: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: [{source}]\noutput: {tmp_path / 'out'}\nmax_length: 60\nshard_size: 1MB\nkeep_untrainable: true\n"
    )
    assert run("pack", "--config", job).code == 0
    by_flags = ["--max-length", 60, "--shard-size", "1MB", "--keep-untrainable"]
    ended = run("pack", source, "--output", tmp_path / "out", *by_flags, "--json")
    assert ended.json["status"] == "up_to_date"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max_lenght: 60", ["unknown key 'max_lenght'", "did you mean 'max_length'"]),
        ("[1, 2]", ["a mapping"]),
        ("max_length: [60]", ["'max_length' must be an integer"]),
        ("max_length: 60.5", ["'max_length' must be an integer"]),
        ("max_length: true", ["'max_length' must be an integer"]),
        ("seed: 2024-01-01", ["'seed' must be an integer"]),
        ("keep_untrainable: 3", ["'keep_untrainable' must be true or false"]),
        ("input: [null]", ["'input' must be a text or a list"]),
        ("column: {input_ids: null}", ["column.input_ids must be a single value"]),
        ("[" * 5000, ["cannot be read"]),
        ("set: 5", ["'set' must be a mapping"]),
        ("max_length: sixty", ["sixty"]),
        ("a: b: c", ["cannot be read"]),
        ("max_length: 60\noverlong: cut", ["overlong", "truncate"]),
    ],
)
def test_bad_job_files(run: Run, tmp_path: Path, source: Path, text: str, told: list[str]) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    ended = run("pack", source, "--output", tmp_path / "out", "--config", job)
    assert ended.code == 2, ended.err
    for word in told:
        assert word in ended.err


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


def test_a_job_file_may_use_hyphens_and_its_set_is_for_its_own_strategy(run: Run, tmp_path: Path, source: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("max-length: 60\nstrategy: minibatch\nset: {batch_size: 2}\n")
    assert (
        run("pack", source, "--config", job, "--dry-run", "--json").json["options"]["set"]["batch_size"]["value"] == 2
    )
    ended = run("pack", source, "--config", job, "--strategy", "next-fit", "--dry-run", "--json")
    assert ended.code == 0
    assert ended.json["options"]["set"] == {}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--strategy", "wrapped", "--overlong", "drop"], "strategy wrapped cuts the stream of tokens"),
        (["--revision", "main"], "no input is a Hub id"),
        (["--subset", "main"], "no input is a Hub id"),
        (["--append-eos"], "without --tokenizer"),
        (["--chat-template", "x.jinja"], "without --tokenizer"),
    ],
)
def test_a_flag_without_effect_is_an_error_that_says_why(
    run: Run, tmp_path: Path, source: Path, flags: list[str], told: str
) -> None:
    before = left_behind(tmp_path)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, *flags)
    assert ended.code == 2
    assert "has no effect" in ended.err
    assert told in ended.err
    assert left_behind(tmp_path) == before
    assert run("verify", tmp_path, "--tokenizer", "gpt2").code == 2
    assert run("verify", tmp_path, "--chat-template", "x.jinja").code == 2


def test_log_file_holds_the_log(run: Run, tmp_path: Path) -> None:
    ended = run(
        "pack", tmp_path / "nowhere", "--output", tmp_path / "out", "--max-length", 9, "--log-file", tmp_path / "l"
    )
    assert ended.code == 3
    assert "no such file" in (tmp_path / "l").read_text()
    assert run("pack", tmp_path, "--max-length", 9, "--log-file", tmp_path / "no" / "l").code == 74


def test_unwritable_places(run: Run, tmp_path: Path, source: Path) -> None:
    ended = run("pack", source, "--output", "/proc/out", "--max-length", 60)
    assert ended.code == 74
    assert "/proc" in ended.err
    (tmp_path / "file").touch()
    ended = run("pack", source, "--output", tmp_path / "file" / "out", "--max-length", 60)
    assert ended.code == 2
    assert len(ended.err.strip().splitlines()) == 1


def test_storage_faults_anywhere_are_told(run: Run, tmp_path: Path, source: Path) -> None:
    assert run("pack", source, "--output", tmp_path / ("x" * 240), "--max-length", 60).code == 74
    with open("/dev/full", "w", encoding="utf-8") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline", "strategies"], check=False, cwd=ROOT, stdout=full, stderr=subprocess.PIPE
        )
    assert ended.returncode == 74
    assert b"Traceback" not in ended.stderr


def test_a_closed_pipe_keeps_the_exit_code(tmp_path: Path) -> None:
    for command, code in ((["strategies"], 0), (["verify", str(tmp_path)], 4)):
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == code
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()


def test_a_bug_is_told_with_a_log_and_a_traceback_only_on_request(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("pipeline.packing.steps.plan_window", broken)
    ended = run("pack", source, "--output", tmp_path / "new" / "out", "--max-length", 60)
    assert ended.code == 70
    assert "planted" in ended.err
    (report,) = tmp_path.glob("tightpack-bug-*.log")
    assert "Traceback" in report.read_text()
    assert str(report) in ended.err
    assert not (tmp_path / "new").exists()


STRATEGY_OF_ANOTHER = """
import numpy as np
from dataclasses import dataclass, field
from strategies import Plan, Strategy

@dataclass(frozen=True, kw_only=True)
class Options:
    backwards: bool = field(default=True, metadata={"help": "last sample first"})

def place(request):
    count = len(request.lengths)
    order = np.arange(count)[::-1] if request.options.backwards else np.arange(count)
    return Plan(segment=order.astype(np.int64), pack_offsets=np.arange(count + 1), report={"seen": count})

def broken(request):
    return Plan(segment=np.zeros(len(request.lengths), np.int64), pack_offsets=np.arange(len(request.lengths) + 1))

SOLO = Strategy(name="solo", place=place, summary="alone, last first", when="to test", options=Options)
BROKEN = Strategy(name="broken", place=broken, summary="loses samples", when="never")
"""


def test_a_strategy_of_another_package(tmp_path: Path, source: Path) -> None:
    package = tmp_path / "site"
    (package / "elsewhere-1.0.dist-info").mkdir(parents=True)
    (package / "elsewhere-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n"
    )
    points = "[pipeline.strategies]\nsolo = elsewhere:SOLO\nbroken = elsewhere:BROKEN\n"
    (package / "elsewhere-1.0.dist-info" / "entry_points.txt").write_text(points)
    (package / "elsewhere.py").write_text(STRATEGY_OF_ANOTHER)
    pack = ["-m", "pipeline", "pack", str(source), "--output", str(tmp_path / "out"), "--max-length", "60"]
    ended = python(*pack, "--strategy", "solo", "--json", PYTHONPATH=str(package))
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["packs"] == result["counts"]["samples_packed"]
    assert result["report"] == {"seen": result["packs"]}
    assert (
        "--set backwards=...  last sample first (bool, default true)"
        in python("-m", "pipeline", "strategies", PYTHONPATH=str(package)).stdout
    )
    (package / "elsewhere-1.0.dist-info" / "entry_points.txt").write_text(points + "gone = nowhere:SOLO\n")
    listed = python("-m", "pipeline", "strategies", PYTHONPATH=str(package))
    assert listed.returncode == 0
    assert "solo" in listed.stdout
    assert "'gone' cannot be loaded from nowhere:SOLO" in listed.stdout
    ended = python(*pack, "--strategy", "gone", PYTHONPATH=str(package))
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
    ended = python(*pack, "--strategy", "broken", "--overwrite", PYTHONPATH=str(package))
    assert ended.returncode == 70
    assert "strategy 'broken' broke its contract" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_read_only_install_without_a_home_still_packs(tmp_path: Path, source: Path) -> None:
    no_place = "import numba.core.caching as caching\ncaching.CacheImpl._locator_classes = []\n"
    ended = python("-c", no_place + call_main("pack", source, "--output", tmp_path / "out", "--max-length", 60))
    assert ended.returncode == 0, ended.stderr
    assert "packed" in ended.stdout
