"""What a template leaves out of what somebody says: allowed and noted, or an error."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.template import ChatTemplate, TemplateRefusal
from pipeline.tokenizing.chats.turns.layout import CALL_ID, Leaf, stand_in
from pipeline.tokenizing.chats.turns.probes import TOOLS, Probes
from pipeline.tokenizing.chats.turns.shapes import FoundTurns
from pipeline.tokenizing.rows.messages import (
    TOOL_ROLES,
    Message,
    RowFault,
    calls_of,
    function_of,
    name_of,
    parsed,
    reasoning_of,
)
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokens.places import Span


class Unsaid:
    """Holds what one template writes against what chats say."""

    def __init__(self, template: ChatTemplate, probes: Probes, options: TokenizeOptions) -> None:
        self._template, self._probes, self._allows = template, probes, options.unsaid == "allow"
        self._as_rendered = options.history == "as-rendered"

    def notes(self, chat: Chat, trained: list[int], text: str, found: FoundTurns, notes: list[str]) -> list[str]:
        """The notes of a sample, with what is left out of its text. Raises `RowFault` for what must not be.

        trained: the turns that are targets; notes: those there are already; see `tally.NOTES`.
        """
        if found.unprompted.intersection(trained):
            notes = [*notes, "prompt_unwritten"]
        if chat.plain_roles is not None and not found.missing:
            return notes
        notes = [*notes, *self._of_tools(chat, text)]
        last_user = max((number for number, turn in enumerate(chat.messages) if turn["role"] == "user"), default=0)
        for leaf in found.missing:
            turn = chat.messages[leaf.message]
            is_over = leaf.message < last_user or leaf.message not in trained or self._as_rendered
            if leaf.kind == "name":
                notes += [] if _is_called(chat, leaf) else ["unsaid_names"]
            elif leaf.kind == "reasoning" and turn["role"] == "assistant" and is_over and self._has_place(turn):
                notes.append("history_left_out")
            elif leaf.kind == "content" and turn["role"] in ("system", "developer") and self._allows:
                notes.append("unsaid_system")
            else:
                raise self._left_out(leaf, turn)
        if chat.plain_roles is None:
            self._require_arguments(chat, text, found)
        return list(dict.fromkeys(notes))

    def _has_place(self, turn: Message) -> bool:
        """Whether the template writes the reasoning of such a turn somewhere, such as in the last turn."""
        return self._takes_inline(turn) if reasoning_of(turn) is None else self._probes.has_reasoning(turn)

    def _takes_inline(self, turn: Message) -> bool:
        """Whether the template writes reasoning that stands in front of the content of such a turn."""
        return self._probes.takes_inline and (not turn.get("tool_calls") or self._writes_beside_calls)

    @cached_property
    def _writes_beside_calls(self) -> bool:
        """Whether the template writes what is said in a turn with calls."""
        function = {"name": "f", "arguments": "{}" if self._probes.wants_text else {}}
        call = {"id": CALL_ID, "type": "function", "function": function}
        calling = {"role": "assistant", "content": stand_in(0), "tool_calls": [call]}
        try:
            return stand_in(0) in self._template.render([{"role": "user", "content": "u"}, calling], TOOLS)
        except TemplateRefusal:
            return False

    def _of_tools(self, chat: Chat, text: str) -> list[str]:
        if not chat.tools:
            return []
        if self._probes.writes_tools and all(_is_named(tool, text) for tool in chat.tools):
            return []
        if self._allows:
            return ["unsaid_tools"]
        names = ", ".join(str(name_of(tool)) for tool in chat.tools)
        raise RowFault(
            "template_mismatch",
            f"{self._template.name} leaves out the tools ({names}); give a template that writes them, or allow it with"
            " --unsaid allow",
        )

    def _left_out(self, leaf: Leaf, turn: Message) -> RowFault:
        name, role = self._template.name, turn["role"]
        if leaf.kind == "content" and not turn.get("tool_calls"):
            way = "; --unsaid allow takes such chats all the same" if role in ("system", "developer") else ""
            return RowFault("template_mismatch", f"{name} leaves out turn {leaf.message} ({role}){way}")
        what = {"reasoning": "reasoning", "call": "tool call"}.get(leaf.kind, "text")
        own = self._way(turn) if role == "assistant" else "; only the assistant's can be used, so take it out"
        way = own if leaf.kind == "reasoning" else ""
        return RowFault(
            "template_mismatch",
            f"turn {leaf.message} ({role}): {name} does not write its {what} {leaf.text.strip()[:40]!r}{way}",
        )

    def _way(self, turn: Message) -> str:
        """What to do about reasoning that the template does not write."""
        if reasoning_of(turn) is None or self._probes.has_reasoning(turn) or not self._takes_inline(turn):
            return "; --reasoning drop takes it out"
        return "; --reasoning-inline puts it in front of the content, --reasoning drop takes it out"

    def _require_arguments(self, chat: Chat, text: str, found: FoundTurns) -> None:
        """Raise `RowFault` for a call of whose arguments something is not written."""
        texts: dict[int, list[tuple[int, Span]]] = {}  # by message: numbers of leaves, and where they stand
        for number, span in zip(found.slots, found.spans, strict=True):
            texts.setdefault(found.leaves[number].message, []).append((number, span))
        for number, turn in enumerate(chat.messages):
            calls, own = calls_of(turn), texts.get(number, [])
            if not calls:
                continue
            whole = (0, len(text))
            if number in found.turns:
                located = found.turns[number]
                whole = (located.parts[0][1][0] if located.parts else located.end, located.end)
            names = sorted({leaf for leaf, _ in own if found.leaves[leaf].kind == "call"})[-len(calls) :]
            begins = [min(span[0] for leaf, span in own if leaf == name) for name in names]
            if number not in found.turns or len(begins) < len(calls) or begins != sorted(begins):
                ways = [[whole] * len(calls)]
            else:  # each call's are after its name, or each call's before it
                edges = [whole[0], *begins, whole[1]]
                ways = [list(pairwise(edges[1:])), list(pairwise(edges[:-1]))]
            unwritten = [
                [
                    lacking
                    for call, region in zip(calls, regions, strict=True)
                    if (lacking := _lacking(call, _outside(text, region, [span for _, span in own]))) is not None
                ][:1]
                for regions in ways
            ]
            if all(unwritten):
                raise RowFault(
                    "template_mismatch",
                    f"turn {number} ({turn['role']}): {self._template.name} does not write {unwritten[0][0][:40]!r} of"
                    " the arguments of its tool call",
                )


def _is_named(tool: Any, text: str) -> bool:
    """Whether the name of a tool stands in a text, as any template may write it."""
    name = name_of(tool) or ""
    return name in text or any(spelling in text for spelling in _spellings(name))


def _is_called(chat: Chat, leaf: Leaf) -> bool:
    """Whether a name is that of the function whose call the turn answers, as that call says already."""
    caller = leaf.message
    while caller and chat.messages[caller]["role"] in TOOL_ROLES:
        caller -= 1
    calls = calls_of(chat.messages[caller])
    number = leaf.message - caller - 1
    return 0 <= number < len(calls) and name_of(calls[number]) == leaf.text


def _outside(text: str, region: Span, spans: list[Span]) -> str:
    """The text of a region without that of some spans, which are in order."""
    kept, at = [], region[0]
    for begin, end in spans:
        if end > at and begin < region[1]:
            kept.append(text[at : max(at, begin)])
            at = end
    return "\0".join([*kept, text[at : max(at, region[1])]])


def _lacking(call: Any, written: str) -> str | None:
    """A key or value of a call's arguments that does not stand in a text as often as in them; None if all do."""
    arguments = function_of(call).get("arguments")
    if isinstance(arguments, str) and arguments.strip() in written:
        return None
    for said, times in Counter(_said(parsed(arguments))).items():
        if not any(_times(spelling, written) >= times for spelling in _spellings(said)):
            return said
    return None


def _said(value: Any) -> Iterator[str]:
    """The keys and values of arguments, as text; no blank ones."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _said(str(key))
            yield from _said(part)
    elif isinstance(value, list):
        for part in value:
            yield from _said(part)
    elif isinstance(value, str):
        if value.strip():
            yield value.strip()
    else:
        yield json.dumps(value)


def _spellings(said: str) -> Iterator[str]:
    """A key or value as templates write it: as it is, in JSON (in JSON), in Python or in markup."""
    yield said
    for to_ascii in (False, True):
        quoted = json.dumps(said, ensure_ascii=to_ascii)[1:-1]
        yield quoted
        yield json.dumps(quoted, ensure_ascii=to_ascii)[1:-1]
    yield repr(said)[1:-1]
    yield html.escape(said)
    if said in ("true", "false", "null"):
        yield {"true": "True", "false": "False", "null": "None"}[said]


def _times(said: str, text: str) -> int:
    """How often something stands in a text other than as a part of a word or a number."""
    times, at = 0, text.find(said)
    while at >= 0:
        end = at + len(said)
        begun = at and _is_of_word(said[0]) and _is_of_word(text[at - 1])
        times += not (begun or (_is_of_word(said[-1]) and _is_of_word(text[end : end + 1])))
        at = text.find(said, end)
    return times


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_"
