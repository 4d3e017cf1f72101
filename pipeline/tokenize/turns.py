"""Where the assistant's texts stand in a rendered chat, for templates that do not mark them.

Never by searching for a text in the whole: it may stand there twice. In three steps, each exact or refused:

1. *Layout*. Chats that are nothing but roles and texts are rendered once for each sequence of roles with stand-ins
   for the texts, which gives what the template writes between them. A row's rendering must then be exactly
   these pieces with its texts in between (trimmed, where the template trims), which says where each text stands.
2. *Increments*, where a template looks into the texts, or a row has tools or other keys: the chat up to a turn, opened
   for the assistant, must be a prefix of the chat including the turn, and that a prefix of the whole. What lies in
   between is what the model has to write.
3. The end token of a turn is the first special token after its content, inside what the template writes for the turn.

Cost: one rendering a sequence of roles and turn, then none but the row's own; with increments two a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.tokenize.formats import Chat, RowFault
from pipeline.tokenize.template import ChatTemplate, Message, Span, TemplateRefusal

_MOST_LAYOUTS = 4096
_STAND_IN = re.compile("\ue000([0-9]+)\ue001")  # private use: no text of anybody's language


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn in a rendered chat."""

    message: int
    """Its number in the chat."""

    content: Span
    end_token: Span | None
    """The first special token after the content; None if the template writes none."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a template writes around the texts of a sequence of roles."""

    pieces: list[str]
    """Before each slot, and after the last.  # length: num_slots + 1"""

    slots: list[int]
    """Number of the message whose text stands there."""

    own_ends: dict[int, int]
    """Assistant message -> characters after its text that belong to its own turn."""


class TurnFinder:
    """Finds assistant turns in the renderings of one template."""

    def __init__(self, template: ChatTemplate, special_texts: re.Pattern[str]) -> None:
        self._template = template
        self._special_texts = special_texts
        self._layouts: dict[tuple[str, ...], _Layout | None] = {}

    def find(self, chat: Chat, wanted: Sequence[int], rendered: str) -> list[Turn]:
        """The wanted assistant turns, by their numbers in the chat, in order.

        Raises `RowFault` where content and rendering disagree.
        """
        if chat.is_plain:
            layout = self._layout(tuple(turn["role"] for turn in chat.messages))
            found = self._by_layout(chat.messages, rendered, layout) if layout else None
            if found is not None:
                return [turn for turn in found if turn.message in wanted]
        return [self._by_increment(chat, number, rendered) for number in wanted]

    def _by_layout(self, messages: list[Message], rendered: str, layout: _Layout) -> list[Turn] | None:
        """None where the rendering is not made of the layout's pieces and the texts."""
        at = len(layout.pieces[0])
        if not rendered.startswith(layout.pieces[0]):
            return None
        found = []
        for slot, number in enumerate(layout.slots):
            after = layout.pieces[slot + 1]
            text = messages[number]["content"]
            end = next((at + len(form) for form in _trimmed_forms(text) if rendered.startswith(form + after, at)), None)
            if end is None:
                return None
            own_end = layout.own_ends.get(number)
            if own_end is not None:
                token = self._special_texts.search(rendered, end, end + own_end)
                found.append(Turn(number, (at, end), token.span() if token else None))
            at = end + len(after)
        return found if at == len(rendered) else None

    def _layout(self, roles: tuple[str, ...]) -> _Layout | None:
        """None where the template does not write every assistant text exactly once, or refuses the stand-ins."""
        try:
            return self._layouts[roles]
        except KeyError:
            layout = self._make_layout(roles)
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[roles] = layout
        return layout

    def _make_layout(self, roles: tuple[str, ...]) -> _Layout | None:
        parts = self._parts(roles)
        if parts is None:
            return None
        pieces, slots = parts
        own_ends = {}
        for number, role in enumerate(roles):
            if role != "assistant":
                continue
            if slots.count(number) != 1:
                return None
            after = pieces[slots.index(number) + 1]
            upto = self._parts(roles[: number + 1])
            is_last = upto is not None and upto[1][-1:] == [number] and after.startswith(upto[0][-1])
            own_ends[number] = len(upto[0][-1]) if upto is not None and is_last else len(after)
        return _Layout(pieces, slots, own_ends)

    def _parts(self, roles: tuple[str, ...]) -> tuple[list[str], list[int]] | None:
        """What stands between the texts of a sequence of roles, and whose texts they are."""
        messages = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        try:
            parts = _STAND_IN.split(self._template.render(messages, None))
        except TemplateRefusal:
            return None
        return parts[::2], [int(number) for number in parts[1::2]]

    def _by_increment(self, chat: Chat, number: int, rendered: str) -> Turn:
        messages, tools = chat.messages, chat.tools
        try:
            before = self._template.render(messages[:number], tools, generation_prompt=True) if number else None
            upto = self._template.render(messages[: number + 1], tools)
        except TemplateRefusal as refusal:
            raise RowFault(
                "template_mismatch", f"turn {number} (assistant) cannot be located in {self._template.name}: {refusal}"
            ) from None
        if before is None or not upto.startswith(before) or not rendered.startswith(upto):
            raise RowFault(
                "template_mismatch",
                f"turn {number} (assistant) cannot be located: {self._template.name} renders the chat up to it"
                " otherwise than within the whole; mark the turns with {% generation %} in a template of your own",
            )
        start, stop = len(before), len(upto)
        text = messages[number].get("content")
        if isinstance(text, str) and chat_says_no_more(messages[number]):
            form = next((form for form in _trimmed_forms(text) if rendered.count(form, start, stop) == 1), None)
            if form is not None:
                start = rendered.index(form, start, stop)
                token = self._special_texts.search(rendered, start + len(form), stop)
                return Turn(number, (start, start + len(form)), token.span() if token else None)
        written = rendered[start:stop]
        start += len(written) - len(written.lstrip())
        end = start + len(written.strip())
        token = next((m for m in self._special_texts.finditer(rendered, start, end) if m.end() == end), None)
        return Turn(number, (start, token.start() if token else end), token.span() if token else None)


def chat_says_no_more(turn: Message) -> bool:
    """Whether a turn's content is all it says."""
    return turn.keys() <= {"role", "content", "name"}


def _trimmed_forms(text: str) -> list[str]:
    """A text as it is, and as templates trim it."""
    forms = [text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.lstrip("\n"), text.rstrip("\n")]
    return list(dict.fromkeys(forms)) if forms[1] != text else [text]
