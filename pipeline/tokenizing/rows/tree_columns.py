"""Which columns of a file hold dialogue trees: a message a row that names its parent, or a tree a row."""

from __future__ import annotations

from pipeline.base.errors import DataError
from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import RawFile
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.guards import UNUSABLE
from pipeline.tokenizing.rows.messages import TURN_KEYS, parsed
from pipeline.tokenizing.rows.turn_reader import TurnReader

_NAMES = {"id": ("message_id", "id"), "parent": ("parent_id",), "role": ("role",), "text": ("text",)}
"""What the columns of a message are called."""

_OTHER_NAMES = {
    "id": ("post_id", "node_id", "uid"),
    "parent": ("parent", "reply_to", "in_reply_to", "parent_message_id"),
    "role": ("author", "speaker", "from"),
    "text": ("content", "body", "message", "value"),
}
"""What they are called besides, which is taken where trees are asked for."""

_OPTIONAL = ("rank", "deleted")
_FIELDS = (*_NAMES, *_OPTIONAL, "prompt")


def tree_format(file: RawFile, options: TokenizeOptions, reader: TurnReader) -> Format | None:
    """How the dialogue trees of a file are read; None where it has none, as far as its columns and first rows show.

    Raises `DataError` for damaged content, and where trees are asked for and the columns have none.
    """
    if options.format not in ("auto", "tree") or not {*options.map} <= {*_FIELDS}:
        return None
    if options.format == "auto" and {"messages", "conversations"} & {*file.columns}:
        return None
    found = _nested(file, options, reader) or _flat(file, options, reader)
    if found is None:
        if options.format == "tree":
            raise DataError(f"{file.where}: {_misfit(file, options)}")
        parents = {*_NAMES["parent"], *_OTHER_NAMES["parent"]}
        if "role" in file.columns and parents & {*file.columns} and (way := _way(_missing(file, options), file)):
            raise DataError(
                f"{file.where}: the rows look like messages of dialogue trees: --format tree reads them, as does {way}"
            )
        return None
    read = {*found.values()}
    guards = [name for name in UNUSABLE if (name in file.columns or file.is_open_ended) and name not in read]
    unseen: dict[str, list[str]] = {field: [] for field, column in found.items() if column not in file.columns}
    return Format(name="tree", columns=found, unseen=unseen, reader=reader, guards=tuple(guards))


def _flat(file: RawFile, options: TokenizeOptions, reader: TurnReader) -> dict[str, str] | None:
    """Field -> column, where a row is a message."""
    found = dict(options.map)
    if options.format == "tree":
        named = {"role": reader.role_key, "text": reader.content_key}
        found = {field: name for field, name in named.items() if name is not None} | found
    for field, names in _NAMES.items():
        others = _OTHER_NAMES[field] if options.format == "tree" else ()
        there = [name for name in (*names, *others) if name in file.columns]
        if there:
            found.setdefault(field, there[0])
    if found.get("id") == "message_id" and file.is_open_ended:
        found.setdefault("parent", "parent_id")  # the root, with which a file may begin, may lack it
    if not {*_NAMES} <= {*found} or any(
        name not in file.columns for field, name in found.items() if field != "parent" or not file.is_open_ended
    ):
        return None
    for name in (*_OPTIONAL, *TURN_KEYS):
        if name in file.columns or file.is_open_ended:
            found.setdefault(name, name)
    return found


def _nested(file: RawFile, options: TokenizeOptions, reader: TurnReader) -> dict[str, str] | None:
    """Field -> column, where a row is a tree: in a column, as OASST's `prompt`, or the row itself."""
    columns = file.columns
    if {"parent_id", options.map.get("parent")} & {*columns}:
        return None
    role, text = reader.role_key or "role", reader.content_key or "text"
    if {role, text, "replies"} <= {*columns}:
        fields = ("message_id", *_OPTIONAL, *TURN_KEYS, role, text, "replies")
        return {name: name for name in fields if name in columns or file.is_open_ended}
    column = options.map.get("prompt", "prompt")
    if column not in columns or (options.format == "auto" and not _holds_trees(file, column)):
        return None
    return {"prompt": column}


def _holds_trees(file: RawFile, column: str) -> bool:
    """Whether the first content of a column is an object."""
    if "completion" in file.columns:
        return False
    first = next((row[column] for row in file.first_rows() if row.get(column) is not None), None)
    return isinstance(parsed(first), dict)


def _misfit(file: RawFile, options: TokenizeOptions) -> str:
    shown = f"(the columns are: {', '.join(file.columns) or 'none'})"
    for field, name in options.map.items():
        if name not in file.columns:
            return f"--map {field}={name}: no such column {shown}"
    missing = _missing(file, options)
    way = _way(missing, file) or f"--map {','.join(f'{field}=COLUMN' for field in missing)}"
    return (
        f"--format tree needs {', '.join(_NAMES)} of each message, and there is no {' and no '.join(missing)} {shown};"
        f" name yours with {way}; or a column prompt that holds a whole tree"
    )


def _missing(file: RawFile, options: TokenizeOptions) -> list[str]:
    """The fields of a message that no column is called like."""
    return [field for field, names in _NAMES.items() if field not in options.map and not {*names} & {*file.columns}]


def _way(missing: list[str], file: RawFile) -> str:
    """The `--map` under which the columns have what is missing; nothing where that cannot be told."""
    found = {field: [name for name in _OTHER_NAMES[field] if name in file.columns] for field in missing}
    if not missing or not all(found.values()):
        return ""
    return f"--map {','.join(f'{field}={names[0]}' for field, names in found.items())}"
