"""Chats as people have them: reasoning, tools, ends of turns and history, under templates that models are used with."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.reading.mapped import map_file
from pipeline.reading.windows import SplitRows, Window
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.verifying.shards import WindowSource, check_shard
from tests.conftest import Run
from tests.pipeline.tokenizing.conftest import Lines
from tests.pipeline.tokenizing.oracle import samples_of, trained_runs
from tests.pipeline.tokenizing.test_targets import encode, encoder

trl = pytest.importorskip("trl", reason="the chat templates that TRL ships are not installed")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "w",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}},
    },
}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


PLAIN = [user("Hi"), answer("Hello."), user("Bye"), answer("Ciao.")]
REASONED = [
    user("Hi"),
    answer("Hello.", reasoning_content="first thought"),
    user("Bye"),
    answer("Ciao.", reasoning_content="second thought"),
]
AGENT = [
    user("Weather?"),
    answer("", tool_calls=[CALL]),
    {"role": "tool", "content": "12C", "name": "get_weather"},
    answer("It is 12."),
]


def told(tok: Path, template: str, tmp_path: Path, row: Any, **options: Any) -> tuple[EncodedBlock, list[list[str]]]:
    """A row under a template of TRL, and the runs that are trained in each of its samples."""
    from transformers import AutoTokenizer

    source = template if "{" in template else (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    found = encode(encoder(tok, source, tmp_path, **options), [row])
    whole = AutoTokenizer.from_pretrained(tok)
    assert found.kinds.total() == int((found.labels != -100).sum())
    return found, [[str(whole.decode(run)) for run in trained_runs(*sample)] for sample in samples_of(found)]


def test_whole_chats_that_lose_reasoning_are_refused(tok: Path, tmp_path: Path) -> None:
    found, _ = told(tok, "qwen3", tmp_path, REASONED)
    (fault,) = found.faults
    assert fault.reason == "history_rewritten"
    assert all(way in fault.detail for way in ("--history expand", "--history as-rendered", "--chat-template"))


def test_expand_gives_each_answer_as_at_inference(tok: Path, tmp_path: Path) -> None:
    found, runs = told(tok, "qwen3", tmp_path, REASONED, history="expand")
    thoughts = [f"<think>\n{one} thought\n</think>\n\n" for one in ("first", "second")]
    assert runs == [[thoughts[0] + "Hello.<|im_end|>"], [thoughts[1] + "Ciao.<|im_end|>"]]
    assert (found.rows, found.turns) == ([0, 0], [1, 3])


def test_expand_joins_what_agrees(tok: Path, tmp_path: Path) -> None:
    found, runs = told(tok, "qwen2_5", tmp_path, PLAIN, history="expand")
    assert runs == [["Hello.<|im_end|>", "Ciao.<|im_end|>"]]
    assert found.turns == [3]


def test_as_rendered_trains_what_is_written(tok: Path, tmp_path: Path) -> None:
    found, runs = told(tok, "qwen3", tmp_path, REASONED, history="as-rendered")
    assert runs == [["Hello.<|im_end|>", "<think>\nsecond thought\n</think>\n\nCiao.<|im_end|>"]]
    assert found.notes == {"history_left_out": [0]}


def test_the_last_turn_alone_needs_no_history(tok: Path, tmp_path: Path) -> None:
    _, runs = told(tok, "qwen3", tmp_path, REASONED, train_on="last")
    assert runs == [["<think>\nsecond thought\n</think>\n\nCiao.<|im_end|>"]]


@pytest.mark.parametrize(
    ("inserted", "wanted"),
    [
        ("auto", ["Hello.<|im_end|>", "<think>\n\n</think>\n\nCiao.<|im_end|>"]),
        ("mask", ["Hello.<|im_end|>", "Ciao.<|im_end|>"]),
    ],
)
def test_an_empty_think_block_is_what_generation_writes(
    tok: Path, tmp_path: Path, inserted: str, wanted: list[str]
) -> None:
    _, runs = told(tok, "qwen3", tmp_path, PLAIN, inserted=inserted)
    assert runs == [wanted]


def test_template_kwargs_move_the_beginning(tok: Path, tmp_path: Path) -> None:
    """Without thinking the generation prompt holds the empty block, so the model does not write it."""
    thinks = {"enable_thinking": False}
    assert told(tok, "qwen3", tmp_path, PLAIN[:2], template_kwargs=thinks)[1] == [["Hello.<|im_end|>"]]
    _, runs = told(tok, "qwen3", tmp_path, PLAIN[:2], template_kwargs=thinks, inserted="train")
    assert runs == [["<think>\n\n</think>\n\nHello.<|im_end|>"]]


@pytest.mark.parametrize(
    ("reasoning", "wanted", "note"),
    [
        ("auto", ["<think>\nfirst thought\n</think>\n\nHello.<|im_end|>"], {}),
        ("mask", ["Hello.<|im_end|>"], {}),
        ("drop", ["<think>\n\n</think>\n\nHello.<|im_end|>"], {"reasoning_dropped": [0]}),
    ],
)
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "inline"])
def test_reasoning(tok: Path, tmp_path: Path, key: str, reasoning: str, wanted: list[str], note: Any) -> None:
    turn = answer("<think>\nfirst thought\n</think>\n\nHello.") if key == "inline" else answer("Hello.")
    turn |= {} if key == "inline" else {key: "first thought"}
    found, runs = told(tok, "qwen3", tmp_path, [user("Hi"), turn], reasoning=reasoning)
    assert (runs, found.notes) == ([wanted], note)


def test_reasoning_inline_where_there_is_no_place(tok: Path, tmp_path: Path) -> None:
    chat = REASONED[:2]
    (fault,) = told(tok, "qwen2_5", tmp_path, chat)[0].faults
    assert "--reasoning-inline" in fault.detail
    found, runs = told(tok, "qwen2_5", tmp_path, chat, reasoning_inline=True)
    assert runs == [["<think>\nfirst thought\n</think>\n\nHello.<|im_end|>"]]
    assert set(found.kinds) == {"reasoning", "answer", "end"}


def test_tool_calls(tok: Path, tmp_path: Path) -> None:
    row = {"messages": AGENT, "tools": [TOOL]}
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    found, runs = told(tok, "qwen2_5", tmp_path, row)
    assert runs == [[call + "<|im_end|>", "It is 12.<|im_end|>"]]
    assert found.kinds["call"] > 10
    assert told(tok, "qwen2_5", tmp_path, row, tool_calls="mask")[1] == [["<|im_end|>", "It is 12.<|im_end|>"]]


def test_a_call_that_ends_with_a_token_of_its_own(tok: Path, tmp_path: Path) -> None:
    _, ((call, last),) = told(tok, "gptoss", tmp_path, {"messages": AGENT, "tools": [TOOL]}, template_date="2026-01-02")
    assert call.endswith('{"city": "Oslo"}<|call|>')
    assert last == "<|channel|>final<|message|>It is 12.<|return|>"


def test_tools_that_a_template_leaves_out(tok: Path, tmp_path: Path) -> None:
    row = {"messages": PLAIN, "tools": [TOOL]}
    (fault,) = told(tok, "phi3", tmp_path, row, append_eos=True)[0].faults
    assert "leaves out the tools (get_weather)" in fault.detail
    found, _ = told(tok, "phi3", tmp_path, row, append_eos=True, unsaid="allow")
    assert (found.faults, found.notes) == ([], {"unsaid_tools": [0]})


def test_tools_that_only_their_calls_name_are_left_out_too(tok: Path, tmp_path: Path) -> None:
    row = {"messages": AGENT, "tools": [TOOL]}
    (fault,) = told(tok, "deepseekv3", tmp_path, row, append_eos=True)[0].faults
    assert "leaves out the tools (get_weather)" in fault.detail


def test_what_stands_outside_the_marks_is_refused(tok: Path, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    )
    assert told(tok, source, tmp_path, PLAIN[:2])[1] == [["Hello.<|im_end|>"]]
    (fault,) = told(tok, source, tmp_path, REASONED[:2])[0].faults
    assert "does not write its reasoning or tool call 'first thought'" in fault.detail


def test_a_turn_left_out_is_refused_though_no_turn_can_be_located(tok: Path, tmp_path: Path) -> None:
    """The template shouts, so no text stands where it was said."""
    source = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
        "{{ m.content | upper }}<|im_end|>\n{% endfor %}"
    )
    chat = [{"role": "system", "content": "be brief"}, *PLAIN[:2]]
    for train_on in ("assistant", "all"):
        (fault,) = told(tok, source, tmp_path, chat, train_on=train_on)[0].faults
        assert "leaves out turn 0 (system)" in fault.detail


@pytest.mark.parametrize("form", ["mark", "text", "list", "by name", "string"])
def test_template_files_as_people_have_them(tok: Path, tmp_path: Path, form: str) -> None:
    source = (TEMPLATES / "qwen2_5.jinja").read_text(encoding="utf-8")
    text = {
        "mark": "\ufeff" + source,
        "text": json.dumps({"chat_template": source}),
        "list": json.dumps({"chat_template": [{"name": "default", "template": source}]}, indent=2),
        "by name": json.dumps({"chat_template": {"default": source}}),
        "string": json.dumps(source),
    }[form]
    assert told(tok, text, tmp_path, PLAIN)[1] == told(tok, source, tmp_path, PLAIN)[1]


def test_function_call_turns_are_calls(tok: Path, tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "12C"},
        {"from": "gpt", "value": "It is 12."},
    ]
    shared, own = (told(tok, "qwen2_5", tmp_path, row)[0] for row in (turns, [{**one} for one in AGENT]))
    assert [fault.detail for fault in shared.faults] == []
    assert shared.kinds == own.kinds


@pytest.mark.parametrize(
    ("turn_end", "wanted"),
    [("next", ["\n<think></think>\nHello.<|user|>"]), ("none", ["\n<think></think>\nHello."])],
)
def test_turns_that_the_next_turn_ends(tok: Path, tmp_path: Path, turn_end: str, wanted: list[str]) -> None:
    (fault,) = told(tok, "glm4moe", tmp_path, PLAIN[:2])[0].faults
    assert fault.reason == "no_end_token"
    _, ((first,),) = told(tok, "glm4moe", tmp_path, PLAIN[:2], turn_end=turn_end)
    assert [first] == wanted


@pytest.mark.parametrize("key", ["weight", "loss", "loss_mask", "loss_weight", "train", "training", "trainable"])
def test_turns_that_say_they_are_not_trained(tok: Path, tmp_path: Path, key: str) -> None:
    bad = [user("Hi"), answer("Bad.", **{key: 0}), user("Bye"), answer("Ciao.", **{key: 1})]
    assert told(tok, "qwen2_5", tmp_path, bad)[1] == [["Ciao.<|im_end|>"]]
    for value, reason in ((0.5, "unknown_weight"), (-1, "unknown_weight"), ("maybe", "unknown_weight")):
        (fault,) = told(tok, "qwen2_5", tmp_path, [user("Hi"), answer("x", **{key: value})])[0].faults
        assert (fault.reason, key in fault.detail) == (reason, True)
    (fault,) = told(tok, "qwen2_5", tmp_path, [user("Hi") | {key: 1}, answer("x")])[0].faults
    assert fault.reason == "contradictory_marks"


def test_a_day_makes_the_same_bytes_on_any_day(tok: Path, tmp_path: Path) -> None:
    found, _ = told(tok, "gptoss", tmp_path, PLAIN, template_date="2031-02-03")
    from transformers import AutoTokenizer

    assert "Current date: 2031-02-03" in AutoTokenizer.from_pretrained(tok).decode(found.input_ids)


def test_expanded_rows_say_where_they_come_from(run: Run, lines: Lines, tok: Path, tmp_path: Path) -> None:
    source = lines([{"messages": REASONED}, {"messages": PLAIN[:2]}])
    template = ("--tokenizer", tok, "--chat-template", TEMPLATES / "qwen3.jinja", "--history", "expand")
    result = json.loads(run("tokenize", source, "--output", tmp_path / "o", *template, "--json").out)
    rows = datasets.load_from_disk(str(tmp_path / "o"))
    assert (rows["source_row"][:], rows["source_turn"][:]) == ([0, 0, 1], [1, 3, 1])
    assert (result["counts"]["rows"], result["counts"]["samples"]) == (2, 3)
    assert sum(result["counts"]["targets_by_kind"].values()) == result["counts"]["targets"]


EXPAND = ("--chat-template", TEMPLATES / "qwen3.jinja", "--history", "expand", "--on-error", "drop")


@pytest.mark.parametrize("form", ["raw", "arrow", "parquet", "jsonl"])
def test_packs_say_which_rows_and_turns_they_hold(run: Run, lines: Lines, tok: Path, tmp_path: Path, form: str) -> None:
    """Packed from raw chats or from their tokens, each segment is the sample that `tokenize` made of row and turn."""
    raw = [
        lines([{"messages": REASONED}, {"messages": []}, {"messages": PLAIN[:2]}]),
        lines([{"messages": PLAIN}, {"messages": REASONED}], "b.jsonl"),
    ]
    tokenizer = ("--tokenizer", tok, *EXPAND[:2])
    assert run("tokenize", *raw, "--output", tmp_path / "tokens", "--tokenizer", tok, *EXPAND).code == 0
    samples = datasets.load_from_disk(str(tmp_path / "tokens"))
    source: list[Path] = [tmp_path / "tokens"]
    if form in ("parquet", "jsonl"):
        source = [tmp_path / f"x.{form}"]
        (samples.to_parquet if form == "parquet" else samples.to_json)(str(source[0]))
    elif form == "raw":
        source = raw
    flags = ("--tokenizer", tok, *EXPAND) if form == "raw" else ()
    ended = run("pack", *source, "--output", tmp_path / "packs", "--max-length", 96, *flags, "--json")
    packs = datasets.load_from_disk(str(tmp_path / "packs"))
    assert packs.column_names[-2:] == ["source_rows", "source_turns"]
    told = {(row["source_row"], row["source_turn"]): row["input_ids"] for row in samples}
    found = {}
    for pack in packs:
        edges = zip(pack["boundaries"], pack["boundaries"][1:], strict=False)
        for row, turn, (begin, end) in zip(pack["source_rows"], pack["source_turns"], edges, strict=True):
            found[row, turn] = pack["input_ids"][begin:end]
    assert found == told
    assert set(told) == {(0, 1), (0, 3), (2, 1), (3, 1), (3, 3), (4, 1), (4, 3)}
    assert sorted(itertools.chain(*packs["sample_ids"])) == ([0, 1, *range(3, 8)] if form == "raw" else [*range(7)])
    counts, losses = ended.json["counts"], ended.json["counts"]["dropped"]
    assert (counts["samples_in"], losses["empty"]["samples"]) == ((8, 1) if form == "raw" else (7, 0))
    manifest = json.loads((tmp_path / "packs" / "manifest.json").read_bytes())
    assert [entry["rows"] for entry in manifest["inputs"]] == ([3, 2] if form == "raw" else [7])
    named = [word for path in source for word in ("--source", path)]
    verified = run("verify", tmp_path / "packs", *named, *(tokenizer if form == "raw" else ()))
    assert verified.code == 0, verified.err


def test_verify_sees_packs_that_name_other_rows(run: Run, lines: Lines, tok: Path, tmp_path: Path) -> None:
    source = lines([{"messages": REASONED}])
    run("tokenize", source, "--output", tmp_path / "tokens", "--tokenizer", tok, *EXPAND)
    run("pack", tmp_path / "tokens", "--output", tmp_path / "packs", "--max-length", 96)
    (shard,) = (tmp_path / "packs").glob("*.arrow")
    (tokens,) = (tmp_path / "tokens").glob("*.arrow")
    mapped = map_file(str(tokens), {}, "tokens")
    assert mapped is not None
    rows = SplitRows([mapped])
    window = Window(index=0, first_row=0, num_rows=2, num_tokens=0)
    told = dict(zip(SOURCE_COLUMNS, rows.sources(window), strict=True))
    right = WindowSource(rows=rows.read_window(window), first_row=0, sources=told)
    assert check_shard(shard, 96, right).problem is None
    for name in SOURCE_COLUMNS:
        wrong = replace(right, sources=told | {name: told[name][::-1] + 1})
        assert f"{name} of sample" in str(check_shard(shard, 96, wrong).problem)
    assert "the columns are" in str(check_shard(shard, 96, replace(right, sources={})).problem)


def test_a_thought_ends_before_the_call(tok: Path, tmp_path: Path) -> None:
    thinking = [user("Weather?"), answer("", reasoning_content="hm", tool_calls=[CALL])]
    _, (masked,) = told(tok, "qwen3", tmp_path, thinking, tool_calls="mask")
    assert masked == ["<think>\nhm\n</think>\n\n", "<|im_end|>"]
    _, (called,) = told(tok, "qwen3", tmp_path, thinking, reasoning="mask")
    assert called[0].startswith("<tool_call>")
    _, (silent,) = told(tok, "qwen3", tmp_path, [thinking[0], answer("", tool_calls=[CALL])], tool_calls="mask")
    assert silent == ["<think>\n\n</think>\n\n", "<|im_end|>"]
    found, _ = told(tok, "gptoss", tmp_path, thinking, tool_calls="mask", template_date="2026-11-28")
    assert found.kinds["reasoning"] > 0 and not found.kinds["call"]
