"""What a template writes around what is said: a chat rendered with stand-ins, and a rendering read by it.

Every text of a chat (a *leaf*: content, reasoning, the name of a function called) is replaced by a stand-in, and the
chat is rendered. The pieces between the stand-ins are what the template writes. The rendering of the chat itself must
then be exactly these pieces with the texts in between (trimmed, where the template trims), which says where each text
stands, however often it occurs. Arguments of calls and ids are no leaves: in a *shape* they are replaced by the least
that will do, so that one shape serves all chats of its kind; two renderings tell where they stand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any, Literal, NamedTuple

from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.rows.messages import REASONING, Message, calls_of, function_of
from pipeline.tokenizing.tokens.places import Span

LeafKind = Literal["content", "reasoning", "call", "name"]
STAND_IN = re.compile("\ue000([0-9]+)\ue001")  # private use: no text of anybody's language
CALL_ID = "a00000000"
"""What stands for the id of a call: nine letters and digits, which is what Mistral's templates insist on."""


class Leaf(NamedTuple):
    """A text that somebody says."""

    message: int
    kind: LeafKind
    text: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The pieces that a template writes, and which leaves stand between them."""

    pieces: list[str]
    """Before each slot, and after the last.  # length: num_slots + 1"""

    slots: list[int]
    """Number of the leaf that stands there."""


def stand_in(number: int) -> str:
    """What stands for a leaf."""
    return f"\ue000{number}\ue001"


def layout_of(rendered: str) -> Layout:
    """A rendering with stand-ins, taken apart."""
    parts = STAND_IN.split(rendered)
    return Layout(parts[::2], [int(number) for number in parts[1::2]])


def with_stand_ins(
    messages: Sequence[Message], marks: ReasoningMarks, *, is_shape: bool, of_assistant_alone: bool = False
) -> tuple[list[Message], list[Leaf]]:
    """A chat with stand-ins for its leaves, and the leaves.

    marks: of inline reasoning; is_shape: whether arguments and ids are replaced too; of_assistant_alone: leave what
    others say as it is.
    """
    leaves: list[Leaf] = []
    replaced = []
    for number, turn in enumerate(messages):
        if of_assistant_alone and turn["role"] != "assistant":
            replaced.append(turn)
            continue

        def leaf(kind: LeafKind, text: str, message: int = number) -> str:
            leaves.append(Leaf(message, kind, text))
            return stand_in(len(leaves) - 1)

        made = dict(turn)
        _replace_reasoning(made, leaf)
        content = turn.get("content")
        if isinstance(content, str) and content.strip():
            inline = marks.apart(content) if turn["role"] == "assistant" else None
            if inline is None or not (inline.reasoning or inline.answer.strip()):
                made["content"] = leaf("content", content)
            elif not inline.reasoning:  # the marks alone: blank reasoning is none
                made["content"] = inline.before + inline.between + leaf("content", inline.answer)
            else:
                answer = leaf("content", inline.answer) if inline.answer.strip() else inline.answer
                made["content"] = inline.before + leaf("reasoning", inline.reasoning) + inline.between + answer
        if isinstance(turn.get("name"), str) and turn["name"].strip():
            made["name"] = leaf("name", turn["name"])
        if isinstance(turn.get("function_calls"), str) and turn["function_calls"].strip():
            made["function_calls"] = leaf("call", turn["function_calls"])
        if turn.get("tool_calls"):
            made["tool_calls"] = [_replaced_call(call, leaf, is_shape=is_shape) for call in calls_of(turn)]
        if is_shape and "tool_call_id" in made:
            made["tool_call_id"] = CALL_ID
        replaced.append(made)
    return replaced, leaves


def _replace_reasoning(made: Message, leaf: Any) -> None:
    told = [key for key in REASONING if isinstance(made.get(key), str)]
    if told:
        instead = leaf("reasoning", made[told[0]])
        for key in told:
            made[key] = instead


def _replaced_call(call: Any, leaf: Any, *, is_shape: bool) -> Any:
    function = dict(function_of(call))
    function["name"] = leaf("call", str(function["name"]))
    if is_shape:
        function["arguments"] = {} if isinstance(function.get("arguments"), dict) else "{}"
    outer = {"id": CALL_ID} if is_shape and "id" in call else {}
    return call | outer | {"function": function}


def slot_spans(rendered: str, layout: Layout, leaves: Sequence[Leaf]) -> list[Span] | None:
    """Where the text of each slot stands in the rendering of the chat itself; None where it is not made of the layout.

    rendered: by the same template, with the same arguments and ids as the layout.
    """
    if not rendered.startswith(layout.pieces[0]):
        return None
    at = len(layout.pieces[0])
    spans = []
    for slot, number in enumerate(layout.slots):
        after, text = layout.pieces[slot + 1], leaves[number].text
        end = at + len(text)
        if not (rendered.startswith(text, at) and rendered.startswith(after, end)):
            form = next((form for form in _forms(text) if rendered.startswith(form + after, at)), None)
            if form is None:
                return None
            end = at + len(form)
        spans.append((at, end))
        at = end + len(after)
    return spans if at == len(rendered) else None


def _forms(text: str) -> list[str]:
    """A text as templates trim it, and as they write it into JSON."""
    forms = []
    if text.strip() != text:
        forms += [text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.lstrip("\n"), text.rstrip("\n")]
    quoted = json.dumps(text, ensure_ascii=False)[1:-1]
    if quoted != text:
        forms += [quoted, json.dumps(text.strip(), ensure_ascii=False)[1:-1]]
    return list(dict.fromkeys(forms))


def common(one: str, other: str) -> int:
    """How many characters two texts have in common from the beginning."""
    return len(commonprefix([one, other]))  # noqa: RUF071 - of characters is what is wanted


def common_text(one: str, other: str, special_texts: re.Pattern[str]) -> str:
    """What two texts have in common from the beginning, without the part of a special token."""
    same = common(one, other)
    special = [match.span() for text in (one, other) for match in special_texts.finditer(text)]
    return one[: min((begin for begin, end in special if begin < same < end), default=same)]
