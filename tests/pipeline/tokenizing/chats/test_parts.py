"""Parts of an answer that the data marks as not trained are text and no targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError
from pipeline.format.options import TokenizeOptions
from tests.pipeline.tokenizing.test_chats import CALL, answer, told, user


def parts(*told: tuple[str, Any], key: str = "train") -> list[Any]:
    """Parts of a content, each marked; a text that begins with * is thinking."""
    made: list[Any] = []
    for text, mark in told:
        type_ = "thinking" if text.startswith("*") else "text"
        made.append({"type": type_, type_: text.removeprefix("*"), key: mark})
    return made


def answered(*told: tuple[str, Any], key: str = "train", **keys: Any) -> list[Any]:
    return [user("Hi"), {"role": "assistant", "content": parts(*told, key=key), **keys}]


END = "<|im_end|>"
THOUGHT = "<think>\nfirst\n</think>\n\n"


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training"])
@pytest.mark.parametrize(
    ("told_parts", "keys", "wanted"),
    [
        ([("Yes. ", 0), ("Yes. ", None), ("No.", 1)], {}, ["Yes. No." + END]),
        ([("Yes. ", None), ("Yes. ", 0), ("No.", 1)], {}, ["Yes. ", "No." + END]),
        ([("Yes. ", True), ("No.", "0")], {"weight": 1}, ["Yes. "]),
        ([("Yes. ", 1), ("  ", 0)], {}, ["Yes.   " + END]),
        ([("Yes. ", 1), ("No.", None)], {}, ["Yes. No." + END]),
        ([("*first", 0), ("No.", 1)], {}, ["<think>\n", "\n</think>\n\nNo." + END]),
        ([("*fi", 0), ("*rst", 1), ("No.", 0)], {}, ["<think>\n", "rst\n</think>\n\n"]),
        ([(THOUGHT, 0), ("No.", 1)], {}, ["No." + END]),
        ([("<think>first</think>", 0), ("No.", 1)], {"weight": 1}, ["No." + END]),
        ([("Yes. ", 0), ("No.", 0)], {"tool_calls": [CALL]}, None),
        ([("Yes. ", 1), ("No.", 0)], {"tool_calls": [CALL]}, ["Yes. ", "CALL" + END]),
    ],
)
def test_parts(tok: Path, tmp_path: Path, name: str, told_parts: Any, keys: Any, wanted: list[str] | None) -> None:
    found, runs = told(tok, name, tmp_path, answered(*told_parts, **keys))
    if wanted is None:
        (fault,) = found.faults
        assert fault.reason == "no_assistant_turn" and "marks assistant turns as not trained" in fault.detail
        return
    call = '\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    expected = [text.replace("CALL", call) for text in wanted]
    if not any(text.startswith(("*", "<think>")) for text, _ in told_parts):
        empty = "<think>\n\n</think>\n\n"
        expected = [empty + expected[0], *expected[1:]] if told_parts[0][1] != 0 else [empty, *expected]
    if name == "qwen3_training" and expected[-1].endswith(END):
        expected[-1] += "\n"
    assert runs == [expected]


def test_an_untrained_end_is_put_all_the_same(tok: Path, tmp_path: Path) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    found, runs = told(tok, source, tmp_path, answered((" Yes. ", 1), ("No. ", 0)), append_eos=True)
    told_too, _ = told(tok, source, tmp_path, answered((" Yes. No. ", 1)), append_eos=True)
    assert (runs, found.input_ids.tolist()) == ([["Yes. "]], told_too.input_ids.tolist())


def test_reasoning_that_is_masked_dropped_or_moved(tok: Path, tmp_path: Path) -> None:
    row = answered(("*fi", 0), ("*rst", 1), ("Yes. ", 0), ("No.", 1))
    _, runs = told(tok, "qwen2_5", tmp_path, row, reasoning_inline=True)
    assert runs == [["<think>\n", "rst\n</think>\n\n", "No." + END]]
    assert told(tok, "qwen2_5", tmp_path, row, reasoning="drop")[1] == [["No." + END]]
    assert told(tok, "qwen3", tmp_path, row, reasoning="mask")[1] == [["No." + END]]
    inline = answered((THOUGHT, 0), ("No.", 1))
    assert told(tok, "qwen2_5", tmp_path, inline, reasoning="drop")[1] == [["No." + END]]
    split = answered(("Yes<|im_end|> ", 0), ("No<|im_end|>", 1))
    assert told(tok, "qwen2_5", tmp_path, split, special_in_text="split")[1] == [["No<|im_end|>" + END]]


@pytest.mark.parametrize("told_row", [answered(("Yes. ", 0), ("No.", 1)), [user("Hi") | {"train": 0}, answer("No.")]])
def test_all_and_marks_contradict_each_other(tok: Path, tmp_path: Path, told_row: Any) -> None:
    for row in (told_row, [user("Hi"), answer("No.", weight=0)]):
        (fault,) = told(tok, "qwen2_5", tmp_path, row, train_on="all")[0].faults
        assert (fault.reason, "--train-on assistant" in fault.detail) == ("contradictory_marks", True)
    assert told(tok, "qwen2_5", tmp_path, [user("Hi"), answer("No.", weight=1)], train_on="all")[0].faults == []


@pytest.mark.parametrize("name", ["reasoning", "tool_calls", "inserted"])
def test_all_and_masks_contradict_each_other(name: str) -> None:
    given: dict[str, Any] = {"train_on": "all", name: "mask"}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} mask has no effect"):
        TokenizeOptions(**given)


@pytest.mark.parametrize(
    ("row", "reason", "says"),
    [
        (answered(("a", 0.5)), "unknown_weight", "part 0: train 0.5"),
        (answered(("a", 1), key="loss_weight", weight=0), "contradictory_marks", "contradict its own"),
        (answered(("a", 0), weight=1), "contradictory_marks", "contradict its own"),
        ([{"role": "user", "content": parts(("a", 0), ("b", 1))}, answer("c")], "contradictory_marks", "only the"),
    ],
)
def test_marks_that_cannot_be(tok: Path, tmp_path: Path, row: Any, reason: str, says: str) -> None:
    (fault,) = told(tok, "qwen2_5", tmp_path, row)[0].faults
    assert (fault.reason, says in fault.detail) == (reason, True), fault.detail


def test_a_template_that_rewrites_parts_is_refused(tok: Path, tmp_path: Path) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content | replace('  ', ' ') }}<|im_end|>{% endgeneration %}\n{% endfor %}"
    )
    row = answered(("a  ", 0), ("b", 1))[1:]
    for marked in (source, source.replace("{% generation %}", "").replace("{% endgeneration %}", "")):
        (fault,) = told(tok, marked, tmp_path, row)[0].faults
        assert "cannot be located" in fault.detail
