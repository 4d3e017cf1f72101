"""What a template does not write of what somebody said, however it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.pipeline.tokenizing.oracle import samples_of
from tests.pipeline.tokenizing.test_chats import TEMPLATES, answer, told, user
from tests.pipeline.tokenizing.test_targets import encode, encoder

_CALLING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}CALL"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_ARGUMENTS = {'a"b': 1, "x\ny": "z\nq 'c' <b>", "n": {"k": ["é", 1.5, True, None]}, "s": " pad ", "t": "1"}


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("written", "content", "calls", "lacking"),
    [
        ("{{ c.function.name }}", "", [call("query_db", {"q": "x"})], "'q'"),
        ("{{ c.function.name }}", "The city: ", [call("look", {"city": "Oslo"})], "'city'"),
        (
            "{{ c.function.name }}({% for k in c.function.arguments %}{{ k }}{% endfor %})",
            "",
            [call("look", {"city": "Oslo"})],
            "'Oslo'",
        ),
        ('{{ c.function.name }}{"n": 12, "ok": True}', "", [call("look", {"n": 1, "ok": True})], "'1'"),
        ('{{ c.function.name }}{"a": "x", "b": ""}', "", [call("look", {"a": "x", "b": "x"})], "'x'"),
        (
            "{{ c.function.name }}{{ m.tool_calls[0].function.arguments | tojson }}",
            "",
            [call("look", {"city": "Oslo"}), call("look", {"city": "Rome"})],
            "'Rome'",
        ),
        (
            "{{ c.function.name }}{{ m.tool_calls[loop.revindex0].function.arguments | tojson }}",
            "",
            [call("look", {"city": "Oslo"}), call("look", {"city": "Rome"})],
            "'Oslo'",
        ),
        *(
            (written, "", [call("look", _ARGUMENTS), call("look", {"city": "Rome"})], None)
            for written in (
                "{{ c.function.name }}{{ c.function.arguments | tojson }}",
                "{{ c.function.arguments | tojson }}{{ c.function.name }}",
                "{{ c.function.name }}{{ c.function.arguments | tojson | tojson }}",
                "{{ c.function.name }}{{ c.function.arguments | string }}",
                "{{ c.function.name }}{% for k, v in c.function.arguments | dictsort %}<{{ k }}>{{ v }}{% endfor %}",
            )
        ),
    ],
)
def test_arguments_of_calls(
    tok: Path, tmp_path: Path, written: str, content: str, calls: list[Any], lacking: str | None
) -> None:
    row = [user("Weather?"), answer(content, tool_calls=calls)]
    details = [fault.detail for fault in told(tok, _CALLING.replace("CALL", written), tmp_path, row)[0].faults]
    wanted = [] if lacking is None else [f"does not write {lacking} of the arguments of its tool call"]
    assert [detail.partition(".jinja ")[2] for detail in details] == wanted


@pytest.mark.parametrize("template", ["qwen2_5", "qwen2_5_training"])
def test_reasoning_without_a_place_is_an_error_in_every_turn_and_row(tok: Path, tmp_path: Path, template: str) -> None:
    """Each row is judged by its own texts, though they share a shape."""
    one = encoder(tok, (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8"), tmp_path)
    thoughts = ("deep", "other")
    rows = [[user("Hi"), answer("x", reasoning_content=said), user("Bye"), answer("y")] for said in thoughts]
    faults = encode(one, rows).faults
    assert [fault.detail.partition("its ")[2] for fault in faults] == [
        f"reasoning '{said}'; --reasoning-inline puts it in front of the content, --reasoning drop takes it out"
        for said in thoughts
    ]


def test_reasoning_that_is_always_taken_out_is_an_error(tok: Path, tmp_path: Path) -> None:
    row = [user("Hi"), answer("<think>deep</think>x"), user("Bye"), answer("y")]
    for history in ("whole", "expand"):
        (fault,) = told(tok, "deepseekv3", tmp_path, row, append_eos=True, history=history)[0].faults
        assert "turn 1 (assistant)" in fault.detail
        assert fault.detail.endswith("'deep'; --reasoning drop takes it out")


@pytest.mark.parametrize("template", ["qwen3", "qwen3_training", "deepseekv3", "glm4moe", "qwen2_5"])
@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "<think></think>"])
def test_marks_around_nothing_are_no_reasoning(tok: Path, tmp_path: Path, template: str, block: str) -> None:
    row = [user("Hi"), answer(block + "x"), user("Bye"), answer(block + "y")]
    found, _ = told(tok, template, tmp_path, row, turn_end="none")
    whole: Any = AutoTokenizer.from_pretrained(tok)
    source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    ((ids, _),) = samples_of(found)
    assert ids == whole.apply_chat_template(row, chat_template=source)["input_ids"]
    assert set(found.kinds) <= {"answer", "inserted", "end"}


@pytest.mark.parametrize(
    ("names", "notes"),
    [(("look", "see"), []), (("see", "look"), ["unsaid_names"]), (("look", "ask"), ["unsaid_names"])],
)
def test_names_of_results_are_said_by_their_calls(
    tok: Path, tmp_path: Path, names: tuple[str, str], notes: list[str]
) -> None:
    """In the order of the calls; names of others than tools are said by nobody else."""
    results = [{"role": "tool", "content": name.upper(), "name": name} for name in names]
    turns = [user("Hi"), answer("", tool_calls=[call("look", {}), call("see", {})]), *results, answer("Done.")]
    assert told(tok, "qwen2_5", tmp_path, turns)[0].notes == {note: [0] for note in notes}
    assert told(tok, "qwen2_5", tmp_path, [user("Hi") | {"name": "look"}, turns[-1]])[0].notes == {"unsaid_names": [0]}


def test_a_tool_is_written_however_its_name_is_spelt(tok: Path, tmp_path: Path) -> None:
    source = (
        "{{ tools | tojson(ensure_ascii=True) }}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    tool = {"type": "function", "function": {"name": "größe", "description": "d", "parameters": {}}}
    found = told(tok, source, tmp_path, {"messages": [user("Hi"), answer("Ho")], "tools": [tool]})[0]
    assert (found.faults, found.notes) == ([], {})


@pytest.mark.parametrize("options", [{}, {"history": "as-rendered"}, {"history": "expand"}])
def test_reasoning_of_others_than_the_assistant_is_not_left_out_as_history(
    tok: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    turns = [user("Hi") | {"reasoning_content": "Hm."}, answer("Hello."), user("Bye"), answer("Ciao.")]
    (fault,) = told(tok, "qwen3", tmp_path, turns, **options)[0].faults
    assert "turn 0 (user)" in fault.detail and "reasoning 'Hm.'" in fault.detail and "--reasoning" not in fault.detail
