"""What schedulers read: logs as JSON lines, metrics, the exit code of a run that is up to date; and hashes anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ExitCode
from pipeline.command.metrics import LABELS, OF_ALL_RUNS, OF_SUCCESSES, PREFIX
from pipeline.format.manifest import PackManifest, read_manifest
from tests.conftest import Ended, Run
from tests.pipeline.samples import random_rows, write_jsonl

NEEDS_CLIENT = pytest.mark.needs("prometheus_client")
Series = dict[tuple[str, str], float]
"""(name without prefix, what its own label says) -> value."""


def lines_of(text: str) -> list[dict[str, Any]]:
    """JSON lines; anything else among them is a fault."""
    return [json.loads(line) for line in text.splitlines()]


def series_of(path: Path, command: str = "pack") -> Series:
    """What Prometheus would read."""
    from prometheus_client.parser import text_string_to_metric_families

    found: Series = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.type == "gauge" and family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("job_name"), labels.pop("command")) == (path.stem, command)
            name = sample.name.removeprefix(PREFIX)
            assert set(labels) == ({LABELS[name]} if name in LABELS else set())
            found[name, "".join(labels.values())] = sample.value
    return found


def of_successes(series: Series) -> Series:
    return {key: value for key, value in series.items() if key[0] in OF_SUCCESSES}


def test_a_log_of_json_lines_alone(run: Run, tmp_path: Path, source: Path) -> None:
    pack = ["pack", source, "--output", tmp_path / "out", "--max-length", 60, "--log-format", "json"]
    ended = run(*pack, "--log-file", tmp_path / "log")
    assert ended.code == 0
    lines = lines_of(ended.err)
    assert lines == lines_of((tmp_path / "log").read_text())
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    run_id = read_manifest(tmp_path / "out").run_id
    known = [line.get("run_id") for line in lines]
    assert set(known[known.index(run_id) :]) == {run_id}, "once it is known, every line has it"
    stages = [line["stage"] for line in lines if "seconds" in line and "stage" in line]
    assert stages == ["hashing inputs", "planning", "writing"]
    assert lines[-1]["status"] == "packed"
    assert "packs" in ended.out, "the result stays what it was"

    text = run(*pack[:-2], "--log-file", tmp_path / "text")
    assert text.err == "", "a person is told by the result"
    assert f"run {run_id}" in (tmp_path / "text").read_text()


def test_failures_in_a_log_of_json_lines(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--output", tmp_path / "out", "--log-format", "json"]
    (line,) = lines_of(run("pack", source, *flags, "--max-lenght", 60).err)
    assert (line["level"], line["exit_code"]) == ("error", 2)
    assert line["message"].startswith("No such option '--max-lenght'")
    assert lines_of(run("pack", tmp_path / "nowhere", *flags, "--max-length", 60).err)[-1]["exit_code"] == 3

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.packing.plan.plan_window", broken)
    *_, traceback, told = lines_of(run("pack", source, *flags, "--max-length", 60, "--debug").err)
    assert traceback["traceback"].rstrip().endswith("RuntimeError: planted")
    assert (told["exit_code"], len(told["run_id"])) == (70, 32)


def test_what_libraries_warn_of_is_a_json_line_too(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging
    import warnings

    from pipeline.packing.steps import cut_windows

    def warning(*arguments: Any) -> Any:
        logging.getLogger("somebody.else").warning("of a library")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("of Python", UserWarning, stacklevel=1)
        return cut_windows(*arguments)

    monkeypatch.setattr("pipeline.packing.run.cut_windows", warning)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--log-format", "json")
    messages = [line["message"] for line in lines_of(ended.err)]
    assert "of a library" in messages
    assert any("UserWarning: of Python" in message for message in messages)


@NEEDS_CLIENT
def test_metrics_of_a_run(run: Run, tmp_path: Path, source: Path) -> None:
    file, out = tmp_path / "nightly.prom", tmp_path / "out"
    pack = ["pack", source, "--output", out, "--overlong", "drop", "--metrics-file", file, "--max-length"]
    assert run(*pack, 40).code == 0
    first, manifest = series_of(file), read_manifest(out)
    assert isinstance(manifest, PackManifest)
    counts = manifest.counts
    assert {name for name, _ in first} == {*OF_ALL_RUNS, *OF_SUCCESSES} - {"rows", "dropped_rows"}
    for name, value in {
        "last_exit_code": 0,
        "up_to_date": 0,
        "samples": counts.samples_packed,
        "tokens": counts.tokens_packed,
        "targets": counts.targets_packed,
        "packs": manifest.packs,
        "fill_ratio": manifest.fill,
    }.items():
        assert first[name, ""] == value
    dropped = {reason: loss.samples for reason, loss in counts.dropped.items()}
    assert dropped["overlong_dropped"] > 0
    assert {reason: first["dropped_samples", reason] for reason in dropped} == dropped
    assert first["dropped_tokens", "overlong_dropped"] == counts.dropped.overlong_dropped.tokens
    stages = {label: value for (name, label), value in first.items() if name == "stage_seconds"}
    assert set(stages) == {"hashing", "planning", "writing"}
    assert 0 < sum(stages.values()) <= first["last_run_duration_seconds", ""]
    assert list(tmp_path.glob("nightly.prom?*")) == [], "it was written in one step"

    assert run(*pack, 40, "--unchanged-exit-code", 99).code == 99
    again = series_of(file)
    assert (again["last_exit_code", ""], again["up_to_date", ""]) == (99, 1)
    assert again["last_success_timestamp_seconds", ""] > first["last_success_timestamp_seconds", ""]
    assert (again["tokens", ""], again["packs", ""]) == (first["tokens", ""], first["packs", ""])


@NEEDS_CLIENT
@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--max-length", 41], 2),
        (["--max-length"], 2),
        (["--max-length", 40, "--sede", 3], 2),
        (["--max-length", 40, "--config", "nowhere.yaml"], 2),
        (["--max-length", 40, "--seed", 5, "--overwrite", "{nowhere}"], 3),
        (["--max-length", 40, "--seed", 6, "--overwrite"], 70),
    ],
    ids=["in the way", "no value", "no such flag", "no job file", "no input", "a bug"],
)
def test_a_failed_run_keeps_the_figures_of_the_last_success(
    run: Run, tmp_path: Path, source: Path, flags: list[object], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nightly.prom"
    pack = ["pack", source, "--output", tmp_path / "out", "--overlong", "drop", "--metrics-file", file]
    assert run(*pack, "--max-length", 40).code == 0
    before = series_of(file)
    if code == ExitCode.BUG:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr("pipeline.packing.run.cut_windows", None)
    nowhere = tmp_path / "nowhere.jsonl"
    assert run(*pack, *[nowhere if flag == "{nowhere}" else flag for flag in flags]).code == code
    after = series_of(file)
    assert of_successes(after) == of_successes(before) != {}
    assert after["last_exit_code", ""] == code
    assert after["last_run_timestamp_seconds", ""] > before["last_run_timestamp_seconds", ""]


@NEEDS_CLIENT
def test_metrics_that_cannot_be_kept_are_told_before_any_work(run: Run, tmp_path: Path, source: Path) -> None:
    pack = ["pack", source, "--output", tmp_path / "out", "--max-length", 60, "--metrics-file"]
    (tmp_path / "notes.prom").write_text("dear diary\n")
    (tmp_path / "node.prom").write_text("# TYPE node_load1 gauge\nnode_load1 0.5\n")
    for name, code, told in (
        ("metrics.txt", 2, "end in .prom"),
        ("no/metrics.prom", 2, "there is no folder"),
        ("notes.prom", 2, "is no file of metrics"),
        ("node.prom", 2, "holds metrics of others (node_load1)"),
    ):
        ended = run(*pack, tmp_path / name)
        assert (ended.code, told in ended.err) == (code, True), ended.err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "notes.prom").read_text() == "dear diary\n"
    (tmp_path / "empty.prom").touch()
    assert run(*pack, tmp_path / "empty.prom").code == 0


@NEEDS_CLIENT
def test_metrics_that_cannot_be_written_end_a_run_that_was_done(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prometheus_client

    def full(path: str, _: object) -> None:
        raise OSError(28, os.strerror(28), path)

    monkeypatch.setattr(prometheus_client, "write_to_textfile", full)
    flags = ["--output", tmp_path / "out", "--max-length", 60, "--metrics-file", tmp_path / "x.prom"]
    ended = run("pack", source, *flags)
    assert (ended.code, "is not renewed: No space left" in ended.err) == (74, True), ended.err
    assert (tmp_path / "out" / "manifest.json").exists()
    assert run("pack", tmp_path / "nowhere", *flags).code == 3, "what went wrong first decides"


@NEEDS_CLIENT
def test_what_only_shows_leaves_metrics_alone(run: Run, tmp_path: Path, source: Path) -> None:
    flags = ["--max-length", 60, "--metrics-file", tmp_path / "x.prom"]
    ended = run("pack", source, *flags, "--dry-run")
    assert (ended.code, "stays as it is" in ended.err) == (0, True), ended.err
    assert not (tmp_path / "x.prom").exists()


@NEEDS_CLIENT
@pytest.mark.needs("transformers")
def test_metrics_of_raw_rows(run: Run, tmp_path: Path, tokenizer_dir: Path) -> None:
    raw = write_jsonl([{"text": "one two"}, {"text": ""}, {"text": "three"}], tmp_path / "raw.jsonl")
    flags = ["--tokenizer", tokenizer_dir, "--on-error", "drop", "--metrics-file"]
    assert run("tokenize", raw, "--output", tmp_path / "tokens", *flags, tmp_path / "t.prom").code == 0
    tokenized = series_of(tmp_path / "t.prom", "tokenize")
    assert (tokenized["rows", ""], tokenized["samples", ""]) == (3, 2)
    assert sum(value for (name, _), value in tokenized.items() if name == "dropped_rows") == 1
    packed = run("pack", raw, "--output", tmp_path / "packed", "--max-length", 60, *flags, tmp_path / "p.prom")
    assert packed.code == 0
    both = series_of(tmp_path / "p.prom")
    assert (both["rows", ""], both["tokens", ""]) == (3, tokenized["tokens", ""])
    again = ["tokenize", raw, "--output", tmp_path / "tokens", *flags[:-1], "--unchanged-exit-code", 7]
    assert run(*again).code == 7


@NEEDS_CLIENT
def test_metrics_of_verify(run: Run, tmp_path: Path, source: Path) -> None:
    file, out = tmp_path / "v.prom", tmp_path / "out"
    assert run("pack", source, "--output", out, "--max-length", 60).code == 0
    assert run("verify", out, "--metrics-file", file).code == 0
    before = series_of(file, "verify")
    assert before["tokens", ""] > 0
    next(out.glob("*.arrow")).unlink()
    assert run("verify", out, "--metrics-file", file).code == 4
    after = series_of(file, "verify")
    assert after["last_exit_code", ""] == 4
    assert of_successes(after) == of_successes(before)


@NEEDS_CLIENT
def test_all_of_it_by_a_job_file(run: Run, tmp_path: Path, source: Path) -> None:
    job, file = tmp_path / "job.yaml", tmp_path / "job.prom"
    text = f"input: {source}\noutput: {tmp_path / 'out'}\nmax_length: 60\nlog_format: json\nrehash: true\n"
    text += f"metrics_file: {file}\nunchanged_exit_code: 99\nlog_file: {tmp_path / 'log'}\n"
    job.write_text(text)
    assert run("pack", "--config", job).code == 0
    ended = run("pack", "--config", job)
    assert ended.code == series_of(file)["last_exit_code", ""] == 99
    assert lines_of(ended.err)[-1]["status"] == "up_to_date"
    assert lines_of((tmp_path / "log").read_text())[-1]["status"] == "up_to_date"
    run_id = read_manifest(tmp_path / "out").run_id
    plain = ["pack", source, "--output", tmp_path / "out", "--max-length", 60, "--json"]
    assert run(*plain).json["run_id"] == run_id, "no part of the identity"
    assert run("pack", "--config", job, "--sede", 3).code == series_of(file)["last_exit_code", ""] == 2
    job.write_text(text.replace("99", "126"))
    assert run("pack", "--config", job).code == 2
    job.write_text(text.replace("log_format", "log_from"))
    ended = run("pack", "--config", job)
    assert (ended.code, "did you mean 'log_format'" in ended.err) == (2, True), ended.err


def test_a_missing_client_is_named_by_its_extra(
    run: Run, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client.parser", None)
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--metrics-file", tmp_path / "x.prom")
    assert (ended.code, "pip install 'tightpack[metrics]'" in ended.err) == (2, True), ended.err


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files may be remembered as soon as they are written."""
    monkeypatch.setattr("pipeline.reading.cache._SETTLED_SECONDS", -1.0)
    yield


@pytest.mark.usefixtures("settled")
def test_remembered_hashes_depend_on_size_time_and_inode(run: Run, tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"]} for row in random_rows(20)]
    data = write_jsonl(rows, tmp_path / "in.jsonl")
    pack = ["pack", data, "--output", tmp_path / "out", "--max-length", 60, "--json"]

    def status(*flags: str) -> Ended:
        return run(*pack, *flags)

    assert status().json["status"] == "packed"
    os.link(data, tmp_path / "other-name")
    data.chmod(0o600)
    before = data.stat()
    content = data.read_text()
    data.write_text(content.replace("1", "2"))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert status().json["status"] == "up_to_date", "nothing shows that it was written to, so it was not read"
    assert status("--rehash").code == 2, "it holds another run"
    assert status().code == 2, "and this is remembered now"

    data.write_text(content)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert status().json["status"] == "up_to_date"
    data.write_text(content.replace("1", "2"))
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 2))
    assert status().code == 2, "a nanosecond is seen"
    replaced = write_jsonl(rows, tmp_path / "new")
    os.utime(replaced, ns=(before.st_atime_ns, before.st_mtime_ns + 2))
    os.replace(replaced, data)
    assert status().json["status"] == "up_to_date", "another inode is seen"


def test_rehash_needs_something_to_hash(run: Run, tmp_path: Path) -> None:
    ended = run("verify", tmp_path, "--rehash")
    assert (ended.code, "--rehash has no effect without --source" in ended.err) == (2, True)
