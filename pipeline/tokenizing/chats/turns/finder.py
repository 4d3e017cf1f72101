"""What the model has to write in each assistant turn of a rendered chat, by kind.

Never by searching for a text in the whole: it may stand there twice. `layout` says where each text stands; this module
says where a turn begins and ends around them:

- A turn begins where the template's generation prompt ends. What stands between the text before the turn and the first
  text of the turn must begin as the template opens a turn for the assistant (`probes.Context`); what follows that is
  the model's to write, also what nobody said, such as the header of a channel or an empty think block.
- It ends with the special tokens that follow its last text, up to and including the tokenizer's end token, as far as
  the template ends turns with them; the first other special token begins the next turn.

Cost: for each shape of chat (roles, keys, number of calls) one rendering, a few of chats up to some of its user turns,
to see what becomes of history (one for each in short chats, some ten for each run of like answers in long ones), and
one or two with generation prompts for each kind of turn; then the chat's own, and one more where it has tools or calls.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from dataclasses import replace

from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.template import ChatTemplate, TemplateRefusal
from pipeline.tokenizing.chats.turns.history import last_run, rewritten
from pipeline.tokenizing.chats.turns.layout import STAND_IN, Layout, Leaf, layout_of, slot_spans, with_stand_ins
from pipeline.tokenizing.chats.turns.locating import Locator
from pipeline.tokenizing.chats.turns.probes import CUTS, TOOLS, Probes
from pipeline.tokenizing.chats.turns.prompts import Prompts, before_turn
from pipeline.tokenizing.chats.turns.shapes import FoundTurns, Rewriting, Shape, TurnShape
from pipeline.tokenizing.rows.messages import Message
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokens.places import Span
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

_MOST_SHAPES = 4096


class TurnFinder:
    """Finds assistant turns in the renderings of one template."""

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer, marks: ReasoningMarks) -> None:
        self._template, self._marks = template, marks
        self._special_texts, self._eos = tokenizer.special_texts, tokenizer.eos_text
        self.probes = Probes(template, tokenizer.special_texts)
        self._locator = Locator(tokenizer, self.probes, marks)
        self._prompts = Prompts(template, self.probes)
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

            kinds = [STAND_IN.sub("", json.dumps(turn, ensure_ascii=False, default=str)) for turn in messages]
            shape.rewritten = rewritten(chat, kinds, shape, shape_of)
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
        if spans is None:
            return None
        return self._found(chat, shape, layout, leaves, spans, chat_text)

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
        found = self._found(chat, shape, layout, leaves, spans, chat_text)
        found.missing += _unwritten(chat, chat_text)
        found.knows_others = False
        return found

    def _none_found(self, chat: Chat, shape: Shape | None, chat_text: str) -> FoundTurns:
        """What is known where no turn could be located: what the template leaves out, by its shape or the text."""
        why = "renders the texts of this chat otherwise than others"
        answers = [str(turn.get("content")) for turn in chat.messages if turn["role"] == "assistant"]
        apart = [(answer, self._marks.apart(answer)) for answer in answers]
        if any(self._marks.closing in (answer if inline is None else inline.answer) for answer, inline in apart):
            why = f"{CUTS} {self._marks.closing}, which stands in the words of one, as if reasoning ended there"
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
        unbegun: dict[int, TurnShape] = {}
        untold: dict[int, str] = {}
        unprompted: set[int] = set()
        slots_of = self._slots_of(layout, leaves)
        times = Counter(layout.slots)
        told = {leaf.message for leaf in leaves if leaf.kind == "content"}
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
                _is_result(after) and number + 1 not in told and self.probes.answers_inside(messages[number])
            ):
                untold[number] = "writes some of it after what comes next, such as the results of its calls"
                continue
            if number - 1 in turns and self._goes_on(turns[number - 1], layout, slots[0]):
                turns[number - 1] = replace(turns[number - 1], end=0, end_tokens=0, opener=None, goes_on=True)
                begins: tuple[int, int] | str = (0, 0)
            else:
                before = before_turn(messages, number, layout, leaves, slots[0])
                context = self.probes.context(before.messages, has_tools=has_tools)
                thinks = leaves[own[0]].kind == "reasoning"
                begins = self.probes.begins(before, context, thinks=thinks, has_tools=has_tools)
                if not isinstance(begins, str) and not before.piece[: begins[0]].endswith(context.prompt):
                    unprompted.add(number)
            closed = self.probes.context(messages[: number + 1], has_tools=has_tools).closed or ""
            is_call = leaves[own[-1]].kind == "call"
            end, end_tokens, opener = self._locator.ending(layout.pieces[slots[-1] + 1], closed, is_call=is_call)
            kinds = tuple(leaves[leaf].kind for leaf in own)
            if isinstance(begins, str):
                untold[number] = begins
                unbegun[number] = TurnShape(number, tuple(slots), kinds, 0, 0, end, end_tokens, opener)
            else:
                turns[number] = TurnShape(number, tuple(slots), kinds, *begins, end, end_tokens, opener)
        written = set(layout.slots)
        missing = [number for number in range(len(leaves)) if number not in written]
        lost = frozenset(leaves[number].message for number in missing if leaves[number].kind == "reasoning")
        return Shape(layout, turns, untold, missing, lost, unbegun, self._prompts.by_words, frozenset(unprompted))

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

    def _found(
        self, chat: Chat, shape: Shape, layout: Layout, leaves: list[Leaf], spans: list[Span], chat_text: str
    ) -> FoundTurns:
        turns, unbegun = (
            {number: self._locator.turn(turn, shape, layout, spans, chat_text) for number, turn in some.items()}
            for some in (shape.turns, shape.unbegun)
        )
        missing = [leaves[number] for number in shape.missing]
        found = FoundTurns(turns, shape.untold, missing, unbegun, leaves, layout.slots, spans)
        found.knows_others, found.unprompted = True, shape.unprompted
        if shape.by_words is not False:
            self._begin_by_prompts(found, chat, shape, layout, chat_text)
        return found

    def _begin_by_prompts(self, found: FoundTurns, chat: Chat, shape: Shape, layout: Layout, chat_text: str) -> None:
        """Begin turns where the prompts of the chat's own words end, if they end elsewhere."""
        begins = {}
        if shape.by_words is None:
            begins = self._prompts.begins(found, chat, shape, layout, chat_text, shape.samples())
            shape.by_words = bool(begins)
        if shape.by_words:
            begins = self._prompts.begins(found, chat, shape, layout, chat_text, sorted(shape.turns | shape.unbegun))
        if not begins:
            return
        found.untold = {number: why for number, why in found.untold.items() if number not in begins}
        found.unprompted -= begins.keys()
        for number, (begin, context) in begins.items():
            if isinstance(begin, str):
                found.turns.pop(number, None)
                found.untold[number] = begin
                continue
            turn = shape.turns.get(number) or shape.unbegun[number]
            found.turns[number] = self._locator.turn(turn, shape, layout, found.spans, chat_text, begin)
            if not layout.pieces[turn.slots[0]][: begin[0]].endswith(context.prompt):
                found.unprompted |= {number}
        found.turns = dict(sorted(found.turns.items()))


def _is_result(after: list[Message]) -> bool:
    """Whether what comes next may be the result of a call."""
    return bool(after) and after[0]["role"] not in ("assistant", "user")


def _unwritten(chat: Chat, chat_text: str) -> list[Leaf]:
    """What others than the assistant say and stands nowhere in a rendering."""
    return [
        Leaf(number, "content", turn["content"])
        for number, turn in enumerate(chat.messages)
        if turn["role"] != "assistant"
        and isinstance(turn.get("content"), str)
        and turn["content"].strip() not in chat_text
    ]
