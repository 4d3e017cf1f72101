"""Long chats under templates that rewrite history: a few renderings tell of all answers, and tell the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.tokenizing.chats.template import ChatTemplate
from tests.pipeline.tokenizing.oracle import samples_of
from tests.pipeline.tokenizing.test_chats import answer, user
from tests.pipeline.tokenizing.test_targets import encode, encoder

TEMPLATE = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content and (KEPT) %}{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
ANSWERS = 40


@pytest.mark.parametrize(
    ("kept", "is_quick"),
    [
        ("loop.last", True),
        ("loop.revindex < 24", True),
        ("loop.index < 9 or loop.last", True),
        ("loop.index0 % 6 == 1 or loop.last", False),
    ],
)
def test_each_answer_of_a_long_chat_is_as_at_inference(
    tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str, is_quick: bool
) -> None:
    source = TEMPLATE.replace("KEPT", kept)
    chat = [turn for n in range(ANSWERS) for turn in (user(f"q{n}"), answer(f"a{n}", reasoning_content=f"r{n}"))]
    one = encoder(tok, source, tmp_path, history="expand")
    found = encode(one, [chat])
    assert found.faults == []
    whole: Any = AutoTokenizer.from_pretrained(tok)
    how = {"chat_template": source, "tokenize": False}
    whole_text = str(whole.apply_chat_template(chat, **how))
    ends = [chat[: 2 * n + 2] for n in range(ANSWERS)]
    own = [str(whole.apply_chat_template(end, **how)) for end in ends]
    lost = [text for text in own if not whole_text.startswith(text)]
    assert 10 < len(lost) < ANSWERS
    texts = [str(whole.decode(ids)) for ids, _ in samples_of(found)]
    assert texts == [*lost, whole_text]

    long_ones: list[int] = []
    render = ChatTemplate.render

    def counted(self: ChatTemplate, messages: Any, tools: Any, **how: Any) -> str:
        long_ones.extend([len(messages)] if len(messages) > 2 else [])
        return render(self, messages, tools, **how)

    one = encoder(tok, source, tmp_path, history="as-rendered")
    monkeypatch.setattr(ChatTemplate, "render", counted)
    encode(one, [chat])
    assert (len(long_ones) < 0.75 * ANSWERS) == is_quick
