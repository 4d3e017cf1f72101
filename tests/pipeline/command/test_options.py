"""Options by flag and by job file: where each came from, and every mistake in one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Run, left_behind


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


@pytest.mark.parametrize("flag", ["--json", "--overwrite"])
def test_samples_alone_have_no_result(run: Run, tmp_path: Path, tokenizer_dir: Path, flag: str) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a"}')
    flags = ["--tokenizer", tokenizer_dir, "--show", 1]
    assert run("tokenize", text, *flags).code == 0
    ended = run("tokenize", text, *flags, flag)
    assert (ended.code, f"{flag} has no effect" in ended.err) == (2, True), ended.err


def test_how_a_file_is_read_is_said_once(run: Run, tmp_path: Path, tokenizer_dir: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "a"}')
    ended = run("tokenize", text, "--tokenizer", tokenizer_dir, "--show", 1, "--output", tmp_path / "out")
    assert (ended.code, ended.err.count("format text")) == (0, 1), ended.err


def test_a_dry_run_says_what_is_in_the_way_of_the_output(run: Run, tmp_path: Path, source: Path) -> None:
    flags = ["pack", source, "--output", tmp_path / "out", "--max-length"]
    assert run(*flags, 60).code == 0
    before = left_behind(tmp_path)
    assert "up to date" in run(*flags, 60, "--dry-run").err
    for more, is_told in ([], True), (["--overwrite"], False):
        ended = run(*flags, 61, "--dry-run", *more)
        assert (ended.code, "exit code 2" in ended.err) == (0, is_told), ended.err
    file = next((tmp_path / "out").glob("*.arrow"))
    assert "is a file" in run("pack", source, "--output", file, "--max-length", 60, "--dry-run").err
    assert left_behind(tmp_path) == before


def test_an_option_that_stands_twice_in_a_job_file(run: Run, tmp_path: Path, source: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("max_length: 60\nmax-length: 50\n")
    ended = run("pack", source, "--config", job, "--dry-run")
    assert (ended.code, "the same option" in ended.err) == (2, True), ended.err


def test_job_file_alone(run: Run, tmp_path: Path, source: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: [{source}]\noutput: {tmp_path / 'out'}\nmax_length: 60\nshard_size: 1MB\nkeep_untrainable: true\n"
    )
    assert run("pack", "--config", job).code == 0
    by_flags = ["--max-length", 60, "--shard-size", "1MB", "--keep-untrainable"]
    ended = run("pack", source, "--output", tmp_path / "out", *by_flags, "--json")
    assert ended.json["status"] == "up_to_date"


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
