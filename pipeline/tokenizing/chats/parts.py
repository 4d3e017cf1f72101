"""What each piece of a rendered chat is, trained or not."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.tokenizing.chats.shapes import KINDS, FoundTurns
from pipeline.tokenizing.chats.template import Span
from pipeline.tokenizing.rows.samples import Chat

Parts = list[tuple[str, Span]]
"""Characters by kind, in order: kinds of targets, and system, user, result (of a tool) or another role."""

_OF_ROLES = {"developer": "system"} | dict.fromkeys(("tool", "function", "observation", "ipython"), "result")


def parts_of(chat: Chat, found: FoundTurns, puts: Sequence[Span]) -> Parts:
    """The pieces of a chat's text that somebody says or has to write; the rest is the template's.

    puts: characters that were put into the text after turns were found in it, in order.
    """
    parts: Parts = []
    for number, span in zip(found.slots, found.spans, strict=True):
        leaf = found.leaves[number]
        if leaf.message not in found.turns:
            role = str(chat.messages[leaf.message]["role"])
            parts.append((KINDS[leaf.kind] if role == "assistant" else _OF_ROLES.get(role, role), span))
    for turn in found.turns.values():
        parts += turn.parts
        if turn.end_tokens is not None:
            parts.append(("end", turn.end_tokens))
    shifted: Parts = []
    for kind, (begin, end) in sorted(parts, key=lambda part: part[1]):
        shift = 0
        for put in puts:
            if put[0] <= begin + shift:
                shift += put[1] - put[0]
        shifted.append((kind, (begin + shift, end + shift)))
    return shifted
