"""Which keys of turns a template reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.turn_keys import keys_of_turns
from pipeline.tokenizing.tokenization import load_tokenization
from tests.pipeline.tokenizing.test_chats import PLAIN, TEMPLATES, answer, told, user


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        (
            "{% for m in messages %}{{ m.a }}{{ m['b'] }}{{ m.get('c') }}{% if 'd' in m %}x{% endif %}{% endfor %}",
            "abcd",
        ),
        ("{{ messages[0].a }}{% set m = messages[-1] %}{{ m.b }}{{ messages | map(attribute='c') | join }}", "abc"),
        ("{% set ns = namespace(m=none) %}{% set ns.m = messages | last %}{{ ns.m.a }}", "a"),
        ("{% set rest = messages[1:] %}{% for m in rest | reverse %}{{ m.a }}{{ loop.previtem.b }}{% endfor %}", "ab"),
        ("{% macro say(m) %}{{ m.a }}{% endmacro %}{% for x in messages if x.b %}{{ say(x) }}{% endfor %}", "ab"),
        ("{% for t in tools %}{{ t.x }}{% endfor %}{% for m in messages %}{{ m.a[0].y }}{{ z }}{% endfor %}", "a"),
        ("{% for m in messages %}{{ m | tojson }}{% endfor %}", None),
        ("{% for m in messages %}{% for key in m %}{{ m[key] }}{% endfor %}{% endfor %}", None),
    ],
)
def test_what_is_read_of_a_turn(source: str, keys: str | None) -> None:
    assert keys_of_turns(source) == (None if keys is None else frozenset(keys))


@pytest.mark.parametrize("name", ["qwen3", "gemma4", "glm4moe"])
def test_tools_of_a_turn_are_no_tools_of_the_chat(tok: Path, tmp_path: Path, name: str) -> None:
    own = user("Hi") | {"description": "d", "parameters": {"a": 1}}
    found, _ = told(tok, name, tmp_path, [own, answer("Yo", function="f")], turn_end="none")
    assert (found.unread_keys, found.faults) == ({"description": 1, "parameters": 1, "function": 1}, [])
    row = [{"role": "system", "content": "s", "tools": "[{}]"}, *PLAIN]
    (fault,) = told(tok, name, tmp_path, row, turn_end="none")[0].faults
    assert "turn 0 (system): the template does not read its tools" in fault.detail


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html></html>", "an HTML page"),
        (b" \n", "it is empty"),
        ((TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8").encode("utf-16"), "UTF-16"),
        ("{{ messages }}".encode("utf-16-le"), "UTF-16"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_files_that_are_no_templates_are_named(tok: Path, tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--chat-template {path}: .*{what}"):
        load_tokenization(tok, path, TokenizeOptions())
