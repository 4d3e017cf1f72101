"""Columns whose content changes what should be trained, so that a row that has it is refused with the way out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tokenizing.rows.messages import ROLES, RowFault, parsed

_WEIGHTS = ("weight", "loss_weight", "loss_mask", "train", "trainable", "training")
_WANTED = ("label", "is_preferred", "kto_tag")
_KTO = "it is a preference (KTO): an answer that is not wanted would be trained"
_PICTURES = "pictures cannot be tokenised as text"

UNUSABLE = {
    **dict.fromkeys(_WANTED, ("preference", _KTO)),
    "chosen": ("preference", "these are preferences; the wanted answer is trained with --map {}"),
    "rejected": ("preference", "these are preferences; drop the column to train the other answer"),
    "images": ("image", _PICTURES),
    "image": ("image", _PICTURES),
    "videos": ("video", "videos cannot be tokenised as text"),
    "audios": ("audio", "sound cannot be tokenised as text"),
    **dict.fromkeys(
        _WEIGHTS,
        (
            "unknown_weight",
            "rows are all trained alike; leave out those that are not to be trained, or give their turns this key, and"
            " drop the column",
        ),
    ),
}
"""Such columns -> what their rows are counted under, and why."""


def refusal(column: str, value: Any, columns: Mapping[str, str]) -> RowFault | None:
    """What is wrong with a row for the value of one of these columns, or of a path that ends like one.

    columns: field -> column of what is read of the row.
    """
    name = column.rpartition(".")[2]
    if value is None or value == "":
        return None
    if name in _WANTED:
        is_meant = value in (False, 0)
    else:
        is_meant = parsed(value) not in (True, 1, "true", "True") if name in _WEIGHTS else value != []
    if not is_meant:
        return None
    reason, why = UNUSABLE[name]
    return RowFault(reason, f"column {column!r} has content: {why.format(_wanted(column, value, columns))}")


def _wanted(column: str, value: Any, columns: Mapping[str, str]) -> str:
    """The `--map` under which a row is read with the wanted answer in place of its own."""
    if has_question(value):
        return f"messages={column}"
    if "output" in columns:
        return f"output={column}"
    prompt = columns.get("messages", columns.get("prompt", "prompt"))
    return f"completion={column}" if prompt == "prompt" else f"prompt={prompt},completion={column}"


def has_question(value: Any) -> bool:
    """Whether an answer is a chat in which the user speaks, too."""
    turns = parsed(value)
    if not isinstance(turns, list):
        return False
    speakers = [turn.get("role", turn.get("from")) for turn in turns if isinstance(turn, dict)]
    return any(isinstance(speaker, str) and ROLES.get(speaker.lower()) == "user" for speaker in speakers)
