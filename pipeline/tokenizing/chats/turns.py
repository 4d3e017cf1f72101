"""Where the assistant's texts stand in a rendered chat, for templates that do not mark them.

Never by searching for a text in the whole: it may stand there twice. Each way is exact, or the row is refused:

1. *Layout*. Chats that are nothing but roles and texts are rendered once for each sequence of roles with stand-ins
   for the texts, which gives what the template writes between them. A row's rendering must then be exactly
   these pieces with its texts in between (trimmed, where the template trims), which says where each text stands.
2. *Substitution*, where a chat has tools or other keys, or the template looks into some text: the chat with a stand-in
   for one text must be rendered as the chat itself but for that text.
3. *Increments*, for turns that say more than a text, or whose text the template looks into: the chat up to the turn
   must be a prefix of the whole. What it adds to the turn's header is what the model has to write, and all that the
   turn says must stand in it.

The end token of a turn is the first special token after its content, inside what the template writes for the turn.
Cost: one rendering a sequence of roles and turn, then none but the row's own; otherwise two to four a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.tokenizing.chats.formats import Chat, RowFault, said_besides, unsaid
from pipeline.tokenizing.chats.template import ChatTemplate, Message, Span, TemplateRefusal

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

    after: str = ""
    """What the template writes after the content, in this turn."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a template writes around the texts of a sequence of roles."""

    pieces: list[str]
    """Before each slot, and after the last.  # length: num_slots + 1"""

    slots: list[int]
    """Number of the message whose text stands there."""

    own_ends: dict[int, int]
    """Assistant message -> characters after its text that belong to its own turn."""

    left_out: int | None
    """The first message whose text stands nowhere."""


class TurnFinder:
    """Finds assistant turns in the renderings of one template."""

    def __init__(self, template: ChatTemplate, special_texts: re.Pattern[str]) -> None:
        self._template = template
        self._special_texts = special_texts
        self._layouts: dict[tuple[str, ...], _Layout | None] = {}

    def require_all(self, chat: Chat) -> None:
        """Raise `RowFault` if the template leaves out what somebody says, as far as roles and texts tell."""
        if not chat.is_plain:
            return
        layout = self._layout(_roles(chat.messages))
        if layout is not None and layout.left_out is not None:
            turn = f"turn {layout.left_out} ({chat.messages[layout.left_out]['role']})"
            raise RowFault("template_mismatch", f"{self._template.name} leaves out {turn}")

    def find(self, chat: Chat, answers: Sequence[int], chat_text: str) -> list[Turn]:
        """The wanted assistant turns, by their numbers in the chat, in order.

        Raises `RowFault` where content and rendering disagree.
        """
        if chat.is_plain:
            layout = self._layout(_roles(chat.messages))
            found = self._by_layout(chat.messages, chat_text, layout) if layout else None
            wanted_found = [turn for turn in found or [] if turn.message in answers]
            if len(wanted_found) == len(answers):
                return wanted_found
        turns = []
        for number in answers:
            try:
                turn = self._by_substitution(chat, number, chat_text) or self._by_increment(chat, number, chat_text)
            except TemplateRefusal as refusal:
                raise self._mismatch(number, f"refuses a part of the chat ({refusal})") from None
            turns.append(turn)
        return turns

    def _by_layout(self, messages: list[Message], chat_text: str, layout: _Layout) -> list[Turn] | None:
        """None where the rendering is not made of the layout's pieces and the texts."""
        at = len(layout.pieces[0])
        if not chat_text.startswith(layout.pieces[0]):
            return None
        found = []
        for slot, number in enumerate(layout.slots):
            after = layout.pieces[slot + 1]
            text = messages[number]["content"]
            end = next(
                (at + len(form) for form in _trimmed_forms(text) if chat_text.startswith(form + after, at)), None
            )
            if end is None:
                return None
            own_end = layout.own_ends.get(number)
            if own_end is not None:
                found.append(self._turn(number, chat_text, (at, end), end + own_end))
            at = end + len(after)
        return found if at == len(chat_text) else None

    def _layout(self, roles: tuple[str, ...]) -> _Layout | None:
        """None where the template refuses the stand-ins."""
        try:
            return self._layouts[roles]
        except KeyError:
            layout = self._make_layout(roles)
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[roles] = layout
        return layout

    def _make_layout(self, roles: tuple[str, ...]) -> _Layout | None:
        messages = [{"role": role, "content": _stand_in(number)} for number, role in enumerate(roles)]
        try:
            pieces, slots = _parts(self._template.render(messages, None))
            own_ends = {
                number: self._own_end(messages[: number + 1], None, pieces[slots.index(number) + 1])
                for number, role in enumerate(roles)
                if role == "assistant" and slots.count(number) == 1
            }
        except TemplateRefusal:
            return None
        left_out = next((number for number in range(len(roles)) if number not in slots), None)
        return _Layout(pieces, slots, own_ends, left_out)

    def _own_end(self, upto: list[Message], tools: list[object] | None, after: str) -> int:
        """How much of what stands after the last text belongs to that turn and not to the next.

        upto: the chat up to the turn, with a stand-in for its text; after: what stands there in the whole.
        """
        pieces, slots = _parts(self._template.render(upto, tools))
        # A template may end the last turn otherwise than one in the middle; what both have is the turn's.
        if slots[-1:] != [len(upto) - 1]:
            return 0
        pairs = enumerate(zip(pieces[-1], after, strict=False))
        return next((at for at, (one, other) in pairs if one != other), min(len(pieces[-1]), len(after)))

    def _by_substitution(self, chat: Chat, number: int, chat_text: str) -> Turn | None:
        """None where the turn says more than a text, or that text decides how the rest is rendered."""
        turn = chat.messages[number]
        if not isinstance(turn.get("content"), str) or said_besides(turn):
            return None
        instead = {**turn, "content": _stand_in(number)}
        messages = [*chat.messages[:number], instead, *chat.messages[number + 1 :]]
        parts = self._template.render(messages, chat.tools).split(instead["content"])
        if len(parts) != 2:
            return None
        before, after = parts
        form = next((form for form in _trimmed_forms(turn["content"]) if chat_text == before + form + after), None)
        if form is None:
            return None
        content = len(before), len(before) + len(form)
        own_end = self._own_end(messages[: number + 1], chat.tools, after)
        return self._turn(number, chat_text, content, content[1] + own_end)

    def _by_increment(self, chat: Chat, number: int, chat_text: str) -> Turn:
        upto = self._template.render(chat.messages[: number + 1], chat.tools)
        if not chat_text.startswith(upto):
            raise self._mismatch(number, "renders the chat up to it otherwise than within the whole")
        start = self._header_end(chat, number, upto)
        written = upto[start:]
        turn = chat.messages[number]
        text = turn.get("content")
        end = start + len(written.rstrip())
        if isinstance(text, str) and text.strip() and not written.startswith(text):
            start += len(written) - len(written.lstrip())  # white space that the template puts before a text
        token = next((m.span() for m in self._special_texts.finditer(upto, start, end) if m.end() == end), None)
        content = upto[start : token[0] if token else end]
        missing = unsaid(turn, content)
        if isinstance(text, str) and missing is None:
            is_there = text.strip() in content if said_besides(turn) else text.strip() == content.strip()
            missing = None if is_there and content else text
        if missing is not None:
            what = "text" if missing == text else "reasoning or tool call"
            raise RowFault(
                "template_mismatch",
                f"turn {number} (assistant): {self._template.name} does not write its {what} {missing.strip()[:40]!r}",
            )
        return Turn(number, (start, start + len(content)), token)

    def _header_end(self, chat: Chat, number: int, upto: str) -> int:
        """Where a turn's header ends in the chat up to it: as the template opens a turn for the assistant."""
        before, tools = chat.messages[:number], chat.tools
        if number:
            opened = self._template.render(before, tools, generation_prompt=True)
            if opened != self._template.render(before, tools) and upto.startswith(opened):
                return len(opened)
        plain = {"role": "assistant", "content": _stand_in(number)}
        header = self._template.render([*before, plain], tools).partition(plain["content"])[0]
        for form in (header, header.rstrip()):
            if upto.startswith(form):
                return len(form)
        raise self._mismatch(number, "does not tell where it begins")

    def _turn(self, number: int, chat_text: str, content: Span, stop: int) -> Turn:
        token = self._special_texts.search(chat_text, content[1], stop)
        return Turn(number, content, token.span() if token else None, chat_text[content[1] : stop])

    def _mismatch(self, number: int, reason: str) -> RowFault:
        return RowFault(
            "template_mismatch",
            f"turn {number} (assistant) cannot be located: {self._template.name} {reason}; marking the turns with"
            " {% generation %} in a copy of the template settles where they are",
        )


def _stand_in(number: int) -> str:
    return f"\ue000{number}\ue001"


def _parts(chat_text: str) -> tuple[list[str], list[int]]:
    """What stands between the stand-ins, and whose stand-ins they are."""
    parts = _STAND_IN.split(chat_text)
    return parts[::2], [int(number) for number in parts[1::2]]


def _roles(messages: list[Message]) -> tuple[str, ...]:
    return tuple(turn["role"] for turn in messages)


def _trimmed_forms(text: str) -> list[str]:
    """A text as it is, and as templates trim it."""
    forms = [text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.lstrip("\n"), text.rstrip("\n")]
    return list(dict.fromkeys(forms)) if forms[1] != text else [text]
