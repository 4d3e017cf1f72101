"""Generation prompts that depend on what a chat says: its turns begin where its own prompts end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.tokenizing.chats.syntax import prompt_reads_words
from tests.pipeline.tokenizing.oracle import samples_of, trained_runs
from tests.pipeline.tokenizing.test_chats import TEMPLATES, answer, user
from tests.pipeline.tokenizing.test_targets import encode, encoder

CLOSED = "<think>\n\n</think>\n\n"
THOUGHT = "{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}"
TURNS = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}THOUGHT{%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}"""
PROMPT = """{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if CLOSES %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


def asking(setting: str, condition: str, thought: str = THOUGHT) -> str:
    """A template whose prompt closes the reasoning under some condition, and how it writes that of an answer."""
    return setting + TURNS.replace("THOUGHT", thought) + PROMPT.replace("CLOSES", condition)


BY_WORDS = {
    "last": asking("", "messages[-1].content.endswith('/no_think')"),
    "alias": asking("{%- set last = messages[-1] %}{%- set said = last['content'] %}", "'/no_think' in said"),
    "loop": asking(
        "{%- set ns = namespace(thinks=true) %}{%- for message in messages %}"
        "{%- if message.role == 'system' or loop.last %}{%- if '/no_think' in message.content %}"
        "{%- set ns.thinks = false %}{%- elif '/think' in message.content %}{%- set ns.thinks = true %}"
        "{%- endif %}{%- endif %}{%- endfor %}",
        "not ns.thinks",
    ),
    "break": asking(
        "{%- set ns = namespace(last=0) %}{%- for message in messages | reverse %}{%- set ns.last = loop.index %}"
        "{%- if '/no_think' in message.get('content') %}{%- break %}{%- endif %}{%- endfor %}",
        "ns.last == 1",
    ),
    "macro": asking(
        "{%- macro words(turn) %}{{- turn.content | trim }}{%- endmacro %}",
        "words(messages[-1]).split(' ') | last == '/no_think'",
    ),
    "filter": asking(
        "{%- set said = messages[-1:] | map(attribute='content') | join(' ') %}", "said[-9:] == '/no_think'"
    ),
    "block": asking(
        "{%- set closed %}{%- if '/no_think' in messages[-1].content %}yes{%- endif %}{%- endset %}", "closed"
    ),
    "told": asking("{%- set opens = add_generation_prompt %}", "opens and messages[-1].content[-9:] == '/no_think'"),
}
BY_SHAPE = {
    "system": asking("", "messages[0].role == 'system'"),
    "number": asking("{%- set turns = messages | length %}", "turns > 2"),
    "calls": asking("", "messages[-1].tool_calls or messages[-1].content is not string"),
    "words elsewhere": asking(
        "{%- set ns = namespace(last=0, closes=false) %}{%- for message in messages %}"
        "{%- if '/no_think' in message.content %}{%- set ns.last = loop.index %}{%- endif %}{%- endfor %}",
        "ns.closes",
    ),
}
PLAIN = [user("Hi"), answer("Yo"), user("Bye"), answer("Ciao")]
CLOSING = [user("Hi /no_think"), answer("Yo"), user("Bye /no_think"), answer("Ciao")]
MIXED = [user("Hi /no_think"), answer("Yo"), user("Bye"), answer("Ciao")]
SYSTEM = [{"role": "system", "content": "Be /no_think"}, *PLAIN]


def begins(found: Any, whole: Any) -> list[list[int]]:
    """The characters where runs of targets begin, by sample."""
    firsts = []
    for ids, labels in samples_of(found):
        runs = [at for at, (one, other) in enumerate(pairwise([-100, *labels])) if one == -100 != other]
        firsts.append([len(whole.decode(ids[:at])) for at in runs])
    return firsts


def prompts(whole: Any, source: str, chat: list[dict[str, Any]]) -> list[str]:
    """What transformers renders before each answer."""
    answers = [number for number, turn in enumerate(chat) if turn["role"] == "assistant"]
    how = {"chat_template": source, "tokenize": False, "add_generation_prompt": True}
    return [str(whole.apply_chat_template(chat[:number], **how)) for number in answers]


@pytest.mark.parametrize("name", BY_WORDS)
def test_syntax_tells_that_words_may_matter(name: str) -> None:
    assert prompt_reads_words(BY_WORDS[name])


@pytest.mark.parametrize("name", BY_SHAPE)
def test_syntax_tells_that_words_do_not_matter(name: str) -> None:
    assert not prompt_reads_words(BY_SHAPE[name])


def test_ordinary_templates_are_not_held_against_every_prompt() -> None:
    names = ("qwen3", "qwen3_8", "gptoss", "glm4moe", "deepseekv3", "llama3_1", "gemma4_v5", "nemotron_3_nano", "lfm2")
    assert not any(prompt_reads_words((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")) for name in names)


@pytest.mark.parametrize("name", [*BY_WORDS, "system", "number"])
def test_answers_begin_where_the_prompts_of_their_own_words_end(tok: Path, tmp_path: Path, name: str) -> None:
    source = (BY_WORDS | BY_SHAPE)[name]
    whole: Any = AutoTokenizer.from_pretrained(tok)
    one = encoder(tok, source, tmp_path)
    chats = [PLAIN, CLOSING, MIXED, SYSTEM, PLAIN]
    found = encode(one, chats)
    assert found.faults == []
    expected = [prompts(whole, source, chat) for chat in chats]
    for (ids, _), own, opened in zip(samples_of(found), begins(found, whole), expected, strict=True):
        assert own == [len(prompt) for prompt in opened]
        assert all(str(whole.decode(ids)).startswith(prompt) for prompt in opened)
    assert len({prompt.endswith(CLOSED) for each in expected for prompt in each}) == 2


@pytest.mark.parametrize("setting", ["{%- set off = '/no_think' %}", ""])
def test_words_open_and_close_reasoning(tok: Path, tmp_path: Path, setting: str) -> None:
    """A prompt that is closed unless words open it, and the other way round."""
    condition = f"{'not ' if not setting else ''}'/{'no_' if setting else ''}think' in messages[-1].content"
    source = asking(setting, condition)
    opened = {"messages": [user("Hi /think"), answer("Yo", reasoning_content="R")]}
    closed = {"messages": [user("Hi /no_think"), answer("Yo", reasoning_content="R")]}
    found = encode(encoder(tok, source, tmp_path), [closed, opened, closed, opened])
    assert [fault.row for fault in found.faults] == [0, 2]
    assert all("opens this turn with its reasoning closed" in fault.detail for fault in found.faults)
    whole: Any = AutoTokenizer.from_pretrained(tok)
    assert begins(found, whole) == [[len(prompt) for prompt in prompts(whole, source, opened["messages"])]] * 2


def test_where_words_change_the_chat_too(tok: Path, tmp_path: Path) -> None:
    """As SmolLM3 does it: words of the system turn decide about all turns."""
    setting = "{%- set mode = 'on' %}{%- if messages[0].role == 'system' and '/no_think' in messages[0].content %}"
    setting += "{%- set mode = 'off' %}{%- endif %}"
    closed = "{%- if mode == 'off' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    source = asking(setting, "mode == 'off'", closed)
    whole: Any = AutoTokenizer.from_pretrained(tok)
    chats = [PLAIN, SYSTEM, [{"role": "system", "content": "Be"}, *PLAIN]]
    found = encode(encoder(tok, source, tmp_path), chats)
    assert found.faults == []
    expected = [prompts(whole, source, chat) for chat in chats]
    assert [prompt.endswith(CLOSED) for each in expected for prompt in each] == [False, False, True, True, False, False]
    assert begins(found, whole) == [[len(prompt) for prompt in each] for each in expected]


def test_a_prompt_that_the_chat_does_not_have_is_told(tok: Path, tmp_path: Path) -> None:
    source = asking("", "'/no_think' in messages[-1].content", thought="")
    found = encode(encoder(tok, source, tmp_path), [PLAIN, MIXED, CLOSING])
    assert found.faults == []
    assert found.notes["prompt_unwritten"] == [1, 2]
    whole: Any = AutoTokenizer.from_pretrained(tok)
    runs = [str(whole.decode(run)) for sample in samples_of(found) for run in trained_runs(*sample)]
    assert runs == ["Yo<|im_end|>", "Ciao<|im_end|>"] * 3


@pytest.mark.parametrize(("opens", "wanted"), [("<think>\\n", [0, 1]), ("", None)])
def test_a_prompt_that_no_chat_has_is_told(tok: Path, tmp_path: Path, opens: str, wanted: list[int] | None) -> None:
    """As R1's template opens reasoning that the chats do not have."""
    prompt = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n" + opens + "' }}{%- endif %}"
    found = encode(encoder(tok, TURNS.replace("THOUGHT", "") + prompt, tmp_path), [PLAIN, SYSTEM])
    assert (found.faults, found.notes.get("prompt_unwritten")) == ([], wanted)
