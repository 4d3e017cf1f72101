"""Turns under other keys, and what is proposed for them; tools as they are written elsewhere."""

from __future__ import annotations

import pytest

from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokenization import turn_reader
from tests.pipeline.chats import chat
from tests.pipeline.tokenizing.rows.test_formats import detect, read


@pytest.mark.parametrize(
    ("keys", "speakers", "flags"),
    [
        (("speaker", "text"), ("user", "assistant"), "--keys role=speaker,content=text"),
        (
            ("author", "body"),
            ("ann", "bot"),
            "--keys role=author,content=body --roles user=ann,assistant=bot",
        ),
        (("type", "content"), ("human", "ai"), "--keys role=type --roles user=human,assistant=ai"),
        (("role", "parts"), ("user", "model"), "--keys content=parts --roles assistant=model"),
        (("from", "text"), ("human", "gpt"), "--keys role=from,content=text --roles user=human,assistant=gpt"),
    ],
)
def test_chats_under_other_keys_are_told_how_they_are_read(
    keys: tuple[str, str], speakers: tuple[str, str], flags: str
) -> None:
    says = (lambda text: [{"text": text}]) if keys[1] == "parts" else str
    turns = [dict(zip(keys, (speaker, says(text)), strict=True)) for speaker, text in zip(speakers, "qa", strict=True)]
    with pytest.raises(RowFault, match="looks like a chat under other names") as fault:
        detect({"messages": turns}).sample({"messages": turns}, as_chat=True)
    assert fault.value.reason == "unknown_role" and f": {flags} reads it" in str(fault.value)
    told = dict(flag.split(" ") for flag in flags.removeprefix("--").split(" --"))
    keys_told, roles_told = (
        dict(part.split("=") for part in told[name].split(",")) if name in told else {} for name in ("keys", "roles")
    )
    reader = turn_reader(TokenizeOptions(keys=keys_told, roles=roles_told), None)
    assert [reader.message(turn, "")[0] for turn in turns] == chat("q", "a")


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ({"role": ["user"], "content": ["a"]}, "it holds lists under role and content"),  # as datasets' Sequence had
        (b"[]", "it holds bytes"),
    ],
)
def test_what_is_no_list_of_turns_is_called_what_it_is(turns: object, told: str) -> None:
    with pytest.raises(RowFault, match=told):
        read({"messages": turns})


def test_a_flat_tool_says_its_type_once() -> None:
    """As OpenAI's Responses API has tools."""
    function = {"name": "f", "parameters": {"type": "object"}}
    row = {"messages": chat("a", "b"), "tools": [{"type": "function"} | function]}
    sample = read(row)
    assert isinstance(sample, Chat)
    assert sample.tools == [{"type": "function", "function": function}]
