"""Tags that people write into texts: taken off where the template writes them itself, and told where it has others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tokenizing.test_chats import AGENT, TOOL, answer, told, user

CALLED = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
RESULT = "<tool_response>\n12C\n</tool_response>"
HERMES: list[dict[str, Any]] = [
    {"from": "human", "value": "Weather?"},
    {"from": "gpt", "value": CALLED},
    {"from": "tool", "value": RESULT},
    {"from": "gpt", "value": "It is 12."},
]


def test_tags_of_calls_and_results_stand_there_once(tok: Path, tmp_path: Path) -> None:
    said = [AGENT[0], AGENT[1], {"role": "tool", "content": "12C"}, AGENT[3]]
    wanted = told(tok, "qwen3", tmp_path, said)[0]
    as_call = [*HERMES[:1], {"from": "function_call", "value": CALLED}, *HERMES[2:]]
    for turns in (HERMES, as_call):
        found = told(tok, "qwen3", tmp_path, turns)[0]
        assert found.input_ids.tolist() == wanted.input_ids.tolist()
        assert (found.labels != -100).tolist() == (wanted.labels != -100).tolist()
        assert found.notes == {"result_tags": [0]}
    assert told(tok, "qwen3", tmp_path, as_call)[0].kinds == wanted.kinds
    twice = [*as_call[:1], as_call[1] | {"value": CALLED * 2}, as_call[2] | {"value": f"{RESULT}\n{RESULT}"}]
    several = [said[0], answer("", tool_calls=[*AGENT[1]["tool_calls"]] * 2), said[2], said[2]]
    one, other = (told(tok, "qwen3", tmp_path, [*turns, said[3]])[0] for turns in (twice, several))
    assert one.input_ids.tolist() == other.input_ids.tolist()


@pytest.mark.parametrize(
    ("template", "options", "notes"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", {}, "as_text"),
        ("qwen2_5", {}, ""),
        ("qwen2_5", {"tool_calls": "mask"}, "as_text"),
        ("glm4moe", {"turn_end": "next"}, "as_text"),  # which has tags of that name round other calls
    ],
)
def test_calls_as_text(tok: Path, tmp_path: Path, template: str, options: dict[str, Any], notes: str) -> None:
    found = told(tok, template, tmp_path, HERMES[:2], **options)[0]
    assert found.notes == ({f"calls_{notes}": [0]} if notes else {})


def test_what_is_written_twice_is_told(tok: Path, tmp_path: Path) -> None:
    system = {"role": "system", "content": "<tools>[get_weather]</tools>"}
    row = {"messages": [system, AGENT[0], answer(CALLED, tool_calls=AGENT[1]["tool_calls"])], "tools": [TOOL]}
    found = told(tok, "qwen2_5", tmp_path, row)[0]
    assert found.notes == {"tools_twice": [0], "calls_twice": [0]}


@pytest.mark.parametrize(
    ("template", "content", "options", "notes"),
    [
        ("gptoss", "<think>so</think>Yes", {}, ["reasoning_as_text"]),
        ("gptoss", "<think>so</think>Yes", {"reasoning": "drop"}, ["reasoning_dropped"]),
        ("qwen3", "<think>so</think>Yes", {}, []),
        ("qwen3", "<thinking>so</thinking>Yes", {}, ["reasoning_unread"]),
        ("qwen3", "<thinking>so</thinking>Yes", {"reasoning_marks": "<thinking>,</thinking>"}, ["reasoning_as_text"]),
        ("qwen3", "<thinking> aloud", {}, []),
        ("qwen2_5", " [THINK]so[/THINK]Yes", {}, ["reasoning_unread"]),
        ("qwen2_5", " [THINK]so[/THINK]Yes", {"reasoning_marks": "[THINK],[/THINK]"}, []),
        ("qwen2_5", "<think>so</think>Yes", {}, []),
    ],
)
def test_reasoning_in_marks_that_are_not_the_templates(
    tok: Path, tmp_path: Path, template: str, content: str, options: dict[str, Any], notes: list[str]
) -> None:
    day = {"template_date": "2026-01-02"} if template == "gptoss" else {}
    found, _ = told(tok, template, tmp_path, [user("Hi"), answer(content)], **options, **day)
    assert found.notes == {note: [0] for note in notes}
