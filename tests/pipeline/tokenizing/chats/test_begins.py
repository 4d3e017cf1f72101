"""Where turns begin: where the generation prompt ends, as transformers renders it, also in unusual chats."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.pipeline.tokenizing.oracle import samples_of
from tests.pipeline.tokenizing.test_chats import CALL, TEMPLATES, answer, told, user

DAY = "2026-01-02"
OTHER = {"type": "function", "function": {"name": "get_time", "arguments": {}}}
NO_ARGUMENTS = {"type": "function", "function": {"name": "get", "arguments": {}}}


def result(content: str, **keys: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **keys}


def calling(*calls: dict[str, Any], content: str = "") -> dict[str, Any]:
    return answer(content, tool_calls=list(calls))


ASKED = [user("Hi"), calling(CALL)]
ASKED_TWICE = [user("Hi"), calling(CALL, OTHER)]
BLANK = [*ASKED, result(""), answer("mild")]
SPACE = [*ASKED, result(" \n"), answer("mild")]
SECOND_BLANK = [*ASKED_TWICE, result("one"), result(""), answer("Hello.")]
FIRST_BLANK = [*ASKED_TWICE, result(""), result("one"), answer("Hello.")]
CALL_FIRST = [calling(CALL)]
ANSWER_FIRST = [answer("Hello"), user("Hi"), answer("Yo")]
UNMATCHED = [
    user("Hi"),
    calling(NO_ARGUMENTS | {"id": "h0"}),
    result("x"),
    calling(NO_ARGUMENTS | {"id": "h1"}),
    result("x", tool_call_id="h0"),
]
UNMATCHED_THOUGHT = [*UNMATCHED[:1], *UNMATCHED[3:], answer("x", reasoning_content="assistant")]
CASES = [
    ("qwen3", BLANK),
    ("gptoss", BLANK),
    ("qwen3_5_think", SPACE),
    ("glm4moe", SECOND_BLANK),
    ("qwen3", FIRST_BLANK),
    ("diffusion_gemma", [*ASKED, result("12"), answer("mild")]),
    ("diffusion_gemma", BLANK),
    ("gemma4_v5", UNMATCHED),
    ("gemma4_v5", UNMATCHED_THOUGHT),
]


def _begins(tok: Path, name: str, tmp_path: Path, chat: list[dict[str, Any]]) -> tuple[Any, str, list[int]]:
    """The tokenizer, the text of a chat, and the characters where runs of targets begin in it."""
    found, _ = told(tok, name, tmp_path, chat, turn_end="none", **({"template_date": DAY} if name == "gptoss" else {}))
    assert found.faults == []
    ((ids, labels),) = samples_of(found)
    whole: Any = AutoTokenizer.from_pretrained(tok)
    firsts = [at for at, (one, other) in enumerate(pairwise([-100, *labels])) if one == -100 != other]
    return whole, whole.decode(ids), [len(whole.decode(ids[:at])) for at in firsts]


def _rendered(whole: Any, name: str, chat: list[dict[str, Any]], **how: Any) -> str:
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").replace('strftime_now("%Y-%m-%d")', f"'{DAY}'")
    return str(whole.apply_chat_template(chat, chat_template=source, tokenize=False, **how))


@pytest.mark.parametrize(("name", "chat"), CASES)
def test_turns_begin_where_the_generation_prompt_ends(
    tok: Path, tmp_path: Path, name: str, chat: list[dict[str, Any]]
) -> None:
    whole, text, begins = _begins(tok, name, tmp_path, chat)
    turns = [number for number, turn in enumerate(chat) if turn["role"] == "assistant"]
    prompts = [_rendered(whole, name, chat[:turn], add_generation_prompt=True) for turn in turns]
    assert all(text.startswith(prompt) for prompt in prompts)
    assert [len(prompt) for prompt in prompts] == begins


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("gptoss", CALL_FIRST),
        ("gptoss", ANSWER_FIRST),
        ("nemotron_3_nano", CALL_FIRST),
        ("nemotron_3_nano", ANSWER_FIRST),
        ("qwen2_5", CALL_FIRST),
        ("gemma4", CALL_FIRST),
    ],
)
def test_an_assistant_that_comes_first_begins_after_the_prompt(
    tok: Path, tmp_path: Path, name: str, chat: list[dict[str, Any]]
) -> None:
    whole, text, begins = _begins(tok, name, tmp_path, chat)
    opened = _rendered(whole, name, [user("Hi")], add_generation_prompt=True)
    prompt = opened.removeprefix(_rendered(whole, name, [user("Hi")])).partition("<think>")[0]
    assert prompt
    assert text[: begins[0]].removesuffix("<think>").endswith(prompt)
    assert text.count(prompt, 0, begins[0]) == 1


@pytest.mark.parametrize("said", ["12", ""])
@pytest.mark.parametrize("name", ["gemma4", "gemma4_v3"])
def test_results_inside_a_turn_are_no_targets(tok: Path, tmp_path: Path, name: str, said: str) -> None:
    chat = [user("Hi"), calling(CALL, content="Look."), result(said), answer("Hello.")]
    (fault,) = told(tok, name, tmp_path, chat)[0].faults
    assert "writes some of it after what comes next" in fault.detail


@pytest.mark.parametrize("name", ["qwen3", "nemotron_3_nano"])
def test_reasoning_that_the_prompt_closes_is_refused(tok: Path, tmp_path: Path, name: str) -> None:
    chat = [user("Hi"), answer("Yo", reasoning_content="R")]
    closed = {"turn_end": "none", "template_kwargs": {"enable_thinking": False}}
    (fault,) = told(tok, name, tmp_path, chat, **closed)[0].faults
    assert all(way in fault.detail for way in ("--reasoning drop", "enable_thinking"))
    assert told(tok, name, tmp_path, chat, **closed, reasoning="drop")[1] == [["Yo<|im_end|>"]]
    _, ((run,),) = told(tok, name, tmp_path, chat, turn_end="none")
    assert "R\n</think>" in run
