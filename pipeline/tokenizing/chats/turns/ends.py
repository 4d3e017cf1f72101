"""What ends a turn where the template does, and where it does not: what the options choose."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.tokenizing.chats.turns.probes import Opener
from pipeline.tokenizing.chats.turns.shapes import Turn
from pipeline.tokenizing.tokens.places import Span


class End(NamedTuple):
    """The end of a turn."""

    token: Span
    """The special tokens that end it. What stands between its parts and them is the model's to write, too."""

    put: Span | None = None
    """Characters that no template wrote, once they are put in."""

    put_text: str = ""


def own_or_put(turn: Turn, eos: str) -> End:
    """The end that the template writes, or else an end token, right after what the model writes."""
    if turn.end_tokens is not None:
        return End(turn.end_tokens)
    put = turn.end, turn.end + len(eos)
    return End(put, put, eos)


def own_or_next(turn: Turn, text: str, opener: Opener | None, *, is_last: bool) -> End | None:
    """The end that the template writes, or else the special token that begins what follows; None if none is known.

    text: of the chat; opener: of a user turn, which is put in where none follows; is_last: whether no turn does.
    """
    token = turn.end_tokens or turn.opener
    if token is not None:
        return End(token)
    if opener is None:
        return None
    at = len(text) if is_last else turn.end
    written = text[turn.end : at]
    put = opener.led.removeprefix(written) if opener.led.startswith(written) else opener.text
    end = at + len(put)
    return End((end - len(opener.text), end), (at, end), put)
