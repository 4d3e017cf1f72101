"""Reasoning, in whatever marks and under whatever names it stands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from tests.pipeline.tokenizing.test_chats import AGENT, PLAIN, answer, told, user


@pytest.fixture(scope="module")
def tok(tokenizer_dir: Path) -> Path:
    """The test's own tokenizer, which has ChatML's special tokens."""
    return tokenizer_dir


@pytest.mark.parametrize("marks", [("[THINK]", "[/THINK]"), ("<|im_start|>think", "<|im_end|>"), ("(", ")")])
def test_reasoning_in_other_marks(tok: Path, tmp_path: Path, marks: tuple[str, str]) -> None:
    begun, ended = marks
    content = f"{begun}\nfirst thought\n{ended}\n\nHello."
    asked: dict[str, Any] = {"reasoning_marks": f"{begun},{ended}", "special_in_text": "split"}
    for row in ([user("Hi"), answer(content)], [user("Hi"), answer("Hello.", reasoning="first thought")]):
        found, runs = told(tok, "qwen2_5", tmp_path, row, reasoning_inline=True, **asked)
        assert (runs, found.notes) == ([[content + "<|im_end|>"]], {})
        assert found.kinds["reasoning"] > found.kinds["answer"] > 0
        assert told(tok, "qwen2_5", tmp_path, row, reasoning_inline=True, reasoning="mask", **asked)[1] == [
            ["Hello.<|im_end|>"]
        ]
        found, runs = told(tok, "qwen2_5", tmp_path, row, reasoning="drop", **asked)
        assert (runs, found.notes) == ([["Hello.<|im_end|>"]], {"reasoning_dropped": [0]})
    (fault,) = told(tok, "qwen2_5", tmp_path, [user("Hi"), answer(f"{begun}\nfirst")], **asked)[0].faults
    assert (fault.reason, begun in fault.detail) == ("unclosed_reasoning", True)


@pytest.mark.parametrize("marks", ["<think>", "<think>,", "a,b,c", "same,same", " ,x"])
def test_marks_that_cannot_be(marks: str) -> None:
    with pytest.raises(ConfigError, match="two marks are needed"):
        TokenizeOptions(reasoning_marks=marks)


def test_reasoning_under_several_names(tok: Path, tmp_path: Path) -> None:
    wanted = [["<think>\nfirst thought\n</think>\n\nHello.<|im_end|>"]]
    inline = answer("<think>first thought</think>Hello.", reasoning="first thought\n")
    names = answer("Hello.", reasoning_content="first thought", thinking="first thought", reasoning=None)
    for turn in (inline, names):
        assert told(tok, "qwen3", tmp_path, [user("Hi"), turn])[1] == wanted
    for turn in (inline | {"reasoning": "other"}, names | {"reasoning": "other"}):
        (fault,) = told(tok, "qwen3", tmp_path, [user("Hi"), turn])[0].faults
        assert (fault.reason, "have reasoning that differs" in fault.detail) == ("contradictory_marks", True)
    none = told(tok, "qwen3", tmp_path, PLAIN[:2])[1]
    for blank in (None, "", " \n"):
        assert told(tok, "qwen3", tmp_path, [user("Hi"), answer("Hello.", reasoning_content=blank)])[1] == none
    (fault,) = told(tok, "qwen3", tmp_path, [user("Hi"), answer("Hello.", reasoning=["a"])])[0].faults
    assert "its reasoning is a list" in fault.detail


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (" <think>\n a\n</think>\n\nb ", (" <think>\n ", "a", "\n</think>\n\n", "b ")),
        ("a\n</think>\n\nb", ("", "a", "\n</think>\n\n", "b")),
        ("a</think>b", ("", "a", "</think>", "b")),
        ("<think>\n\n</think>\n\nb", ("<think>\n\n", "", "</think>\n\n", "b")),
        ("<think>a <think> b </think> c", ("<think>", "a <think> b", " </think> ", "c")),
        ("It is 4. <think>was easy</think> Bye.", None),
        ("<thin", None),
    ],
)
def test_where_inline_reasoning_stands(content: str, parts: tuple[str, ...] | None) -> None:
    found = ReasoningMarks().apart(content)
    assert (found and (found.before, found.reasoning, found.between, found.answer)) == parts
    assert not ReasoningMarks().is_unsure(content)


@pytest.mark.parametrize("content", ["Use </think> to close a block.", "Say `</think>`!"])
def test_a_closing_mark_amid_a_line_may_be_a_word(tok: Path, tmp_path: Path, content: str) -> None:
    row = [user("Hi"), answer(content)]
    assert told(tok, "qwen2_5", tmp_path, row)[1] == [[content + "<|im_end|>"]]
    for choice in ("mask", "drop"):
        (fault,) = told(tok, "qwen2_5", tmp_path, row, reasoning=choice)[0].faults
        assert (fault.reason, "--reasoning auto" in fault.detail) == ("unopened_reasoning", True)


def test_marks_in_the_middle_are_no_reasoning(tok: Path, tmp_path: Path) -> None:
    row = [user("Hi"), answer("It is 4. <think>was easy</think> Bye.")]
    for choice in ("auto", "mask", "drop"):
        found, runs = told(tok, "qwen2_5", tmp_path, row, reasoning=choice)
        assert (runs, found.notes) == ([["It is 4. <think>was easy</think> Bye.<|im_end|>"]], {})


def test_reasoning_is_found_in_linear_time() -> None:
    begun = time.process_time()
    for content in ("a" + "\n" * 200_000 + "b</think>c", " " * 200_000 + "</think>", "<think>" * 30_000 + "</think>"):
        assert ReasoningMarks().apart(content) is not None
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    ("name", "marks", "inserted"),
    [
        ("gptoss", "<think>,</think>", "<|channel|>final<|message|>"),
        ("qwen3", "<|begin|>,<|end|>", "<think>\n\n</think>\n\n"),
    ],
)
def test_what_a_template_inserts_before_inline_marks_is_no_reasoning(
    gpt2: Path, tmp_path: Path, name: str, marks: str, inserted: str
) -> None:
    opening, closing = marks.split(",")
    thought, row = f"{opening}\nhm\n{closing}\n\n", [user("Hi"), answer(f"{opening}\nhm\n{closing}\n\nHello.")]
    asked: dict[str, Any] = {"reasoning_marks": marks, "append_eos": True, "template_date": "2031-02-03"}
    whole = told(gpt2, name, tmp_path, row, **asked)[1][0][0]
    assert whole.startswith(inserted + thought + "Hello.")
    masked = told(gpt2, name, tmp_path, row, inserted="mask", **asked)[1][0][0]
    assert thought in masked and inserted not in masked  # what both begin in one token is both's
    runs = told(gpt2, name, tmp_path, row, reasoning="mask", **asked)[1][0]
    assert runs[0].startswith(inserted[:-1]) and runs[1].startswith("Hello.")


def test_an_answer_that_names_the_closing_mark(tok: Path, tmp_path: Path) -> None:
    (fault,) = told(tok, "qwen3", tmp_path, [user("Hi"), answer("It is </think> and more.")])[0].faults
    assert "cuts answers at </think>" in fault.detail


def test_a_null_content_that_a_template_reads(tok: Path, tmp_path: Path) -> None:
    (fault,) = told(tok, "deepseekv3", tmp_path, [*AGENT[:1], AGENT[1] | {"content": None}, *AGENT[2:]])[0].faults
    assert 'turn 1 (assistant) has none, or null: where it says nothing, give it the content ""' in fault.detail
