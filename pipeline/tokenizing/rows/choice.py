"""Which format the rows of a file have: by its columns, and by a look at the first rows where these do not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.base.errors import DataError
from pipeline.base.words import listed
from pipeline.format.options import TEMPLATE_KWARGS
from pipeline.tokenizing.rows.detection import FirstRows, one_string
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.guards import PREFERENCES, UNUSABLE, preferences_in
from pipeline.tokenizing.rows.messages import REASONING
from pipeline.tokenizing.rows.paths import column_of

_REQUIRED = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
_OPTIONAL = {
    "messages": ("system", "tools", TEMPLATE_KWARGS),
    "prompt-completion": ("system", "history", "reasoning", "tools", TEMPLATE_KWARGS),
    "instruction": ("system", "input", "history", "reasoning", "tools", TEMPLATE_KWARGS),
    "text": (),
}
_FIELDS = frozenset(field for of in (_REQUIRED, _OPTIONAL) for fields in of.values() for field in fields)
_NOT_MESSAGES = _FIELDS - {"messages"}
"""What a column is called that is another field of a row, even where it looks like a chat."""

_ALIASES = {
    "messages": ("messages", "conversations"),
    "system": ("system", "system_prompt"),
    "reasoning": REASONING,
}


def choose_format(
    columns: Sequence[str],
    forced: str,
    mapped: Mapping[str, str],
    where: str,
    *,
    more_later: bool = False,
    first: FirstRows | None = None,
) -> Format:
    """The format of a file by its columns, and by a look at its first rows where these do not say.

    forced: a format's name, or auto; mapped: field -> column or path into one, from `--map`; more_later: whether rows
    may have columns that the first one lacks; first: the rows to look at, and how turns are read.
    Raises `DataError`, showing the columns and the choices, where none or several fit, and for chats that would be
    trained as text.
    """
    first = first or FirstRows()
    shown = ", ".join(columns) or "none"
    for name, column in mapped.items():
        if column_of(column, columns) is None:
            raise DataError(f"{where}: --map {name}={column}: no such column (the columns are: {shown})")
    names = [forced] if forced != "auto" else [n for n in _REQUIRED if {*mapped} <= {*_REQUIRED[n], *_OPTIONAL[n]}]
    if "input_ids" in columns and not mapped and forced == "auto":
        raise DataError(
            f"{where}: there is a column 'input_ids', so it is tokenised already; pack it without --tokenizer"
        )
    fits = _fitting(names, columns, mapped)
    if not fits:
        mapped = {**mapped, **_looked_up(names, columns, mapped, first, where)}
        fits = _fitting(names, columns, mapped)
    if len(fits) != 1:
        raise DataError(f"{where}: {_misfit(fits, forced, columns, mapped, first)}")
    if fits == ["text"] and forced != "text":
        _refuse_chats_as_text(columns, mapped, first, where)
    return _format(fits[0], columns, mapped, where, more_later, first)


def _fitting(names: Sequence[str], columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    return [name for name in names if all(_columns_of(field, columns, mapped) for field in _REQUIRED[name])]


def _format(
    name: str, columns: Sequence[str], mapped: Mapping[str, str], where: str, more_later: bool, first: FirstRows
) -> Format:
    """A format with the columns of its fields, also of those that stand beside the first in a struct."""
    found: dict[str, str] = {}
    later: dict[str, list[str]] = {}
    main = _columns_of(_REQUIRED[name][0], columns, mapped)[0]
    inside = main.rpartition(".")[0] + "." if main not in columns else ""
    for wanted in (*_REQUIRED[name], *_OPTIONAL[name]):
        candidates = _columns_of(wanted, columns, mapped)
        if inside and wanted not in mapped:
            nested = (f"{inside}{alias}" for alias in _ALIASES.get(wanted, (wanted,)))
            candidates += [path for path in nested if first.has(path)]
        if len(candidates) > 1:
            raise DataError(
                f"{where}: {listed(map(repr, candidates), 'and')} could both be the {wanted};"
                f" choose one with --map {wanted}={candidates[0]}"
            )
        if candidates and columns.count(candidates[0]) > 1:
            raise DataError(f"{where}: there are {columns.count(candidates[0])} columns called {candidates[0]!r}")
        if candidates:
            found[wanted] = candidates[0]
        elif more_later or inside:
            found[wanted], *later[wanted] = (f"{inside}{alias}" for alias in _ALIASES.get(wanted, (wanted,)))
    has_tools = "tools" in found and "tools" not in later
    guards = [column for column in UNUSABLE if column in columns or more_later]
    guards += [f"{inside}{column}" for column in UNUSABLE if inside]
    parts = [path.rpartition(".") for path in found.values()]
    others = [f"{before}{dot}{PREFERENCES[last]}" for before, dot, last in parts if last in PREFERENCES]
    read = {*found.values(), *others}
    return Format(
        name=name,
        columns=found,
        unseen=later,
        reader=first.reader,
        guards=tuple(column for column in guards if column not in read and name != "text"),
        completes_with_calls=name == "prompt-completion"
        and "completion" in mapped
        and has_tools
        and first.hold_calls(mapped["completion"]),
    )


def _looked_up(
    names: Sequence[str], columns: Sequence[str], mapped: Mapping[str, str], first: FirstRows, where: str
) -> dict[str, str]:
    """The columns of the fields that the first rows show. Raises `DataError` where several look the same."""
    if "messages" in names and not preferences_in(columns):
        chats = first.chats(columns, ignored=(*UNUSABLE, *(_NOT_MESSAGES - {"text"})))  # else `text` would fit
        if len(chats) > 1:
            raise DataError(
                f"{where}: {listed(map(repr, chats), 'and')} look like chats; choose one, as in"
                f" --map messages={chats[0]}"
            )
        if chats and first.end_with_user(chats[0]):
            answer = first.answer(columns) or "COLUMN"
            raise DataError(
                f"{where}: the chats in {chats[0]!r} end with the user; if another column holds the answer, give both"
                f" with --map prompt={chats[0]},completion={answer}, otherwise say --map messages={chats[0]} (the"
                f" columns are: {', '.join(columns)})"
            )
        if chats:
            return {"messages": chats[0]}
    has_tools = "tools" in mapped or "tools" in columns
    if "prompt-completion" in names and has_tools and {"query", "answers"} <= {*columns} and {*mapped} <= {"tools"}:
        return {"prompt": "query", "completion": "answers"} if first.hold_calls("answers") else {}
    return {}


def _refuse_chats_as_text(columns: Sequence[str], mapped: Mapping[str, str], first: FirstRows, where: str) -> None:
    """Raise `DataError` for what would be trained as plain text and is a chat, or stands beside one."""
    (column,) = _columns_of("text", columns, mapped)
    chats = first.chats([column])
    if chats:
        raise DataError(
            f"{where}: column {column!r} holds chats: --format messages reads them (or --map messages={chats[0]}), and"
            " JSON text is trained as it stands with --format text"
        )
    marks = first.role_marks(column)
    if marks:
        raise DataError(
            f"{where}: column {column!r} {one_string(marks)}, or train all of it, as it stands, with --format text"
        )
    chats = first.chats([name for name in columns if name != column], ignored=(*UNUSABLE, *_NOT_MESSAGES))
    if chats:
        raise DataError(
            f"{where}: the columns fit text, and {listed(map(repr, chats), 'and')} looks like a chat; choose with"
            f" --format text or --map messages={chats[0]}"
        )


def _columns_of(field: str, columns: Sequence[str], mapped: Mapping[str, str]) -> list[str]:
    if field in mapped:
        return [mapped[field]]
    return [name for name in _ALIASES.get(field, (field,)) if name in columns]


def _misfit(fits: list[str], forced: str, columns: Sequence[str], mapped: Mapping[str, str], first: FirstRows) -> str:
    shown = ", ".join(columns) or "none"
    if fits:
        return f"the columns ({shown}) fit {' and '.join(fits)}; choose one with --format"
    choices = "; ".join(
        f"{name} ({', '.join(' or '.join(_ALIASES.get(field, (field,))) for field in fields)})"
        for name, fields in _REQUIRED.items()
    )
    if forced != "auto":
        missing = [field for field in _REQUIRED[forced] if not _columns_of(field, columns, mapped)]
        needed = " and ".join(missing)
        return f"--format {forced} needs {needed} (the columns are: {shown}); name yours with --map {missing[0]}=COLUMN"
    begun = [name for name in _REQUIRED if mapped and {*mapped} <= {*_REQUIRED[name], *_OPTIONAL[name]}]
    if begun:
        lacking = " and ".join(field for field in _REQUIRED[begun[0]] if not _columns_of(field, columns, mapped))
        return f"with this --map a row is {begun[0]}, and {lacking} is missing (the columns are: {shown}); map it too"
    advice = first.advice(columns)
    if advice:
        return f"no known format fits the columns ({shown}): {advice}"
    return (
        f"no known format fits the columns ({shown}); the formats are {choices}; tree (id, parent, role, text)."
        " Name your columns with --map, as in --map prompt=question,completion=answer"
    )
