"""Which columns of an input hold tokens, targets and padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.base.arrays import is_list
from pipeline.base.errors import DataError
from pipeline.format.options import ATTENTION, TARGETS, TOKENS


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns to read; those that a file lacks are None."""

    tokens: str
    targets: str | None
    targets_are_labels: bool
    attention: str | None

    def names(self) -> list[str]:
        """The names of the columns that are there."""
        return [name for name in (self.tokens, self.targets, self.attention) if name is not None]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is read of a tokenised input."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Role -> column, where it is not called like its role."""

    extra: str | None = None
    """A column of texts or vectors that is read as well, where a file has it."""

    def of_file(self, columns: Columns, schema: pa.Schema) -> list[str]:
        """The names of all columns that are read of a file."""
        names = columns.names()
        has_extra = self.extra is not None and self.extra in schema.names and self.extra not in names
        return [*names, str(self.extra)] if has_extra else names


class MissingColumn(DataError):
    """An input lacks a column that is needed."""

    def __init__(self, fault: str, way_out: str) -> None:
        super().__init__(fault + way_out)
        self.fault = fault


def find_columns(schema: pa.Schema, names: Mapping[str, str], where: str) -> Columns:
    """The columns of a tokenised input.

    names: role -> column, where it is not called like its role; where: words naming the file.
    Raises `DataError` when a column is missing or ambiguous, or its type holds no integers.
    """

    def present(role: str) -> str | None:
        name = names.get(role, role)
        if name in schema.names:
            return name
        if role in names or role == TOKENS:
            has = ", ".join(schema.names) or "none"
            way_out = "" if role in names else f"; name yours with --column {role}=NAME"
            hint = "; to pack raw rows add --tokenizer PATH_OR_ID" if role == TOKENS and _looks_raw(schema) else ""
            raise MissingColumn(f"{where}: no column {name!r} (the columns are: {has})", way_out + hint)
        return None

    if "position_ids" in schema.names and {"boundaries", "seq_lengths"} & set(schema.names):
        raise DataError(f"{where}: this is a packed dataset; packing it again would lose where its samples begin")
    tokens = present(TOKENS)
    assert tokens is not None
    roles = [role for role in TARGETS if role in names] or list(TARGETS)
    targets = [(role, name) for role in roles if (name := present(role)) is not None]
    if len(targets) > 1:
        both = " and ".join(repr(name) for _, name in targets)
        role, name = targets[0]
        raise DataError(f"{where}: {both} both say what is a target; choose one, as in --column {role}={name}")
    columns = Columns(
        tokens=tokens,
        targets=targets[0][1] if targets else None,
        targets_are_labels=bool(targets) and targets[0][0] == "labels",
        attention=present(ATTENTION),
    )
    for name in columns.names():
        is_mask = name == columns.attention or (name == columns.targets and not columns.targets_are_labels)
        _require_integer_lists(schema, name, where, booleans=is_mask)
    return columns


def _looks_raw(schema: pa.Schema) -> bool:
    return bool({"text", "messages", "conversations", "prompt", "instruction"} & set(schema.names))


def _require_integer_lists(schema: pa.Schema, name: str, where: str, booleans: bool) -> None:
    if schema.names.count(name) > 1:
        raise DataError(f"{where}: there are {schema.names.count(name)} columns called {name!r}")
    kind = schema.field(name).type
    if is_list(kind):
        value = kind.value_type
        if pa.types.is_integer(value) or pa.types.is_null(value) or (booleans and pa.types.is_boolean(value)):
            return
    raise DataError(f"{where}: column {name!r} has type {kind}; lists of integers are needed")
