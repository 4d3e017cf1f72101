"""Columns whose content changes what should be trained, so that a row that has it is refused with the way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.tokenizing.rows.messages import MARKS, ROLES, RowFault, parsed

_YES = (True, "true", "yes", "y")
_NO = (False, "false", "no", "n")
_WANTED = dict.fromkeys(
    ("label", "is_preferred", "kto_tag", "desirable", "is_chosen"), (*_YES, "desirable", "chosen", "preferred")
)
_WEIGHTS = {**dict.fromkeys((mark for mark in MARKS if mark != "masked"), _YES), "masked": _NO}
_USUAL = {**_WANTED, **_WEIGHTS}
"""Columns of flags -> what they say, in small letters, of a row that is trained as any other."""

PREFERENCES = {"chosen": "rejected", "preferred_output": "non_preferred_output"}
"""Columns of answers that are wanted -> those of the others: as most have them, and as OpenAI does."""

_MEDIA = {
    "image": ("image", "images", "image_path", "image_paths", "image_url", "img", "imgs", "pixel_values"),
    "video": ("video", "videos", "video_path"),
    "audio": ("audio", "audios", "audio_path"),
}
_WHY_NO_MEDIA = {
    "image": "pictures cannot be tokenised as text",
    "video": "videos cannot be tokenised as text",
    "audio": "sound cannot be tokenised as text",
}

UNUSABLE = {
    **dict.fromkeys(
        _WANTED,
        (
            "preference",
            "it is a preference (KTO): an answer that is not wanted would be trained; leave out the rows where it is"
            " not true or 1, or drop the column if it says something else",
        ),
    ),
    **dict.fromkeys(PREFERENCES, ("preference", "these are preferences; the wanted answer is trained with --map {}")),
    **dict.fromkeys(
        PREFERENCES.values(), ("preference", "these are preferences; drop the column to train the other answer")
    ),
    **{name: (kind, _WHY_NO_MEDIA[kind]) for kind, names in _MEDIA.items() for name in names},
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
    if is_void(value):
        return None
    if name in _USUAL and (parsed(value.strip().lower()) if isinstance(value, str) else value) in _USUAL[name]:
        return None
    reason, why = UNUSABLE[name]
    return RowFault(reason, f"column {column!r} has content: {why.format(_wanted(column, value, columns))}")


def refuse_media(turn: Mapping[str, Any], where: str) -> None:
    """Raise `RowFault` for a turn that has pictures, videos or sound under a key of its own."""
    for kind, names in _MEDIA.items():
        for name in names:
            if name in turn and not is_void(turn[name]):
                raise RowFault(kind, f"{where}: it has {name}, and {_WHY_NO_MEDIA[kind]}")


def is_void(value: Any) -> bool:
    """Whether a value has nothing in it, as a list of nulls, or an object of nulls for a picture that is none."""
    if isinstance(value, Mapping):
        return all(map(is_void, value.values()))
    if isinstance(value, list):
        return all(map(is_void, value))
    if isinstance(value, str) and value[:1] in ("[", "{", "n"):
        inside = parsed(value)
        return inside is None or (isinstance(inside, list | dict) and is_void(inside))
    return value is None or (isinstance(value, str | bytes) and not value.strip())


def preferences_in(columns: Collection[str]) -> tuple[str, str] | None:
    """The columns of wanted and of other answers, where both are there."""
    return next((pair for pair in PREFERENCES.items() if {*pair} <= {*columns}), None)


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
