"""What a chat template is told: by the run, by each row, and which day it is."""

from __future__ import annotations

import datetime
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError
from pipeline.format.options import TEMPLATE_KWARGS, InputOptions, TokenizeOptions
from pipeline.reading.decoding.raw import RawBlock, open_raw
from pipeline.reading.inputs import resolve
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.tokenizing.tokenization import load_tokenization
from tests.conftest import Run
from tests.pipeline.chats import chat, template
from tests.pipeline.tokenizing.conftest import Lines, manifest_of
from tests.pipeline.tokenizing.oracle import lines_of, samples_of, trained_runs
from tests.pipeline.tokenizing.test_chats import PLAIN, REASONED, TEMPLATES, TOOL, answer, user

OFF = {"enable_thinking": False}


def encoded(tok: Path, source: Path, rows: list[dict[str, Any]], **options: Any) -> EncodedBlock:
    """Rows under a template, their format told by all columns that any of them has."""
    content = lines_of([dict.fromkeys(key for row in rows for key in row) | row for row in rows])
    raw = source.parent / "rows.jsonl" if source.parent != TEMPLATES else tok / "rows.jsonl"
    raw.write_bytes(content)
    (file,) = resolve(str(raw), InputOptions())[0].files()
    tokenization = load_tokenization(tok, source, TokenizeOptions(**options), tells=False)
    (format_,) = tokenization.formats_of([open_raw(file, str(raw))])
    return tokenization.encoder(format_).encode(RawBlock(content, 0))


def texts(tok: Path, found: EncodedBlock) -> list[list[str]]:
    from transformers import AutoTokenizer

    whole = AutoTokenizer.from_pretrained(tok)
    return [[str(whole.decode(run)) for run in trained_runs(*sample)] for sample in samples_of(found)]


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '' if enable_thinking | default(true) else ' at once' }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '' if enable_thinking | default(true) else ' at once' }}\n"
    "{% endif %}"
)


@pytest.mark.parametrize("name", ["qwen3", "marked"])
@pytest.mark.parametrize("turns", [PLAIN[:2], [user("Hi"), answer("Hello.", name="me")]], ids=["plain", "named"])
def test_each_row_tells_its_template(tok: Path, tmp_path: Path, name: str, turns: list[dict[str, Any]]) -> None:
    """Each row gives what a run of its own gives that tells the same, and trains what its generation prompt leaves."""
    from transformers import AutoTokenizer

    whole: Any = AutoTokenizer.from_pretrained(tok)
    source = TEMPLATES / f"{name}.jinja"
    if name == "marked":
        source = tmp_path / "marked.jinja"
        source.write_text(MARKED)
    told = [None, OFF, json.dumps(OFF), {"enable_thinking": None}, {"enable_thinking": True}, {}]
    found = encoded(tok, source, [{"messages": turns, TEMPLATE_KWARGS: one} for one in told], unsaid="allow")
    assert found.faults == []
    runs = {off: encoded(tok, source, [{"messages": turns}], template_kwargs=OFF if off else {}) for off in (0, 1)}
    (on_sample,), (off_sample,) = (samples_of(runs[off]) for off in (0, 1))
    assert on_sample != off_sample
    assert samples_of(found) == [on_sample, off_sample, off_sample, on_sample, on_sample, on_sample]
    for kwargs, (ids, labels) in zip(({}, OFF), (on_sample, off_sample), strict=True):
        prompt = whole.apply_chat_template(
            turns[:1], chat_template=source.read_text(), add_generation_prompt=True, **kwargs
        )["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert set(labels[: len(prompt)]) == {-100} and labels[len(prompt)] != -100


def test_a_row_wins_over_the_run_also_where_history_is_expanded(tok: Path) -> None:
    ways = [(REASONED, {"enable_thinking": True}), (PLAIN, None), (REASONED, None)]
    rows = [{"messages": turns, TEMPLATE_KWARGS: told} for turns, told in ways]
    all_ = encoded(tok, TEMPLATES / "qwen3.jinja", rows, history="expand", template_kwargs=OFF)
    alone = [
        encoded(tok, TEMPLATES / "qwen3.jinja", [{"messages": turns}], history="expand", template_kwargs=kwargs)
        for turns, kwargs in ((REASONED, {}), (PLAIN, OFF))
    ]
    assert samples_of(all_) == samples_of(alone[0]) + samples_of(alone[1])
    assert (all_.rows, all_.turns) == ([0, 0, 1, 1], [1, 3, 1, 3])
    (fault,) = all_.faults  # no thought can follow a prompt that has closed it
    assert (fault.row, fault.reason) == (2, "template_mismatch")


def test_what_a_template_does_not_read_is_noted(tok: Path) -> None:
    rows = [{"messages": PLAIN[:2], TEMPLATE_KWARGS: one} for one in ({"enable_thinkin": False}, OFF)]
    assert encoded(tok, TEMPLATES / "qwen3.jinja", rows).notes == {"kwargs_unread": [0]}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1], "holds a list"),
        ("enable_thinking=false", "holds a text that is no JSON"),
        (3, "holds a number"),
        ({"tools": []}, "has tools"),
        ('{"messages": [], "add_generation_prompt": true}', "has messages and add_generation_prompt"),
    ],
)
def test_what_a_row_cannot_tell(tok: Path, value: Any, told: str) -> None:
    found = encoded(tok, TEMPLATES / "qwen3.jinja", [{"messages": PLAIN, TEMPLATE_KWARGS: value}, {"messages": PLAIN}])
    ((row, reason, detail),) = [(fault.row, fault.reason, fault.detail) for fault in found.faults]
    assert (row, reason, found.rows) == (0, "bad_template_kwargs", [1])
    assert f"column 'chat_template_kwargs' {told}" in detail


@pytest.mark.parametrize(
    ("name", "options", "row", "reads"),
    [
        ("gptoss", {}, {}, True),
        ("gptoss", {"template_date": "2026-01-02"}, {}, False),
        ("llama3_2", {}, {}, True),
        ("llama3_2", {"template_kwargs": {"date_string": "26 Jul 2024"}}, {}, False),
        ("llama3_2", {}, {TEMPLATE_KWARGS: {"date_string": "26 Jul 2024"}}, False),
        ("with tools alone", {}, {}, False),
        ("with tools alone", {}, {"tools": [TOOL]}, True),
    ],
)
def test_a_day_is_needed_where_the_clock_is_read(
    tok: Path, tmp_path: Path, name: str, options: dict[str, Any], row: dict[str, Any], *, reads: bool
) -> None:
    source = TEMPLATES / f"{name}.jinja"
    if name == "with tools alone":
        source = tmp_path / "dated.jinja"
        clock = "{% if tools %}{{ strftime_now('%Y') }} {{ tools | tojson }}\n{% endif %}"
        source.write_text(clock + (TEMPLATES / "qwen2_5_training.jinja").read_text(encoding="utf-8"))
    rows = [{"messages": PLAIN}, {"messages": PLAIN} | row]
    options = options | {"append_eos": True}
    if not reads:
        rows = rows if name != "llama3_2" or not row else rows[1:]
        assert encoded(tok, source, rows, **options).faults == []
        return
    with pytest.raises(ConfigError) as raised:
        encoded(tok, source, rows, **options)
    today = datetime.date.today().isoformat()
    assert source.name in str(raised.value) and f"--template-date {today}" in str(raised.value)


def test_the_clock_ends_a_run_and_a_day_makes_it(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path) -> None:
    path = tmp_path / "dated.jinja"
    path.write_text("{{ strftime_now('%Y') }}\n" + template("chatml", marks=False))
    source = lines([{"messages": chat("a", "b")}])
    flags = [source, "--output", tmp_path / "o", "--tokenizer", tokenizer_dir, "--chat-template", path]
    for command in (["tokenize"], ["pack", "--max-length", 99]):
        ended = run(*command, *flags)
        assert (ended.code, "reads the clock" in ended.err, (tmp_path / "o").exists()) == (2, True, False)
    assert run("tokenize", *flags, "--template-date", "2031-01-02").code == 0
    assert manifest_of(tmp_path / "o")["config"]["template_date"] == "2031-01-02"


@pytest.mark.parametrize(
    "options",
    [
        {"template_kwargs": OFF},
        {"template_date": "2026-01-02"},
        {"history": "expand"},
        {"reasoning": "drop"},
        {"reasoning_inline": True},
        {"tool_calls": "mask"},
        {"inserted": "mask"},
        {"turn_end": "none"},
        {"unsaid": "allow"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_templates_need_something_to_render(
    tokenizer_dir: Path, lines: Lines, options: dict[str, Any]
) -> None:
    flag = next(iter(options)).replace("_", "-")
    for row in ({"text": "a"}, {"prompt": "a", "completion": "b"}):
        (file,) = resolve(str(lines([row])), InputOptions())[0].files()
        tokenization = load_tokenization(tokenizer_dir, None, TokenizeOptions(**options), tells=False)
        with pytest.raises(ConfigError, match=f"--{flag} has no effect"):
            tokenization.formats_of([open_raw(file, file.path)])


def test_words_of_python_are_no_values(run: Run, lines: Lines, tok: Path) -> None:
    ended = run("tokenize", lines([{"text": "a"}]), "--tokenizer", tok, "--template-kwargs", "enable_thinking=False")
    assert ended.code == 2
    assert "write false" in ended.err


def test_marks_are_of_the_chat_alone_while_other_threads_render(tok: Path, tmp_path: Path) -> None:
    """Transformers notes marks in the compiled template, whoever renders by it meanwhile."""
    path = tmp_path / "marked.jinja"
    path.write_text(MARKED)
    tokenization = load_tokenization(tok, path, TokenizeOptions(), tells=False)
    chats = ChatTemplate(tokenization.tokenizer, path)
    is_over = threading.Event()

    def render() -> None:
        while not is_over.is_set():
            chats.render(PLAIN, None)

    other = threading.Thread(target=render)
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        found = {len(marks) for _ in range(20) for _, marks in chats.render_all_marked([PLAIN] * 20)}
    finally:
        sys.setswitchinterval(interval)
        is_over.set()
        other.join()
    assert found == {sum(turn["role"] == "assistant" for turn in PLAIN)}
