"""Templates are programs: those that would run on, or fill the memory, are stopped with one message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.tokenizing.chats import bounds
from tests.conftest import Run
from tests.pipeline.chats import chat, template
from tests.pipeline.tokenizing.conftest import Lines


def doubling(operation: str) -> str:
    loop = "{% for i in range(60) %}{% set n.x = n.x " + operation + " n.x %}{% endfor %}"
    return "{% set n = namespace(x='ab') %}" + loop


ENDLESS = {
    "loops in loops": "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "a text that doubles": doubling("~"),
    "a sum that doubles": doubling("+"),
    "a block that doubles": "{% set x %}ab{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
}
AT_ONCE = {
    "a product": "{{ 'ab' * 10**11 }}",
    "a product of lists": "{{ [1] * 10**11 }}",
    "a power": "{{ 7 ** 10000000000 }}",
    "a width": "{{ '%99999999999d' % 1 }}",
    "a width in a filter": "{{ '%99999999999d' | format(1) }}",
    "a width in a method": "{{ '{:99999999999}'.format(1) }}",
    "padding": "{{ 'a'.center(10**11) }}",
    "padding in a filter": "{{ 'a' | center(10**11) }}",
    "joining": "{{ ('ab' * 60000000).join([1, 2, 3]) }}",
    "joining in a filter": "{{ [1, 2, 3] | join('ab' * 60000000) }}",
    "replacing": "{{ ('ab' * 60000000).replace('a', 'b' * 60000000) }}",
    "replacing in a filter": "{{ ('ab' * 60000000) | replace('a', 'b' * 60000000) }}",
}


def tokenized(run: Run, tmp_path: Path, lines: Lines, tokenizer: Path, body: str, *flags: str) -> str:
    """The message about a template that does this where a chat says "now" in its third row."""
    source = lines([{"messages": chat(said, "yes")} for said in ("one", "two", "now", "four")])
    (tmp_path / "hostile.jinja").write_text(
        "{% if messages[0].content == 'now' %}" + body + "{% endif %}" + template("chatml", marks=False)
    )
    told = ["--tokenizer", tokenizer, "--chat-template", tmp_path / "hostile.jinja", "--output", tmp_path / "out"]
    ended = run("tokenize", source, *told, *flags)
    assert ended.code == 3, ended.err
    assert not (tmp_path / "out").exists()
    return ended.err


@pytest.mark.parametrize("what", ENDLESS)
def test_a_template_that_would_run_on_is_stopped(
    run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    monkeypatch.setattr(bounds, "MOST_BYTES", 1 << 27)
    told = tokenized(run, tmp_path, lines, tokenizer_dir, ENDLESS[what], "--on-error", "drop")
    assert "rows.jsonl, row 2" in told and "hostile.jinja takes more than" in told


@pytest.mark.parametrize("what", AT_ONCE)
def test_an_operation_that_would_fill_the_memory_is_refused(
    run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path, what: str
) -> None:
    told = tokenized(run, tmp_path, lines, tokenizer_dir, AT_ONCE[what])
    assert "rows.jsonl, row 2" in told and "SecurityError" in told


def test_what_templates_do_is_allowed(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path) -> None:
    body = (
        "{{ '-' * 20 ~ '%02d' % 7 ~ '{:>4}'.format(2) ~ 'a'.center(5) ~ 'b' | center(5) ~ 'abc'.replace('a', 'x')"
        " ~ 'c' | indent(2) ~ 2 ** 8 ~ 7 % 4 ~ ', '.join(['a', 'b']) }}"
    )
    source = lines([{"messages": chat("one", "yes")}])
    (tmp_path / "usual.jinja").write_text(body + template("chatml", marks=False))
    flags = ["--tokenizer", tokenizer_dir, "--chat-template", tmp_path / "usual.jinja", "--train-on", "all", "--json"]
    ended = run("tokenize", source, *flags, "--output", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["counts"]["samples"] == 1
