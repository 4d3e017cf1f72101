"""What ends turns where templates write no end token of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.tokenization import load_tokenization
from tests.pipeline.tokenizing.test_chats import AGENT, CALL, PLAIN, TOOL, answer, told

SAID = "<|{{ m.role }}|>\n{{ m.content }}"
ASKS = "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (SAID + "{{ '\n' }}", "\n"),
        ("{{ '' if loop.first else '\n\n' }}" + SAID, "\n\n"),
        (SAID + "{{ '\n### End\n\n' }}", "\n### End\n\n"),
    ],
)
def test_the_way_to_what_ends_a_turn_is_trained(tok: Path, tmp_path: Path, body: str, written: str) -> None:
    """In the middle of a chat and at its end alike, whatever stands between an answer and the next turn."""
    source = "{% for m in messages %}" + body + "{% endfor %}" + ASKS
    _, (runs,) = told(tok, source, tmp_path, PLAIN, turn_end="next")
    assert runs == [f"{said}{written}<|user|>" for said in ("Hello.", "Ciao.")]
    _, (runs,) = told(tok, source, tmp_path, PLAIN, append_eos=True)
    assert runs == [f"{said}{written.rstrip()}</s>" for said in ("Hello.", "Ciao.")]


def test_a_token_that_ends_turns_of_others_ends_answers_in_the_middle(tok: Path, tmp_path: Path) -> None:
    end = "{{ eos_token if loop.last and m.role == 'assistant' else '<|eom|>' }}"
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + end + "{% endfor %}"
    source += "{% if add_generation_prompt %}assistant: {% endif %}"
    _, (runs,) = told(tok, source, tmp_path, PLAIN)
    assert [run.strip() for run in runs] == ["Hello.<|eom|>", "Ciao.</s>"]


def test_what_follows_a_turn_is_quoted_from_after_its_last_call(tok: Path, tmp_path: Path) -> None:
    chat = [AGENT[0], answer("", tool_calls=[CALL, CALL]), *AGENT[2:]]
    (fault,) = told(tok, "glm4moe", tmp_path, {"messages": chat, "tools": [TOOL]})[0].faults
    assert "of its own ('<|observation|>" in fault.detail


@pytest.mark.parametrize(
    ("options", "flag"), [({}, None), ({"turn_end": "next"}, "--turn-end next"), ({"append_eos": True}, "--append-eos")]
)
def test_marks_say_where_turns_end_and_flags_do_not(
    tok: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], flag: str | None
) -> None:
    path = tmp_path / "marks.jinja"
    path.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    with caplog.at_level(logging.WARNING):
        load_tokenization(tok, path, TokenizeOptions(**options))
    assert [message.partition(" has no effect on chats")[0] for message in caplog.messages] == ([flag] if flag else [])


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("gemma4", "<|tool_response>"),
        ("qwen2_5", "<|im_end|>"),
        ("qwen2_5_training", "\n<|im_end|>\n"),
    ],
)
def test_of_a_masked_call_only_what_stops_generation_is_trained(
    tok: Path, tmp_path: Path, name: str, stop: str
) -> None:
    found, (runs,) = told(tok, name, tmp_path, AGENT, tool_calls="mask")
    assert "".join(runs[:-1]) == stop
    assert "call" not in found.kinds
