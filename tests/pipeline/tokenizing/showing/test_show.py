"""What is trained, seen: every token is of one kind, in blocks that a wrong mask makes strike the eye."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from pipeline.format.options import InputOptions, TokenizeOptions
from pipeline.reading.cache import FileCache
from pipeline.reading.decoding.raw import RawBlock
from pipeline.reading.inputs import resolve
from pipeline.tokenizing.encoding import EncodedBlock, Encoder
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.showing.blocks import shown_text
from pipeline.tokenizing.showing.samples import first_samples
from pipeline.tokenizing.tally import RowTally
from pipeline.tokenizing.tokenization import load_tokenization
from tests.conftest import Run, left_behind
from tests.pipeline.chats import chat, template
from tests.pipeline.tokenizing.conftest import Lines
from tests.pipeline.tokenizing.oracle import lines_of
from tests.pipeline.tokenizing.test_chats import AGENT, PLAIN, REASONED, TEMPLATES, TOOL
from tests.pipeline.tokenizing.test_targets import encoder

SYSTEM = {"role": "system", "content": "Be brief."}
THINKING_AGENT: list[dict[str, Any]] = [SYSTEM, *AGENT[:1], {**AGENT[1], "reasoning_content": "look"}, *AGENT[2:]]


def shown(one: Encoder, row: Any, whole: Any) -> tuple[EncodedBlock, list[list[tuple[str, bool, str]]]]:
    """A block of one row, and of each sample its runs of one kind: kind, whether trained, text."""
    found = one.encode(RawBlock(lines_of([row]), 0), tells_kinds=True)
    assert not found.faults, found.faults
    assert len(found.token_kinds) == len(found.input_ids)
    samples: list[list[tuple[str, bool, str]]] = []
    at = 0
    for length in found.lengths:
        runs: list[tuple[str, bool, list[int]]] = []
        for token in range(at, at + length):
            key = (found.token_kinds[token], bool(found.labels[token] != -100))
            if not runs or runs[-1][:2] != key:
                runs.append((*key, []))
            runs[-1][2].append(int(found.input_ids[token]))
        samples.append([(kind, trained, str(whole.decode(ids))) for kind, trained, ids in runs])
        at += length
    return found, samples


AGAIN = [
    *({**turn, "reasoning_content": "think"} if turn["role"] == "assistant" else turn for turn in AGENT),
    {"role": "assistant", "content": "Cold."},
    *REASONED[:2],
]
"""Two answers in a row, the first of which loses what was thought once the second is there."""

CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("qwen2_5", PLAIN, {}),
    ("qwen2_5", {"messages": [SYSTEM, *AGENT], "tools": [TOOL]}, {"tool_calls": "mask"}),
    ("qwen2_5", PLAIN, {"train_on": "last"}),
    ("qwen2_5_training", [SYSTEM, *AGENT], {}),
    ("qwen3", REASONED, {"history": "expand"}),
    ("qwen3", REASONED, {"history": "as-rendered", "reasoning": "mask"}),
    ("qwen3", THINKING_AGENT, {}),
    ("qwen3_training", REASONED, {}),
    ("glm4moe", PLAIN, {"turn_end": "next"}),
    ("glm4moe", PLAIN, {"append_eos": True}),
    ("gptoss", AGENT, {"template_date": "2031-02-03"}),
    ("gptoss", AGAIN, {"template_date": "2031-02-03", "history": "expand"}),
]


@pytest.mark.parametrize(("name", "row", "options"), CASES)
def test_what_somebody_said_is_of_its_own_kind(
    tok: Path, tmp_path: Path, name: str, row: Any, options: dict[str, Any]
) -> None:
    whole = transformers.AutoTokenizer.from_pretrained(tok)
    one = encoder(tok, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), tmp_path, **options)
    found, samples = shown(one, row if isinstance(row, dict) else {"messages": row}, whole)
    targets = [kind for kind, label in zip(found.token_kinds, found.labels.tolist(), strict=True) if label != -100]
    assert {kind: targets.count(kind) for kind in set(targets)} == found.kinds
    assert sum(found.kinds.values()) == len(targets) > 0
    turns: list[dict[str, Any]] = row["messages"] if isinstance(row, dict) else row
    for sample, last in zip(samples, found.turns, strict=True):
        said = {kind: "".join(text for other, _, text in sample if other == kind) for kind, *_ in sample}
        for role, kind in (("system", "system"), ("user", "user"), ("assistant", "answer"), ("tool", "result")):
            words = "".join(turn["content"] for turn in turns[: last + 1] if turn["role"] == role)
            own = said.get(kind, "")
            assert (own if kind != "result" else own.removeprefix("get_weather")) == words, (kind, sample)
        assert not any(trained for kind, trained, _ in sample if kind in ("system", "user", "result", "template"))
        if any(turn.get("tool_calls") for turn in turns):
            assert "get_weather" in said["call"]
        assert all(kind == "end" for kind, _, text in sample if text in ("<|im_end|>", "</s>", "<|return|>"))


@pytest.mark.parametrize("reasoning", ["auto", "mask"])
def test_a_blank_after_a_thought_is_of_the_answer(tok: Path, tmp_path: Path, reasoning: str) -> None:
    """It is of one token with the word after it."""
    whole = transformers.AutoTokenizer.from_pretrained(tok)
    row = {"messages": chat("Hi", "<think>\nso\n</think> because")}
    one = encoder(tok, (TEMPLATES / "qwen2_5.jinja").read_text(encoding="utf-8"), tmp_path, reasoning=reasoning)
    _, (sample,) = shown(one, row, whole)
    thought = ("reasoning", reasoning == "auto", "<think>\nso\n</think>")
    assert sample[-4:-1] == [thought, ("answer", True, " because"), ("end", True, "<|im_end|>")]


def test_what_cannot_be_located_is_text(tok: Path, tmp_path: Path) -> None:
    """A template that changes what users say, with marks round what is generated."""
    source = template("chatml", marks=True).replace("message.content", "message.content | replace('Q', 'QQ')")
    assert source.count("'QQ'") > 1
    whole = transformers.AutoTokenizer.from_pretrained(tok)
    _, (sample,) = shown(encoder(tok, source, tmp_path), {"messages": chat("Q", "A", "Q", "B")}, whole)
    assert [kind for kind, *_ in sample] == ["text", "answer", "end", "text", "answer", "end", "text"]


@pytest.mark.parametrize(
    ("row", "options", "wanted"),
    [
        ({"prompt": "a b", "completion": " c"}, {"append_eos": True}, ["prompt", "answer*", "end*"]),
        ({"prompt": "a b", "completion": " c"}, {"train_on": "all"}, ["prompt*", "answer*"]),
        ({"instruction": "a", "output": "c"}, {}, ["prompt", "answer*"]),
        ({"text": "a b"}, {"append_eos": True}, ["answer*", "end*"]),
    ],
)
def test_rows_without_a_template(tok: Path, row: dict[str, str], options: dict[str, Any], wanted: list[str]) -> None:
    own = load_tokenization(tok, None, TokenizeOptions(**options))
    names = {"prompt": "prompt-completion", "instruction": "instruction", "text": "text"}
    format_ = Format(name=names[next(iter(row))], columns={column: column for column in row})
    whole = transformers.AutoTokenizer.from_pretrained(tok)
    found, (sample,) = shown(Encoder(own.tokenizer, None, format_, own.options), row, whole)
    assert [kind + "*" * trained for kind, trained, _ in sample if kind != "inserted"] == wanted
    assert sum(found.kinds.values()) == int((found.labels != -100).sum())


def test_show(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    source = lines([{"messages": chat("a", "")}, {"messages": chat("a?", "b\nc")}, {"messages": chat("d", "\x1b[31m")}])
    ended = run("tokenize", source, *flags, "--show", 2)
    assert ended.code == 0 and left_behind(tmp_path) == ["chatml.jinja", "rows.jsonl"]
    lead = " " * 28
    assert "row 0: gives no sample (empty_turn)" in ended.out
    assert f"  ⟦b↵\n{lead}c⟧\nend        trained       1  ⟦<|im_end|>⟧\ntemplate " in ended.out
    assert "\\x1b[31m⟧" in ended.out and "\x1b" not in ended.out
    assert "2 samples: " in ended.out and "\nend                2          2\n" in ended.out
    more = ["--show", 9, "--output", tmp_path / "out", "--json"]
    ended = run("tokenize", lines([{"messages": chat("d", "e")}]), *flags, *more)
    assert ended.json["counts"]["samples"] == 1 and "⟦e⟧" in ended.err


def test_warnings_of_what_is_looked_at(run: Run, tmp_path: Path, lines: Lines, flags: list[object]) -> None:
    """Those that a run gives, once."""
    told = [{"role": "user", "content": "a <|im_end|>", "seen": 1}, {"role": "assistant", "content": "b"}]
    source = lines([{"messages": told, "extra": "x"}, {"messages": chat("a", "")}, {"messages": told}])
    words = ["not read: extra (1 row)", "not read: seen (2 turns)", "2 samples, the first in", "special tokens stand"]
    ended = run("tokenize", source, *flags, "--show", 1)
    assert ended.code == 0 and "3 rows looked at" in ended.err and "left out" not in ended.err
    assert [ended.err.count(word) for word in words] == [1, 1, 1, 1]
    drops = [*flags, "--on-error", "drop"]
    ended = run("tokenize", source, *drops, "--show-row", 2)
    assert [ended.err.count(word) for word in words] == [0, 0, 0, 1] and "1 row looked at" in ended.err
    ended = run("tokenize", source, *drops, "--show", 1, "--output", tmp_path / "out")
    assert [ended.err.count(word) for word in words] == [1, 1, 1, 1] and "1 row left out (empty_turn 1)" in ended.err


def test_show_in_colour(lines: Lines, flags: list[object]) -> None:
    inputs = resolve(lines([{"messages": chat("d", "e")}]), InputOptions())
    tokenization = load_tokenization(str(flags[1]), str(flags[3]), TokenizeOptions())
    samples = list(first_samples(inputs, tokenization, FileCache(Path("/nowhere")), 1, RowTally()))
    text = shown_text(samples, tokenization.tokenizer, color=True)
    assert "\x1b[32m\x1b[1me\x1b[0m" in text  # trained: green and bold
    assert "\x1b[2massistant↵\x1b[0m" in text  # the rest: dim
    assert "\x1b[33m\x1b[1m<|im_end|>\x1b[0m" in text  # special: yellow
    assert "⟦" not in text


def test_rows_by_their_numbers(
    run: Run, lines: Lines, tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Encoder.encode

    def counting(self: Encoder, block: RawBlock, *, tells_kinds: bool = False) -> EncodedBlock:
        encoded.append(block.num_rows)
        return encode(self, block, tells_kinds=tells_kinds)

    monkeypatch.setattr(Encoder, "encode", counting)
    rows = [{"messages": chat(f"question {i}", f"answer {i}")} for i in range(3000)]
    one = tmp_path / "one.jsonl.gz"
    one.write_bytes(gzip.compress(lines_of(rows)))
    two = tmp_path / "two.parquet"
    datasets.Dataset.from_list([{"messages": REASONED}, {"messages": PLAIN[:1]}]).to_parquet(two)
    flags = ["--tokenizer", tok, "--chat-template", TEMPLATES / "qwen3.jinja", "--history", "expand"]
    ended = run("tokenize", one, two, *flags, "--show-row", 2999, "--show-row", 3000)
    assert ended.code == 0 and encoded == [1, 1], ended.err
    assert "one.jsonl.gz, row 2999: " in ended.out and "⟦answer 2999⟧" in ended.out and "2998" not in ended.out
    assert "two.parquet, row 0 (3000 of all), sample 2 of 2, ends with turn 3: " in ended.out
    ended = run("tokenize", one, two, *flags, "--show-row", 7, "--show-row", 3001)
    assert ended.code == 3 and "⟦answer 7⟧" in ended.out
    assert "two.parquet, row 1 (3001 of all): it has no assistant turn" in ended.err.splitlines()[-1]
    ended = run("pack", one, "--max-length", 99, *flags, "--show-row", 3000)
    assert ended.code == 2 and "no such row, of 3,000 rows" in ended.err


def test_a_message_of_a_tree_is_shown_with_its_tree(run: Run, tok: Path) -> None:
    forms = Path(__file__).parents[1] / "rows" / "forms"
    flags = ["--tokenizer", tok, "--chat-template", TEMPLATES / "qwen2_5.jinja"]
    ended = run("tokenize", forms / "alpaca.jsonl", forms / "oasst.jsonl", *flags, "--show-row", 3)
    assert ended.code == 0, ended.err
    assert ended.out.count("oasst.jsonl, row ") == 2 and "⟦Rome.⟧" in ended.out and "⟦It is Paris.⟧" in ended.out
