"""Which columns of an input hold tokens, targets and padding, and which may tell that its rows are packs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import pyarrow as pa

from pipeline.base.arrays import is_list, is_list_view
from pipeline.base.errors import DataError
from pipeline.format.columns import SOURCE_COLUMNS
from pipeline.format.options import ATTENTION, TARGETS, TOKENS


class PackForm(Enum):
    """How a column says where the segments of a packed row begin."""

    OFFSETS = "offsets"
    """Where each begins, and the end."""

    LENGTHS = "lengths"
    STARTS = "starts"
    """Where each begins."""

    POSITIONS = "positions"
    """The position of each token in its segment."""

    INDICES = "indices"
    """The number of each token's segment; 0 for padding."""

    RUNS = "runs"
    """Something of each token's segment that the one before has not; a segment is a run of one value."""

    @property
    def is_per_token(self) -> bool:
        """Whether it is a value for each token."""
        return self in (PackForm.POSITIONS, PackForm.INDICES, PackForm.RUNS)


POSITIONS = "position_ids"

_PACK_FORMS = {
    **dict.fromkeys(("boundaries", "cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seqlens_q"), PackForm.OFFSETS),
    **dict.fromkeys(("seq_lengths", "packed_sample_seqlens", "seq_lens", "seqlens"), PackForm.LENGTHS),
    "seq_start_id": PackForm.STARTS,
    **dict.fromkeys(("segment_ids", "decoder_segment_ids", "seq_idx", "sequence_id"), PackForm.RUNS),
    **dict.fromkeys(("document_ids", "doc_ids"), PackForm.RUNS),
    **dict.fromkeys((POSITIONS, "input_pos"), PackForm.POSITIONS),
}
"""Columns by which packers tell, beside `attention_mask`, the plainest first: ours, FlashAttention's arguments as
collators of Transformers and Megatron keep them, TRL, ArcticTraining, torchtune, Megatron-Bridge, MaxText, T5X, Mamba,
LLM Foundry.
"""

PACK_NAMES = tuple(_PACK_FORMS)
"""Columns that may tell that a row is a pack, but for the attention mask."""


@dataclass(frozen=True, kw_only=True)
class PackColumn:
    """A column that may tell that rows are packs."""

    name: str
    form: PackForm
    is_certain: bool
    """Whether it tells by being there, even where no row has several segments."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns to read; those that a file lacks are None."""

    tokens: str
    targets: str | None
    targets_are_labels: bool
    attention: str | None
    packs: tuple[PackColumn, ...] = ()
    """The columns that may tell that rows are packs, the plainest first."""

    def names(self) -> list[str]:
        """The names of the columns that are there."""
        return [name for name in (self.tokens, self.targets, self.attention) if name is not None]

    def ids(self) -> list[str]:
        """The names of those that hold ids of tokens, and are no masks."""
        return [self.tokens, *([self.targets] if self.targets is not None and self.targets_are_labels else [])]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is read of a tokenised input."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Role -> column, where it is not called like its role."""

    extra: str | None = None
    """A column of texts or vectors that is read as well, where a file has it; so is what tells of raw rows."""

    unpack: bool = False
    """Whether rows are packs of samples, to be taken apart."""

    def of_file(self, columns: Columns, schema: pa.Schema) -> list[str]:
        """The names of all columns that are read of a file."""
        extra = [self.extra] if self.extra is not None and self.extra in schema.names else []
        sources = SOURCE_COLUMNS.values() if tells_sources(schema) and not self.unpack else ()
        return list(dict.fromkeys([*columns.names(), *extra, *sources]))


def tells_sources(schema: pa.Schema) -> bool:
    """Whether each sample says of which raw row it was made, and the turn that ends it."""
    return all(
        schema.names.count(name) == 1 and pa.types.is_integer(schema.field(name).type)
        for name in SOURCE_COLUMNS.values()
    )


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
    return replace(columns, packs=_pack_columns(schema, columns))


def _pack_columns(schema: pa.Schema, columns: Columns) -> tuple[PackColumn, ...]:
    """The columns that may tell that rows are packs. Those of another type mean something else."""
    per_token = {name: form for name, form in _PACK_FORMS.items() if form.is_per_token}
    forms = {name: form for name, form in _PACK_FORMS.items() if name not in per_token}
    if columns.attention is not None:
        forms[columns.attention] = per_token[columns.attention] = PackForm.INDICES
    forms |= per_token
    has_mask = columns.targets is not None and not columns.targets_are_labels
    certain = {"boundaries": POSITIONS in schema.names, "seq_start_id": has_mask}
    return tuple(
        PackColumn(name=name, form=form, is_certain=certain.get(name, False))
        for name, form in forms.items()
        if name not in (columns.tokens, columns.targets) and schema.names.count(name) == 1
        if _holds_integers(schema.field(name).type)
    )


def _holds_integers(kind: pa.DataType) -> bool:
    """Whether it is of lists of integers, each in a list of its own or not, or of nothing yet."""
    for _ in range(2):
        if is_list(kind) or is_list_view(kind):
            kind = kind.value_type
            if pa.types.is_integer(kind):
                return True
    return bool(pa.types.is_null(kind))


def _looks_raw(schema: pa.Schema) -> bool:
    return bool({"text", "messages", "conversations", "prompt", "instruction"} & set(schema.names))


def _require_integer_lists(schema: pa.Schema, name: str, where: str, booleans: bool) -> None:
    if schema.names.count(name) > 1:
        raise DataError(f"{where}: there are {schema.names.count(name)} columns called {name!r}")
    kind = schema.field(name).type
    if is_list(kind) or is_list_view(kind):
        value = kind.value_type
        if pa.types.is_integer(value) or pa.types.is_null(value) or (booleans and pa.types.is_boolean(value)):
            return
    raise DataError(f"{where}: column {name!r} has type {kind}; lists of integers are needed")
