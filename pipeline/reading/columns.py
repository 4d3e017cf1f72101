"""Which columns of an input hold tokens, targets and padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipeline.base.errors import DataError

TOKENS = "input_ids"
TARGET_ROLES = ("labels", "completion_mask", "assistant_masks", "loss_mask")
ATTENTION = "attention_mask"
ROLES = (TOKENS, *TARGET_ROLES, ATTENTION)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns to read; absent ones are None."""

    tokens: str
    targets: str | None
    targets_are_labels: bool
    attention: str | None

    def names(self) -> list[str]:
        """The columns that are there."""
        return [name for name in (self.tokens, self.targets, self.attention) if name is not None]


def find_columns(schema: pa.Schema, renamed: Mapping[str, str], where: str) -> Columns:
    """The columns of a tokenised input.

    renamed: role -> column name, from `--column`; where: words naming the file.
    Raises `DataError` when a column is missing or ambiguous, or its type holds no integers.
    """

    def present(role: str) -> str | None:
        name = renamed.get(role, role)
        if name in schema.names:
            return name
        if role in renamed or role == TOKENS:
            has = ", ".join(schema.names) or "none"
            way_out = "" if role in renamed else f"; name yours with --column {role}=NAME"
            hint = "; to pack raw rows add --tokenizer PATH_OR_ID" if role == TOKENS and _looks_raw(schema) else ""
            raise DataError(f"{where}: no column {name!r} (the columns are: {has}){way_out}{hint}")
        return None

    if "position_ids" in schema.names and {"boundaries", "seq_lengths"} & set(schema.names):
        raise DataError(f"{where}: this is a packed dataset; packing it again would lose where its samples begin")
    tokens = present(TOKENS)
    assert tokens is not None
    chosen = [role for role in TARGET_ROLES if role in renamed] or list(TARGET_ROLES)
    found = [(role, name) for role in chosen if (name := present(role)) is not None]
    if len(found) > 1:
        names = " and ".join(repr(name) for _, name in found)
        role, name = found[0]
        raise DataError(f"{where}: {names} both say what is a target; choose one, as in --column {role}={name}")
    columns = Columns(
        tokens=tokens,
        targets=found[0][1] if found else None,
        targets_are_labels=bool(found) and found[0][0] == "labels",
        attention=present(ATTENTION),
    )
    for name in columns.names():
        is_mask = name == columns.attention or (name == columns.targets and not columns.targets_are_labels)
        _require_integer_lists(schema, name, where, booleans=is_mask)
    return columns


def _looks_raw(schema: pa.Schema) -> bool:
    return bool({"text", "messages", "conversations", "prompt", "instruction"} & set(schema.names))


def is_list(kind: pa.DataType) -> bool:
    """Whether it is one of the three list types whose values lie end to end."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _require_integer_lists(schema: pa.Schema, name: str, where: str, booleans: bool) -> None:
    if schema.names.count(name) > 1:
        raise DataError(f"{where}: there are {schema.names.count(name)} columns called {name!r}")
    kind = schema.field(name).type
    if is_list(kind):
        value = kind.value_type
        if pa.types.is_integer(value) or pa.types.is_null(value) or (booleans and pa.types.is_boolean(value)):
            return
    raise DataError(f"{where}: column {name!r} has type {kind}; lists of integers are needed")
