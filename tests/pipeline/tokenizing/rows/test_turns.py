"""What the keys of a turn say: read, refused or counted, and never dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trl

from pipeline.tokenizing.rows.choice import choose_format
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.rows.turn_reader import TurnReader
from tests.pipeline.chats import TEMPLATES, chat, template
from tests.pipeline.tokenizing.oracle import samples_of
from tests.pipeline.tokenizing.test_targets import encode, encoder

U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))
CALL = {"name": "f", "arguments": {"a": 1}}
READ = [{"type": "function", "function": CALL}]


def message(turn: dict[str, Any], **keys: Any) -> Any:
    return TurnReader(**keys).message(turn, "turn 0")


@pytest.mark.parametrize(
    ("turn", "keys", "wanted"),
    [
        ({"role": "assistant", "content": "RAW", "text": "clean"}, {"content_key": "text"}, ("assistant", "clean")),
        ({"role": "x", "speaker": "user", "content": "a"}, {"role_key": "speaker"}, ("user", "a")),
        ({"from": "gpt", "value": "y", "content": "y"}, {}, ("assistant", "y")),
        ({"from": "gpt", "value": None, "content": "y"}, {}, ("assistant", "y")),
        ({"role": None, "from": "gpt", "value": "y"}, {}, ("assistant", "y")),
        ({"from": "gpt", "value": "y", "content": "z"}, {"role_key": "from", "content_key": "value"}, ("gpt", "y")),
        ({"role": "tool", "content": [{"text": "abc", "score": 3}]}, {}, ("tool", '[{"text": "abc", "score": 3}]')),
        ({"role": "tool", "content": ["a", "b"]}, {}, ("tool", '["a", "b"]')),
        ({"role": "tool", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, {}, ("tool", "ab")),
        ({"role": "function", "content": {"a": "é"}}, {}, ("function", '{"a": "é"}')),
    ],
)
def test_role_and_content(turn: dict[str, Any], keys: dict[str, str], wanted: tuple[str, str]) -> None:
    assert message(turn, **keys) == (dict(zip(("role", "content"), wanted, strict=True)), None)


@pytest.mark.parametrize(
    "told",
    [
        {"tool_calls": [{"type": "tool_use", "name": "f", "input": {"a": 1}}]},
        {"tool_calls": [{"name": "f", "args": {"a": 1}}]},
        {"tool_calls": [{"function": {"name": "f"}, "arguments": '{"a": 1}'}]},
        {"tool_calls": [{"name": "f", "arguments": {}, "parameters": {"a": 1}}]},
        {"tool_calls": [{"name": "f", "arguments": r'"{\"a\": 1}"'}]},
        {"function_calls": [CALL], "tool_calls": []},
        {"function_call": CALL, "tool_calls": READ},
    ],
)
def test_calls(told: dict[str, Any]) -> None:
    assert message(A | told) == (A | {"tool_calls": READ}, None)


@pytest.mark.parametrize("key", ["tool_calls", "function_calls", "function_call"])
@pytest.mark.parametrize("none", [None, [], "", "null", "[]"])
def test_no_calls(key: str, none: Any) -> None:
    assert message(A | {key: none}) == (A, None) == message(A | {"role": "assistant", key: none})


@pytest.mark.parametrize(
    ("turn", "says"),
    [
        ({"from": "gpt", "value": "y", "content": "zzz"}, "value and its content differ"),
        (U | {"tool_calls": [{"x": 1}]}, "only the assistant can call"),
        (U | {"function_call": CALL}, "only the assistant can call"),
        (A | {"tool_calls": "abc"}, "its tool_calls is no tool call"),
        (A | {"tool_calls": [{"x": 1}]}, "has no name"),
        (A | {"tool_calls": READ, "function_call": {"name": "g"}}, "have calls that differ"),
        (A | {"tool_calls": [{"name": "f", "inputs": {"a": 1}}]}, "has inputs and no arguments"),
        (A | {"tool_calls": [CALL | {"input": {"a": 2}}]}, "arguments and input of the call of f differ"),
        (A | {"train_detail": [{"begin": 0, "end": 1, "train": False}]}, "train_detail, which is not supported"),
        (A | {"function_call": CALL | {"arguments": "{a: 1}"}}, "of f begin as an object and are no JSON ('{a: 1}')"),
        (A | {"function_call": CALL | {"arguments": r'"{\"a\": 1"'}}, """no JSON ('{"a": 1')"""),
        ({"role": "user", "value": "x"}, "--keys content=value"),
        (A | {"masked": True, "weight": 1}, "weight and masked contradict"),
        (U | {"masked": False}, "marked as trained"),
        (U | {"content": [{"type": "text", "text": "a", "image_url": "b"}]}, "part 0 has image_url beside its text"),
        (U | {"content": [{"temp": 3}]}, "part 0 has no text (its keys are: temp)"),
        ({"role": "tool", "content": [{"type": "image_url", "image_url": "b"}]}, "part 0 is of type image_url"),
    ],
)
def test_what_is_refused(turn: dict[str, Any], says: str) -> None:
    with pytest.raises(RowFault) as refused:
        message(turn)
    assert says in str(refused.value)


@pytest.mark.parametrize("type_", ["thinking", "reasoning"])
@pytest.mark.parametrize("key", ["thinking", "reasoning", "text", "value", "content"])
def test_parts_that_are_thinking(type_: str, key: str) -> None:
    content = [{"type": type_, key: "t"}, {"type": "text", "value": "x"}]
    assert message(A | {"content": content}) == (A | {"reasoning_content": "t"}, None)


@pytest.mark.parametrize("blank", [None, "", " ", "null"])
def test_a_blank_mark_is_none(blank: Any) -> None:
    assert message(A | {"weight": blank}) == (A, None)
    parts = [{"type": "text", "text": "x", "train": blank, "weight": 0}]
    assert message(A | {"content": parts}) == (A, False)


def test_arguments_that_are_no_object_are_warned_of(tokenizer_dir: Path, tmp_path: Path) -> None:
    source = (TEMPLATES / "chatml_tools.jinja").read_text(encoding="utf-8")
    rows = [[U, A | {"function_call": CALL | {"arguments": told}}] for told in ("Oslo", "[1]", [1], '{"a": 1}', " ")]
    found = encode(encoder(tokenizer_dir, source, tmp_path), rows)
    assert (found.notes, found.faults) == ({"free_arguments": [0, 1, 2]}, [])


RESULT_ROLES = ("tool_response", "observation", "function")


@pytest.mark.parametrize("style", ["qwen3", "llama3_1", "glm4moe", "gptoss", "chatml_tools"])
def test_results_are_the_tools_where_a_template_asks_for_tool_alone(
    style: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    folder = TEMPLATES if style == "chatml_tools" else Path(str(trl.__file__)).parent / "chat_templates"
    source = (folder / f"{style}.jinja").read_text(encoding="utf-8")
    call = {"role": "assistant", "content": "", "function_call": CALL}
    rows = [[U, call, {"role": role, "content": "r"}, A] for role in ("tool", *RESULT_ROLES)]
    options = {"template_date": "2026-01-01", "turn_end": "none"}
    block = encode(encoder(tokenizer_dir, source, tmp_path, **options), rows)
    first, *others = (tuple(sample) for sample, _ in samples_of(block))
    assert (others == [first] * 3) is (style != "chatml_tools") and not block.faults


@pytest.mark.parametrize(
    ("speakers", "flag"),
    [
        (("human", "gpt"), "--roles user=human,assistant=gpt "),
        (("User", "Assistant"), "--roles user=User,assistant=Assistant "),
        (("user", "model"), "--roles assistant=model "),
        (("system", "customer", "bot"), "--roles user=customer,assistant=bot "),
        (("customer", "agent"), "--roles user=customer,assistant=agent "),
    ],
)
def test_speakers_called_otherwise_are_named(
    speakers: tuple[str, ...], flag: str, tokenizer_dir: Path, tmp_path: Path
) -> None:
    row = [{"role": speaker, "content": "x"} for speaker in speakers]
    (fault,) = encode(encoder(tokenizer_dir, template("chatml", marks=False), tmp_path), [row]).faults
    assert flag in fault.detail


def test_a_call_may_be_spelled_with_a_hyphen() -> None:
    assert message({"from": "function-call", "value": json.dumps(CALL)})[0]["tool_calls"] == READ
    assert message({"from": "tool-response", "value": "x"}) == ({"role": "tool", "content": "x"}, None)


def test_masked_is_a_mark() -> None:
    assert message(A | {"masked": True})[1] is False and message(A | {"masked": False})[1] is True


@pytest.mark.parametrize(
    ("column", "refused", "taken"),
    [
        ("weight", (0, 0.5, "0"), (1, 1.0, "1")),
        ("train", (False, 0), (True,)),
        ("loss", (False, 0, "False", "no"), (True, "True")),
        ("loss_mask", ([1, 0],), ()),
        ("masked", (True, "1"), (False, "0")),
        ("is_preferred", (False,), (True,)),
        ("is_chosen", (False,), (True,)),
        ("desirable", (False,), (True,)),
        ("kto_tag", (False, "false", "False"), (True, "true")),
        ("label", (False, 0, -1, "0", "False", "undesirable", [False], 2), (True, 1, "1", " True", "Desirable")),
        ("chosen", ("a",), ()),
        ("non_preferred_output", ([A],), ()),
        ("image", ("a.png", {"bytes": b"x", "path": None}), (" ", {"bytes": None, "path": None})),
        ("images", (["a.png"], '["a.png"]', [{"bytes": None, "path": "a"}]), ("[]", [None], [""])),
        ("pixel_values", ([0.0],), ([],)),
        *((name, ("a",), ("",)) for name in ("image_path", "img", "video", "videos", "audio", "audios")),
    ],
)
def test_columns_that_change_what_is_trained(column: str, refused: tuple[Any, ...], taken: tuple[Any, ...]) -> None:
    for row in ({"messages": chat("a", "b")}, {"instruction": "a", "output": "b"}):
        format_ = choose_format([*row, column], "auto", {}, "x.jsonl")
        plain = format_.sample(row, as_chat=True)
        assert isinstance(plain, Chat) and plain.messages == chat("a", "b")
        for value in (*taken, None):
            assert format_.sample(row | {column: value}, as_chat=True) == plain
        for value in refused:
            with pytest.raises(RowFault, match=f"column '{column}' has content"):
                format_.sample(row | {column: value}, as_chat=True)


@pytest.mark.parametrize("key", ["images", "video", "audio"])
def test_pictures_and_sound_of_a_turn(key: str) -> None:
    assert message(U | {key: [None]})[0]["content"] == "x"
    with pytest.raises(RowFault, match=f"turn 0: it has {key}, and .* cannot be tokenised as text"):
        message(U | {key: ["a"]})


@pytest.mark.parametrize("none", [[], "null", " ", "[]", None])
def test_tools(none: Any) -> None:
    row = {"messages": chat("a", "b"), "tools": none}
    format_ = choose_format(list(row), "auto", {}, "x.jsonl")
    assert format_.sample(row, as_chat=True) == Chat(chat("a", "b"))
    one = {"type": "function", "function": {"name": "f"}}
    assert format_.sample(row | {"tools": one}, as_chat=True) == Chat(chat("a", "b"), [one])


def test_keys_that_are_not_read_are_counted(tokenizer_dir: Path, tmp_path: Path) -> None:
    source = template("chatml", marks=False)
    row = [S, U, A | {"refusal": "no", "thought": "", "annotations": []}, U | {"thought": "t"}, A | {"refusal": "n"}]
    found = encode(encoder(tokenizer_dir, source, tmp_path), [row])
    assert (found.unread_keys, found.faults) == ({"refusal": 2, "thought": 1}, [])
    reads = encode(encoder(tokenizer_dir, source + "{{ messages[0].refusal }}", tmp_path), [row])
    assert reads.unread_keys == {"thought": 1}
    named = encode(
        encoder(tokenizer_dir, source, tmp_path, keys={"content": "text"}), [[U | {"text": "a"}, A | {"text": "x"}]]
    )
    assert named.unread_keys == {"content": 1}
    tools = [S | {"functions": "[{}]"}, U, A]
    (fault,) = encode(encoder(tokenizer_dir, source, tmp_path), [tools]).faults
    assert "turn 0 (system): the template does not read its functions" in fault.detail
    assert encode(encoder(tokenizer_dir, source, tmp_path, unsaid="allow"), [tools]).notes == {"unsaid_tools": [0]}


def test_a_column_of_reasoning_is_of_the_answer() -> None:
    asked, told = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
    pair = {"prompt": "Hi", "completion": "Hello.", "reasoning": "first thought"}
    alpaca = {"instruction": "Hi", "output": "Hello.", "thinking": "first thought"}
    turns = {"prompt": [asked], "completion": [told], "reasoning_content": "first thought"}
    for row in (pair, alpaca, turns):
        sample = choose_format(list(row), "auto", {}, "x.jsonl").sample(row, as_chat=True)
        assert isinstance(sample, Chat)
        assert sample.messages == [asked, told | {"reasoning_content": "first thought"}]
    with pytest.raises(RowFault, match="need a chat template"):
        choose_format(list(pair), "auto", {}, "x.jsonl").sample(pair, as_chat=False)
    for answers in ([told | {"reasoning": "other"}], [told, asked, told]):
        with pytest.raises(RowFault, match="'reasoning_content': which turn it belongs to cannot be told"):
            choose_format(list(turns), "auto", {}, "x.jsonl").sample(turns | {"completion": answers}, as_chat=True)
