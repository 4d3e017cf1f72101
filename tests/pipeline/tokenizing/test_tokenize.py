"""`tokenize`: what is written, what is refused, what is left out, and that it is all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.tokenizing import shards
from tests.conftest import Run, left_behind
from tests.pipeline.chats import chat, template
from tests.pipeline.tokenizing.conftest import Lines, manifest_of

ODD_TEXTS = [
    "CR LF\r\nLF\nCR\rend",
    "line\u2028separator, paragraph\u2029separator, next\u0085line",
    "😀 👩‍👩‍👧‍👦 é\u0301",
    "مرحبا بالعالم \u200fשלום\u200e",
    "x" * 100_000,
    "\ttabs\t and  two spaces ",
    "\x00\x01 control \x7f",
]


def test_a_chat_as_a_dataset(run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any) -> None:
    ended = run("tokenize", lines([{"messages": chat("a?", "b.")}]), "--output", tmp_path / "out", *flags, "--json")
    assert ended.code == 0
    dataset = datasets.load_from_disk(str(tmp_path / "out"))
    assert dataset.column_names == ["input_ids", "labels"]
    assert (
        whole.decode(dataset[0]["input_ids"]) == "<|im_start|>user\na?<|im_end|>\n<|im_start|>assistant\nb.<|im_end|>\n"
    )
    trained = [token for token in dataset[0]["labels"] if token != -100]
    assert whole.decode(trained) == "b.<|im_end|>"
    counts = {"rows": 1, "samples": 1, "tokens": len(dataset[0]["input_ids"]), "targets": len(trained), "dropped": {}}
    counts |= {"targets_by_kind": {"answer": len(trained) - 1, "end": 1}, "unread": {}, "unread_keys": {}}
    counts |= {"turns": 2, "turns_trained": 1, "reasoning_left_out": 0}
    assert ended.json["counts"] == counts == manifest_of(tmp_path / "out")["counts"]
    assert ended.json["tokenizer"]["name"] == "small"
    assert "format messages (messages)" in ended.err


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_text_comes_through_exactly(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any, text: str
) -> None:
    source = lines([{"text": text}])
    assert run("tokenize", source, "--output", tmp_path / "text", *flags[:2], "--keep-text").code == 0
    row = datasets.load_from_disk(str(tmp_path / "text"))[0]
    assert whole.decode(row["input_ids"]) == text == row["text"]
    assert row["labels"] == row["input_ids"]
    source = lines([{"messages": chat(text, text)}])
    assert run("tokenize", source, "--output", tmp_path / "chat", *flags).code == 0
    row = datasets.load_from_disk(str(tmp_path / "chat"))[0]
    assert whole.decode([token for token in row["labels"] if token != -100]) == text + "<|im_end|>"
    assert whole.decode(row["input_ids"]).count(text) == 2


def test_pairs_without_a_template(run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any) -> None:
    source = lines([{"prompt": "two and two is ", "completion": "four"}])
    ended = run("tokenize", source, "--output", tmp_path / "bare", *flags[:2])
    row = datasets.load_from_disk(str(tmp_path / "bare"))[0]
    assert whole.decode(row["input_ids"]) == "two and two is four"
    assert "1 sample" in ended.err and "ends without an end token" in ended.err
    ended = run("tokenize", source, "--output", tmp_path / "eos", *flags[:2], "--append-eos")
    row = datasets.load_from_disk(str(tmp_path / "eos"))[0]
    assert whole.decode(row["input_ids"]) == "two and two is four</s>"
    assert whole.decode([token for token in row["labels"] if token != -100]).lstrip() == "four</s>"
    assert "WARNING" not in ended.err


def test_no_double_beginning_and_no_double_end(
    run: Run, tmp_path: Path, lines: Lines, whole: Any, tokenizer_dir: Path
) -> None:
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", whole.bos_token_id)]
    )
    type(whole)(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(str(tmp_path / "bos"))
    texts = ["plain", "<s>begun", "<s>begun and ended</s>"]
    source = lines([{"text": text} for text in texts])
    ended = run("tokenize", source, "--output", tmp_path / "o", "--tokenizer", tmp_path / "bos", "--append-eos")
    found = [whole.decode(ids) for ids in datasets.load_from_disk(str(tmp_path / "o"))["input_ids"]]
    assert found == ["<s>plain</s>", "<s>begun</s>", "<s>begun and ended</s>"]
    assert "2 samples" in ended.err and "a template applied" in ended.err
    # A template writes its own; the tokenizer must not add another.
    path = tmp_path / "mistral.jinja"
    path.write_text(template("mistral", marks=False))
    run("tokenize", lines([{"messages": chat("a", "b")}]), "--output", tmp_path / "c", "--tokenizer", tmp_path / "bos",
        "--chat-template", path)  # fmt: skip
    assert whole.decode(datasets.load_from_disk(str(tmp_path / "c"))[0]["input_ids"]) == "<s>[INST] a [/INST] b</s>"


def test_a_bare_tokenizer_json(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path, whole: Any) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    source = lines([{"text": "abc"}])
    bare = tokenizer_dir / "tokenizer.json"
    assert run("tokenize", source, "--output", tmp_path / "a", "--tokenizer", bare).code == 0
    ended = run("tokenize", source, "--output", tmp_path / "b", "--tokenizer", bare, "--append-eos")
    assert ended.code == 2 and "names no end token" in ended.err
    one = Tokenizer(models.BPE())
    one.pre_tokenizer, one.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    one.train_from_iterator(["abc"], trainers.BpeTrainer(special_tokens=["<end>"], show_progress=False))
    one.save(str(tmp_path / "one.json"))
    ended = run("tokenize", source, "--output", tmp_path / "c", "--tokenizer", tmp_path / "one.json", "--append-eos")
    assert ended.code == 0 and "<end>" in ended.err
    assert datasets.load_from_disk(str(tmp_path / "c"))[0]["input_ids"][-1] == one.token_to_id("<end>")


BAD = [
    {"messages": chat("a", "b")},
    {"messages": chat("a", "")},
    {"messages": chat("a")},
    "{not json",
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]},
    {"messages": chat("c", "d")},
    {"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "x"}]},
]


def test_a_bad_row_is_refused_by_name(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    ended = run("tokenize", lines(BAD[:2]), "--output", tmp_path / "out", *flags)
    assert ended.code == 3
    error = ended.err.splitlines()[-1]
    assert (
        "rows.jsonl, row 1: column 'messages', turn 1 (assistant): it is empty" in error and "--on-error drop" in error
    )
    assert left_behind(tmp_path) == ["chatml.jinja", "rows.jsonl"]


def test_bad_rows_are_left_out_counted_and_listed(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], whole: Any
) -> None:
    rows = [json.dumps(row) if isinstance(row, dict) else row for row in BAD]
    sources = [lines(rows, "one.jsonl"), lines([*rows[:2], "", rows[5]], "two.jsonl")]
    ended = run("tokenize", *sources, "--output", tmp_path / "out", *flags, "--on-error", "drop", "--json")
    assert ended.code == 0, ended.err
    dataset = datasets.load_from_disk(str(tmp_path / "out"))
    assert dataset["source_row"] == [0, 5, 7, 9]
    dropped = {"empty_turn": 2, "no_assistant_turn": 1, "unreadable": 1, "null_content": 1, "not_text": 1}
    assert ended.json["counts"]["dropped"] == dropped
    assert "6 rows left out" in ended.err
    listed = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(one["row"], one["file"], one["file_row"], one["reason"]) for one in listed] == [
        (1, "one.jsonl", 1, "empty_turn"),
        (2, "one.jsonl", 2, "no_assistant_turn"),
        (3, "one.jsonl", 3, "unreadable"),
        (4, "one.jsonl", 4, "null_content"),
        (6, "one.jsonl", 6, "not_text"),
        (8, "two.jsonl", 1, "empty_turn"),
    ]
    assert "dropped.jsonl" in manifest_of(tmp_path / "out")["files"]


def test_the_old_value_skip_means_drop_for_one_version(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object]
) -> None:
    source, job = lines(BAD[:2]), tmp_path / "job.yaml"
    tokenize = ["tokenize", source, "--output", tmp_path / "out", *flags]
    ended = run(*tokenize, "--on-error", "skip", "--json")
    assert ended.code == 0, ended.err
    assert "WARNING: --on-error skip is now called drop; the next version will refuse it" in ended.err
    assert ended.json["counts"]["dropped"] == {"empty_turn": 1}
    assert manifest_of(tmp_path / "out")["config"]["on_error"] == "drop"
    ended = run(*tokenize, "--on-error", "drop", "--json")
    assert ended.json["status"] == "up_to_date" and "is now called" not in ended.err
    job.write_text("on_error: skip\nmax_length: 99\n")
    ended = run("pack", source, *flags, "--config", job, "--dry-run", "--json")
    assert "skip is now called drop" in ended.err
    assert ended.json["options"]["on_error"] == {"value": "drop", "source": "file"}


def test_a_broken_first_row(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    source = lines(["{not json", "{}", json.dumps(BAD[0])])
    ended = run("tokenize", source, "--output", tmp_path / "out", *flags)
    assert ended.code == 3 and "row 0: not valid JSON" in ended.err and "--on-error drop" in ended.err
    ended = run("tokenize", source, "--output", tmp_path / "out", *flags, "--on-error", "drop", "--json")
    assert ended.json["counts"]["dropped"] == {"unreadable": 1, "null_content": 1}
    ended = run("tokenize", lines(["{not json"]), "--output", tmp_path / "none", *flags, "--on-error", "drop")
    assert ended.code == 3 and "row 0: not valid JSON" in ended.err


def test_rows_left_out_fill_shards_too(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    source = lines([BAD[1]] * 3000)
    assert run("tokenize", source, "--output", tmp_path / "out", *flags, "--on-error", "drop").code == 0
    assert len(list((tmp_path / "out").glob("*.arrow"))) > 1
    assert len((tmp_path / "out" / "dropped.jsonl").read_text().splitlines()) == 3000


def test_an_output_elsewhere(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    source = lines([{"messages": chat("a", "b")}])
    for command in (["tokenize"], ["pack", "--max-length", 99]):
        ended = run(*command, source, "--output", "gs://bucket/out", *flags)
        assert ended.code == 2 and "only s3://" in ended.err
    assert not Path("gs:").exists()


def test_a_template_that_refuses(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path) -> None:
    path = tmp_path / "gemma.jinja"
    path.write_text(template("gemma", marks=False))
    rows = [{"messages": chat("a", "b")}, {"messages": [*chat("a"), *chat("b", "c")]}]
    flags = ["--tokenizer", tokenizer_dir, "--chat-template", path]
    ended = run("tokenize", lines(rows), "--output", tmp_path / "out", *flags)
    assert ended.code == 3
    assert "row 1: the template refuses it: user and assistant take turns, the user first; " in ended.err
    assert "gemma.jinja says so itself: change the chat, or give" in ended.err
    ended = run("tokenize", lines(rows), "--output", tmp_path / "out", *flags, "--on-error", "drop", "--json")
    assert ended.json["counts"]["dropped"] == {"template_refused": 1}


@pytest.mark.parametrize(
    ("rows", "more", "code", "told"),
    [
        ([{"messages": chat("a", "b")}], [], 2, "has no chat template"),
        ([{"text": "a"}], ["--train-on", "assistant"], 2, "plain text has no assistant"),
        ([{"text": "a"}], ["--map", "txt=text"], 2, "did you mean 'text'"),
        ([{"text": "a"}], ["--chat-template", "missing.jinja"], 2, "missing.jinja"),
        ([{"text": "a"}], ["--append-eos", "--turn-end", "next"], 2, "--turn-end next has no effect: --append-eos"),
        ([{"body": "a"}], [], 3, "no known format fits the columns (body)"),
        ([{"text": "a"}], ["--tokenizer", "/no/such"], 2, "no such file or directory"),
        ([{"text": "a"}], ["--tokenizer", "such.json"], 2, "no such file or directory"),
        ([{"text": "a"}], ["--tokenizer", "no-such/tokenizer"], 2, "no-such/tokenizer"),
        ([{"text": "a"}], ["--tokenizer", "."], 2, "no tokenizer can be loaded"),
    ],
)
def test_mistakes(
    run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path, rows: list[Any], more: list[str], code: int, told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source = lines(rows)
    monkeypatch.chdir(tmp_path)
    ended = run("tokenize", source, "--output", tmp_path / "out", "--tokenizer", tokenizer_dir, *more)
    assert ended.code == code, ended.err
    assert told in ended.err.splitlines()[-1]
    assert left_behind(tmp_path) == ["rows.jsonl"]


def test_a_broken_template(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}\n{{ m.role }")
    source = lines([{"messages": chat("a", "b")}])
    ended = run("tokenize", source, "--output", tmp_path / "o", "--tokenizer", tokenizer_dir, "--chat-template", path)
    assert ended.code == 2 and "broken.jinja, line 2: not valid Jinja" in ended.err


def test_splits_stay_splits(run: Run, tmp_path: Path, flags: list[object]) -> None:
    parts = {name: datasets.Dataset.from_list([{"messages": chat(name, "b")}] * n) for name, n in (("b", 2), ("a", 1))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "in"))
    assert run("tokenize", tmp_path / "in", "--output", tmp_path / "out", *flags).code == 0
    found = datasets.load_from_disk(str(tmp_path / "out"))
    assert {name: part.num_rows for name, part in found.items()} == {"b": 2, "a": 1}
    assert manifest_of(tmp_path / "out")["splits"]["b"]["counts"]["samples"] == 2
    assert run("tokenize", tmp_path / "in", "--output", tmp_path / "one", *flags, "--split", "a").code == 0
    assert datasets.load_from_disk(str(tmp_path / "one")).num_rows == 1


@pytest.mark.parametrize("rows", [[], [{"messages": chat("a", "")}]], ids=["no rows", "all left out"])
def test_nothing_to_tokenise(run: Run, tmp_path: Path, lines: Lines, flags: list[object], rows: list[Any]) -> None:
    ended = run("tokenize", lines(rows), "--output", tmp_path / "out", *flags, "--on-error", "drop")
    assert ended.code == 0, ended.err
    assert datasets.load_from_disk(str(tmp_path / "out")).num_rows == 0


def test_a_job_file(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path) -> None:
    source = lines([{"question": "q", "answer": "a"}])
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: {source}\noutput: {tmp_path / 'out'}\ntokenizer: {tokenizer_dir}\n"
        "map: {prompt: question, completion: answer}\nappend_eos: true\n"
    )
    ended = run("tokenize", "--config", job)
    assert ended.code == 0, ended.err
    job.write_text(
        job.read_text().replace("{prompt: question, completion: answer}", "prompt=question,completion=answer")
    )
    assert "up to date" in run("tokenize", "--config", job).out
    assert manifest_of(tmp_path / "out")["config"]["map"] == {"prompt": "question", "completion": "answer"}
