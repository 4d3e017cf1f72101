"""What is wrong with turns that cannot be trained."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.base.words import listed
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.chats.turns.probes import CLOSES, CUTS
from pipeline.tokenizing.chats.turns.shapes import Turn
from pipeline.tokenizing.rows.messages import RowFault


def unlocated(number: int, template: ChatTemplate, why: str) -> RowFault:
    """What is wrong with a turn whose place cannot be told."""
    if why == CLOSES:
        return RowFault(
            "template_mismatch",
            f"turn {number} (assistant): {template.name} {why}, so the model would never write it; --reasoning drop"
            " takes it out, and --template-kwargs enable_thinking=true (or the row's own) leaves it open",
        )
    if why.startswith(CUTS):
        return RowFault(
            "template_mismatch",
            f"turn {number} (assistant): {template.name} {why}; write it otherwise there, or leave out such rows",
        )
    return RowFault(
        "template_mismatch",
        f"turn {number} (assistant) cannot be located: {template.name} {why}; marking the turns with"
        " {% generation %} in a copy of the template settles where they are",
    )


def unparted(number: int, template: ChatTemplate, why: str, masked: Iterable[str]) -> RowFault:
    """What is wrong with a turn that the template marks, and of which a part is masked that cannot be located."""
    flags = listed([f"--{kind} mask" for kind in sorted(masked)], "and")
    return RowFault(
        "template_mismatch",
        f"turn {number} (assistant): {template.name} {why}, so what {flags} is about cannot be told in it; leave the"
        " flag out to train all that it marks, or leave out such rows",
    )


def unmarked(number: int, template: ChatTemplate, what: str) -> RowFault:
    """What is wrong with a turn of which the marks of a template have not all. what: it lacks."""
    return RowFault("template_mismatch", f"turn {number} (assistant): {template.name} does not write its {what}")


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
