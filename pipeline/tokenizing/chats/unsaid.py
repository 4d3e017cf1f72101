"""What a template leaves out of what somebody says: allowed and noted, or an error."""

from __future__ import annotations

from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.layout import Leaf
from pipeline.tokenizing.chats.probes import Probes
from pipeline.tokenizing.chats.shapes import FoundTurns
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.rows.messages import Message, RowFault, name_of, reasoning_of
from pipeline.tokenizing.rows.samples import Chat


class Unsaid:
    """Holds what one template writes against what chats say."""

    def __init__(self, template: ChatTemplate, probes: Probes, options: TokenizeOptions) -> None:
        self._template, self._probes, self._allows = template, probes, options.unsaid == "allow"
        self._as_rendered = options.history == "as-rendered"

    def notes(self, chat: Chat, trained: list[int], text: str, found: FoundTurns, notes: list[str]) -> list[str]:
        """The notes of a sample, with what is left out of its text. Raises `RowFault` for what must not be.

        trained: the turns that are targets; notes: those there are already; see `tally.NOTES`.
        """
        notes = [*notes, *self._of_tools(chat, text)]
        last_user = max((number for number, turn in enumerate(chat.messages) if turn["role"] == "user"), default=0)
        for leaf in found.missing:
            turn = chat.messages[leaf.message]
            is_over = leaf.message < last_user or leaf.message not in trained
            if leaf.kind == "name":
                notes.append("unsaid_names")
            elif leaf.kind == "reasoning" and (is_over or (self._as_rendered and self._probes.has_reasoning(turn))):
                notes.append("history_left_out")
            elif leaf.kind == "content" and turn["role"] in ("system", "developer") and self._allows:
                notes.append("unsaid_system")
            else:
                raise self._left_out(leaf, turn)
        return list(dict.fromkeys(notes))

    def _of_tools(self, chat: Chat, text: str) -> list[str]:
        if not chat.tools:
            return []
        if self._probes.writes_tools and all((name_of(tool) or "") in text for tool in chat.tools):
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
        way = self._way(turn) if leaf.kind == "reasoning" else ""
        return RowFault(
            "template_mismatch",
            f"turn {leaf.message} ({role}): {name} does not write its {what} {leaf.text.strip()[:40]!r}{way}",
        )

    def _way(self, turn: Message) -> str:
        """What to do about reasoning that the template does not write."""
        if reasoning_of(turn) is None or self._probes.has_reasoning(turn) or not self._probes.takes_inline:
            return "; --reasoning drop takes it out"
        return "; --reasoning-inline puts it in front of the content, --reasoning drop takes it out"
