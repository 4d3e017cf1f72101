"""What the model has to write in each assistant turn of a rendered chat, by kind.

Never by searching for a text in the whole: it may stand there twice. `layout` says where each text stands; this module
says where a turn begins and ends around them:

- A turn begins where the template's generation prompt ends. What stands between the text before the turn and the first
  text of the turn must begin as the template opens a turn for the assistant (`probes.Context`); what follows that is
  the model's to write, also what nobody said, such as the header of a channel or an empty think block.
- It ends with the special tokens that follow its last text, up to and including the tokenizer's end token, as far as
  the template ends turns with them; the first other special token begins the next turn.

Cost: for each shape of chat (roles, keys, number of calls) one rendering, and one for each of its user turns that
follows an answer, to see what becomes of history (the square of its turns, once); then the chat's own, and one more
where it has tools or calls.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import replace

from pipeline.tokenizing.chats.history import last_run, rewritten
from pipeline.tokenizing.chats.layout import Layout, Leaf, common, common_text, layout_of, slot_spans, with_stand_ins
from pipeline.tokenizing.chats.probes import CLOSES, TOOLS, Before, Probes
from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.shapes import KINDS, FoundTurns, Kind, Rewriting, Shape, Turn, TurnShape
from pipeline.tokenizing.chats.template import ChatTemplate, Span, TemplateRefusal
from pipeline.tokenizing.rows.messages import Message, RowFault
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

_MOST_SHAPES = 4096


class TurnFinder:
    """Finds assistant turns in the renderings of one template."""

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer, marks: ReasoningMarks) -> None:
        self._template, self._marks = template, marks
        self._special_texts, self._eos = tokenizer.special_texts, tokenizer.eos_text
        self.probes = Probes(template, tokenizer.special_texts)
        self._shapes: dict[str | tuple[str, ...], Shape | None] = {}

    def shape(self, chat: Chat) -> Shape | None:
        """The shape of a chat; None where the template refuses the stand-ins."""
        plain = self._marks.plain_roles(chat)
        if plain is not None and plain in self._shapes:
            return self._shapes[plain]
        messages, leaves = with_stand_ins(chat.messages, self._marks, is_shape=True)
        key = plain or f"{bool(chat.tools)}{messages}"
        if key not in self._shapes:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            self._shapes[key] = self._make_shape(messages, leaves, has_tools=bool(chat.tools))
        return self._shapes[key]

    def rewritten(self, chat: Chat, shape: Shape | None) -> list[Rewriting]:
        """The answers of a chat of some shape that the template would render otherwise if the chat ended with them."""
        if shape is None:
            return []
        if shape.rewritten is None:
            messages, leaves = with_stand_ins(chat.messages, self._marks, is_shape=True)

            def shape_of(stop: int) -> Shape | None:
                own = leaves[: bisect_left(leaves, stop, key=lambda leaf: leaf.message)]
                return self._make_shape(messages[:stop], own, has_tools=bool(chat.tools), of_last_alone=True)

            shape.rewritten = rewritten(chat, shape, shape_of)
        return shape.rewritten

    def find(self, chat: Chat, shape: Shape | None, chat_text: str) -> FoundTurns:
        """All assistant turns of a chat of some shape; none where its rendering is not made of its texts and pieces."""
        found = None if shape is None else self._find(chat, shape, chat_text)
        return found or self._find_without_others(chat, chat_text) or self._none_found(chat, shape, chat_text)

    def _find(self, chat: Chat, shape: Shape, chat_text: str) -> FoundTurns | None:
        layout = shape.layout
        if self._marks.plain_roles(chat) is not None:
            leaves = [Leaf(number, "content", turn["content"]) for number, turn in enumerate(chat.messages)]
        else:
            messages, leaves = with_stand_ins(chat.messages, self._marks, is_shape=False)
            if chat.tools or any(turn.get("tool_calls") or "tool_call_id" in turn for turn in chat.messages):
                try:
                    layout = layout_of(self._template.render(messages, chat.tools))
                except TemplateRefusal:
                    return None
        spans = slot_spans(chat_text, layout, leaves) if layout.slots == shape.layout.slots else None
        return None if spans is None else self._found(shape, layout, leaves, spans, chat_text)

    def _find_without_others(self, chat: Chat, chat_text: str) -> FoundTurns | None:
        """As `_find`, for templates that look into what others than the assistant say."""
        messages, leaves = with_stand_ins(chat.messages, self._marks, is_shape=False, of_assistant_alone=True)
        try:
            layout = layout_of(self._template.render(messages, chat.tools))
        except TemplateRefusal:
            return None
        spans = slot_spans(chat_text, layout, leaves)
        if spans is None:
            return None
        shape = self._shape_of(layout, messages, leaves, has_tools=bool(chat.tools))
        found = self._found(shape, layout, leaves, spans, chat_text)
        found.missing += _unwritten(chat, chat_text)
        found.knows_others = False
        return found

    def _none_found(self, chat: Chat, shape: Shape | None, chat_text: str) -> FoundTurns:
        """What is known where no turn could be located: what the template leaves out, by its shape or the text."""
        why = "renders the texts of this chat otherwise than others"
        if shape is None:
            missing = _unwritten(chat, chat_text)
        else:
            leaves = with_stand_ins(chat.messages, self._marks, is_shape=True)[1]
            missing = [leaves[number] for number in shape.missing]
        return FoundTurns({}, dict.fromkeys(range(len(chat.messages)), why), missing)

    def _make_shape(
        self, messages: list[Message], leaves: list[Leaf], *, has_tools: bool, of_last_alone: bool = False
    ) -> Shape | None:
        """of_last_alone: whether turns are only those at its end that the assistant has without a break."""
        try:
            layout = layout_of(self._template.render(messages, TOOLS if has_tools else None))
        except TemplateRefusal:
            return None
        first = last_run(messages) if of_last_alone else 0
        return self._shape_of(layout, messages, leaves, has_tools=has_tools, first=first)

    def _shape_of(
        self, layout: Layout, messages: list[Message], leaves: list[Leaf], *, has_tools: bool, first: int = 0
    ) -> Shape:
        """first: the message from which on turns are wanted."""
        turns: dict[int, TurnShape] = {}
        untold: dict[int, str] = {}
        slots_of = self._slots_of(layout, leaves)
        times = Counter(layout.slots)
        for number in range(first, len(messages)):
            if messages[number]["role"] != "assistant":
                continue
            slots = slots_of.get(number)
            if not slots:
                untold[number] = "does not write it"
                continue
            own = [layout.slots[slot] for slot in slots]
            if any(leaves[leaf].kind in ("content", "reasoning") and times[leaf] > 1 for leaf in own):
                untold[number] = "writes what it says twice"
                continue
            between = range(slots[0], slots[-1] + 1)
            after = messages[number + 1 : number + 2]
            if any(leaves[layout.slots[slot]].message > number for slot in between) or (
                _is_blank_result(after) and self.probes.answers_inside(messages[number])
            ):
                untold[number] = "writes some of it after what comes next, such as the results of its calls"
                continue
            if number - 1 in turns and self._goes_on(turns[number - 1], layout, slots[0]):
                turns[number - 1] = replace(turns[number - 1], end=0, end_tokens=0, opener=None, goes_on=True)
                begins: tuple[int, int] | str = (0, 0)
            else:
                before = Before(
                    messages[:number],
                    piece=layout.pieces[slots[0]],
                    is_next=slots[0] == 0 or leaves[layout.slots[slots[0] - 1]].message == number - 1,
                    is_first=slots[0] == 0,
                )
                begins = self.probes.begins(before, thinks=leaves[own[0]].kind == "reasoning", has_tools=has_tools)
            if isinstance(begins, str):
                untold[number] = begins
                continue
            closed = self.probes.context(messages[: number + 1], has_tools=has_tools).closed or ""
            is_call = leaves[own[-1]].kind == "call"
            end, end_tokens, opener = self._ending(layout.pieces[slots[-1] + 1], closed, is_call=is_call)
            kinds = tuple(leaves[leaf].kind for leaf in own)
            turns[number] = TurnShape(number, tuple(slots), kinds, *begins, end, end_tokens, opener)
        written = set(layout.slots)
        missing = [number for number in range(len(leaves)) if number not in written]
        lost = frozenset(leaves[number].message for number in missing if leaves[number].kind == "reasoning")
        return Shape(layout, turns, untold, missing, lost)

    def _slots_of(self, layout: Layout, leaves: list[Leaf]) -> dict[int, list[int]]:
        """The slots of each message: where each of its texts stands first, and a call's name again before its end."""
        slots_of: dict[int, list[int]] = {}
        seen: set[int] = set()
        for slot, number in enumerate(layout.slots):
            if number >= len(leaves):
                continue
            own = slots_of.setdefault(leaves[number].message, [])
            is_first = number not in seen
            is_next = leaves[number].kind == "call" and own[-1:] == [slot - 1]
            if is_first or (is_next and not self._has_ending(layout.pieces[slot])):
                seen.add(number)
                own.append(slot)
        return slots_of

    def _has_ending(self, piece: str) -> bool:
        return any(text in self.probes.endings or text == self._eos for text in self._special_texts.findall(piece))

    def _goes_on(self, before: TurnShape, layout: Layout, slot: int) -> bool:
        """Whether the turn that begins in some slot goes on where the one before left off, as templates merge them."""
        is_next = before.slots[-1] == slot - 1 and before.kinds[-1] != "call"
        return is_next and not layout.pieces[slot].strip()

    def _ending(self, tail: str, closed: str, *, is_call: bool = False) -> tuple[int, int, Span | None]:
        """Where in what follows a turn's last text its end begins, where its special tokens end, and the next opener.

        closed: what follows it at the end of a chat; is_call: whether arguments, and what is around them, come first.
        """
        shared = common_text(tail, closed, self._special_texts)
        start = self.probes.closing_from(shared) if is_call else 0
        first = stop = opener = None
        for match in self._special_texts.finditer(tail, start):
            if match[0] not in self.probes.endings and match[0] != self._eos:
                opener = match.span()
                break
            if stop is not None and tail[stop : match.start()].strip():
                break  # a text stands between: what follows is another's
            first = match.start() if first is None else first
            stop = match.end()
            if match[0] == self._eos:
                break
        if first is None or stop is None:
            written = shared.rstrip()
            end = len(written) if opener is None else min(len(written), opener[0])
            return end, end, opener
        return first, stop, opener

    def _found(self, shape: Shape, layout: Layout, leaves: list[Leaf], spans: list[Span], chat_text: str) -> FoundTurns:
        turns = {number: self._turn(turn, shape, layout, spans, chat_text) for number, turn in shape.turns.items()}
        missing = [leaves[number] for number in shape.missing]
        return FoundTurns(turns, shape.untold, missing, leaves, layout.slots, spans, knows_others=True)

    def _turn(self, turn: TurnShape, shape: Shape, layout: Layout, spans: list[Span], chat_text: str) -> Turn:
        first, last = turn.slots[0], turn.slots[-1]
        piece, own_piece = shape.layout.pieces[first], layout.pieces[first]
        tail, own_tail = shape.layout.pieces[last + 1], layout.pieces[last + 1]
        end, stop, opener = turn.end, turn.end_tokens, turn.opener
        if tail is not own_tail and tail != own_tail:  # arguments stand in it, or ids
            end, stop, opener = self._moved(tail, own_tail, end, stop, opener)
        at = spans[last][1]
        begin = spans[first][0] - _before_end(turn.begin, piece, own_piece)
        parts = self._parts(turn, spans, begin, at + end, chat_text)
        return Turn(
            message=turn.message,
            parts=parts,
            end=at + end,
            end_tokens=(at + end, at + stop) if stop > end else None,
            opener=None if opener is None else (at + opener[0], at + opener[1]),
            after=chat_text[at : at + len(own_tail)],
            begin_least=spans[first][0] - _before_end(turn.begin_least, piece, own_piece),
            texts=[(kind, spans[slot]) for slot, kind in zip(turn.slots, turn.kinds, strict=True)],
            goes_on=turn.goes_on,
        )

    def _moved(
        self, tail: str, own_tail: str, end: int, stop: int, opener: Span | None
    ) -> tuple[int, int, Span | None]:
        """Places in the tail of a shape as places in the tail that has arguments."""
        same = common(tail, own_tail)
        if stop <= same:
            return end, stop, opener if opener is None or opener[1] <= same else None
        rest = tail[same:stop]
        at = own_tail.rfind(rest)
        if at < 0:
            return self._ending(own_tail, "")
        moved = at - same
        return end + moved, stop + moved, None if opener is None else (opener[0] + moved, opener[1] + moved)

    def _parts(
        self, turn: TurnShape, spans: list[Span], begin: int, end: int, chat_text: str
    ) -> list[tuple[Kind, Span]]:
        """What the model writes, cut at the texts; what ends a thought in front of a call is none of the call's."""
        parts: list[tuple[Kind, Span]] = []
        at = begin
        before: Kind | None = None
        for slot, kind in zip(turn.slots, turn.kinds, strict=True):
            span, this = spans[slot], KINDS[kind]
            around: Kind = "reasoning" if "reasoning" in (this, before) else "inserted"
            if this == "call" or before == "call":
                thought = 0 if before == "call" else self._thought_end(chat_text[at : span[0]], before)
                if thought:
                    parts.append((around, (at, at + thought)))
                at, around = at + thought, "call"
            if span[0] > at:
                parts.append((around, (at, span[0])))
            if span[1] > span[0]:
                parts.append((this, span))
            at, before = max(at, span[1]), this
        if end > at:
            parts.append((before if before in ("call", "reasoning") else "inserted", (at, end)))
        return parts

    def _thought_end(self, piece: str, before: Kind | None) -> int:
        """How much of what stands in front of a call ends a thought: up to its mark, or to the first special token."""
        mark = piece.rfind(self._marks.closing)
        if mark >= 0:
            rest = piece[mark + len(self._marks.closing) :]
            return len(piece) - len(rest.lstrip())
        special = self._special_texts.search(piece) if before == "reasoning" else None
        return special.end() if special else 0


def _before_end(at: int, piece: str, own_piece: str) -> int:
    """How far before the end of a chat's own piece stands what is at a place in the piece of its shape."""
    is_there = piece is own_piece or own_piece.startswith(piece[:at])  # or arguments stand before it, or ids
    return len(own_piece if is_there else piece) - at


def _is_blank_result(after: list[Message]) -> bool:
    """Whether what comes next is the result of a call that says nothing, so that it stands in no slot."""
    return bool(after) and after[0]["role"] not in ("assistant", "user") and not str(after[0].get("content")).strip()


def _unwritten(chat: Chat, chat_text: str) -> list[Leaf]:
    """What others than the assistant say and stands nowhere in a rendering."""
    return [
        Leaf(number, "content", turn["content"])
        for number, turn in enumerate(chat.messages)
        if turn["role"] != "assistant"
        and isinstance(turn.get("content"), str)
        and turn["content"].strip() not in chat_text
    ]


def unlocated(number: int, template: ChatTemplate, why: str) -> RowFault:
    """What is wrong with a turn whose place cannot be told."""
    if why == CLOSES:
        return RowFault(
            "template_mismatch",
            f"turn {number} (assistant): {template.name} {why}, so the model would never write it; --reasoning drop"
            " takes it out, and --template-kwargs enable_thinking=true (or the row's own) leaves it open",
        )
    return RowFault(
        "template_mismatch",
        f"turn {number} (assistant) cannot be located: {template.name} {why}; marking the turns with"
        " {% generation %} in a copy of the template settles where they are",
    )


def endless(turn: Turn, template: ChatTemplate, user_opener: str | None) -> RowFault:
    """What is wrong with a turn that no special token ends. user_opener: see `Probes`."""
    after = turn.after
    written = f" ({after[:20]!r} is none to the tokenizer)" if after.strip() and turn.opener is None else ""
    if turn.opener is not None:
        written = f" of its own ({after[:20]!r} follows; with --turn-end next, what begins the next turn ends it)"
    if turn.opener is None and user_opener is not None:
        written += f" (--turn-end next puts {user_opener!r} there, which begins the next turn)"
    return RowFault(
        "no_end_token",
        f"{template.name} writes no special token after turn {turn.message} (assistant){written}, so the"
        " model would not learn to stop; --append-eos puts the tokenizer's end token there, and --turn-end none"
        " trains what is written alone",
    )
