"""The columns of packed and of tokenised datasets, and their schema as Arrow and as `datasets` know it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

PACK_COLUMNS: dict[str, pa.DataType] = {
    "input_ids": pa.int32(),
    "labels": pa.int32(),
    "position_ids": pa.int32(),
    "boundaries": pa.int32(),
    "seq_lengths": pa.int32(),
    "sample_ids": pa.int64(),
    "sample_offsets": pa.int32(),
    "target_counts": pa.int32(),
}
"""The columns of a pack, each a list, and the type of their values."""

SOURCE_ROW, SOURCE_TURN = "source_row", "source_turn"
"""Columns of samples of which a raw row may give several: the row, and the turn of it that ends the sample."""

SOURCE_COLUMNS = {"source_rows": SOURCE_ROW, "source_turns": SOURCE_TURN}
"""Columns that packs of such samples have besides, each a list of int64 -> the column of the samples."""


def schema_of(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of a shard, with what `datasets` wants to know of it."""
    info = {"info": {"features": features_of(columns)}}
    return pa.schema(list(columns.items()), metadata={"huggingface": json.dumps(info)})


def features_of(columns: Mapping[str, pa.DataType]) -> dict[str, Any]:
    """The features that `datasets` reads from dataset_info.json."""

    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": str(kind), "_type": "Value"}

    return {name: feature(kind) for name, kind in columns.items()}


PACK_SCHEMA = schema_of({name: pa.list_(kind) for name, kind in PACK_COLUMNS.items()})
"""The schema of a shard of packs."""

SOURCED_PACK_SCHEMA = schema_of(
    {name: pa.list_(kind) for name, kind in (PACK_COLUMNS | dict.fromkeys(SOURCE_COLUMNS, pa.int64())).items()}
)
"""The schema of a shard of packs whose samples tell where they come from."""

_TOKEN_COLUMNS = {"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())}


def tokenized_schema(*, text: bool, source_row: bool, source_turn: bool = False) -> pa.Schema:
    """The schema of a tokenised shard.

    text: whether it has what the user said; source_row: whether it has each sample's row in the input; source_turn:
    whether it has the turn of that row that ends the sample.
    """
    columns = dict(_TOKEN_COLUMNS)
    if text:
        columns["text"] = pa.string()
    if source_row:
        columns[SOURCE_ROW] = pa.int64()
    if source_turn:
        columns[SOURCE_TURN] = pa.int64()
    return schema_of(columns)
