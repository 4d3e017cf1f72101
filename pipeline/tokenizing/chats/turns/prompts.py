"""The generation prompts of a chat's own words, held against those of stand-ins.

A turn begins where the template's generation prompt ends, and `probes` knows what that is after turns of some kind. A
template may look further: at the words of the last user turn (`/no_think`), at those of a system turn, at turns long
past. Where its syntax says that words may matter (`syntax.prompt_reads_words`), each turn of each chat is held against
its real prompt, which is one rendering a turn; elsewhere the first chat of each shape is, in a few of its turns. Where
the two differ, the real prompt holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.tokenizing.chats.syntax import PROMPT
from pipeline.tokenizing.chats.template import ChatTemplate, TemplateRefusal
from pipeline.tokenizing.chats.turns.layout import Layout, Leaf, common
from pipeline.tokenizing.chats.turns.probes import Before, Context, Probes
from pipeline.tokenizing.chats.turns.shapes import FoundTurns, Shape
from pipeline.tokenizing.rows.messages import Message
from pipeline.tokenizing.rows.samples import Chat


class Prompts:
    """The generation prompts of one template."""

    def __init__(self, template: ChatTemplate, probes: Probes) -> None:
        self._template, self._probes = template, probes
        self.by_words = (template.prompt_reads_words or None) if template.reads(PROMPT) else False
        """Whether chats of the same shape may have other prompts; None where a chat of each has to be looked at."""

    def context(self, chat: Chat, number: int, last_text: str, context: Context) -> Context:
        """What stands before an assistant turn of a chat; `context` itself where that is the same.

        last_text: how the text that stands last before the turn is rendered, empty where it is not the turn before's;
        context: what stands there in a chat of stand-ins.
        """
        before = chat.messages[:number]
        if not before or context.opened is None:
            return context
        try:
            opened = self._template.render(before, chat.tools, generation_prompt=True)
            if opened.endswith(last_text + context.opened):
                return context
            closed = self._template.render(before, chat.tools)
            least = opened
            for kwargs in self._probes.thinking:
                other = self._template.render(before, chat.tools, generation_prompt=True, kwargs=kwargs)
                least = least[: common(least, other)]
        except TemplateRefusal:
            return context
        at = _tail_of(closed, last_text, context)
        if at is None or not opened.startswith(closed[:at]):
            at = common(opened, closed)
        return Context(
            closed=closed[at:], opened=opened[at:], opened_least=least[at:], before_answer=context.before_answer
        )

    def begins(
        self, found: FoundTurns, chat: Chat, shape: Shape, layout: Layout, chat_text: str, numbers: list[int]
    ) -> dict[int, tuple[tuple[int, int] | str, Context]]:
        """As `Probes.begins` of those turns that other prompts open than those of stand-ins, and the prompts."""
        begins: dict[int, tuple[tuple[int, int] | str, Context]] = {}
        for number in numbers:
            if number - 1 in shape.turns and shape.turns[number - 1].goes_on:
                continue
            turn = shape.turns.get(number) or shape.unbegun[number]
            slot = turn.slots[0]
            before = before_turn(chat.messages, number, layout, found.leaves, slot)
            last_text = chat_text[slice(*found.spans[slot - 1])] if slot and before.is_next else ""
            context = self._probes.context(before.messages, has_tools=bool(chat.tools))
            real = self.context(chat, number, last_text, context)
            if real is not context:
                thinks = turn.kinds[0] == "reasoning"
                begins[number] = self._probes.begins(before, real, thinks=thinks, has_tools=bool(chat.tools)), real
        return begins


def before_turn(messages: list[Message], number: int, layout: Layout, leaves: Sequence[Leaf], slot: int) -> Before:
    """What stands before an assistant turn, the first text of which stands in some slot."""
    is_next = slot == 0 or leaves[layout.slots[slot - 1]].message == number - 1
    return Before(messages[:number], piece=layout.pieces[slot], is_next=is_next, is_first=slot == 0)


def _tail_of(closed: str, last_text: str, context: Context) -> int | None:
    """Where what follows the last text begins; None where that cannot be told."""
    if context.closed is not None and closed.endswith(last_text + context.closed):
        return len(closed) - len(context.closed)
    at = closed.rfind(last_text) if last_text else -1
    return at + len(last_text) if at >= 0 else None
