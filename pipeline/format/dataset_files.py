"""The small files that make a folder of shards a dataset: what `datasets.load_from_disk` reads, and the card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

COLUMNS: dict[str, pa.DataType] = {
    "input_ids": pa.int32(),
    "labels": pa.int32(),
    "position_ids": pa.int32(),
    "boundaries": pa.int32(),
    "seq_lengths": pa.int32(),
    "sample_ids": pa.int64(),
    "segment_starts": pa.int32(),
    "target_counts": pa.int32(),
}
"""The columns of a pack and the type of their values."""


def schema_of(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of a shard, with what `datasets` wants to know of it."""
    info = {"info": {"features": _features(columns)}}
    return pa.schema(list(columns.items()), metadata={"huggingface": json.dumps(info)})


def _features(columns: Mapping[str, pa.DataType]) -> dict[str, Any]:
    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": str(kind), "_type": "Value"}

    return {name: feature(kind) for name, kind in columns.items()}


SCHEMA = schema_of({name: pa.list_(kind) for name, kind in COLUMNS.items()})
"""Of a shard of packs."""


def split_files(shards: list[str], run_id: str, split: str | None, schema: pa.Schema) -> dict[str, str]:
    """state.json and dataset_info.json of one split, by name."""
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in shards],
        "_fingerprint": run_id[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": split,
    }
    features = _features({field.name: field.type for field in schema})
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    return {"state.json": _text(state), "dataset_info.json": _text(info)}


def dict_file(splits: list[str]) -> str:
    """dataset_dict.json of a dataset with splits."""
    return json.dumps({"splits": splits})


def card(manifest: Mapping[str, Any]) -> str:
    """README.md of the packed dataset. `manifest`: all of it but `files` and `self`."""
    config, counts = manifest["config"], manifest["counts"]
    settings = ", ".join(f"{key}={value}" for key, value in config["set"].items() if value != "")
    rows = [
        ("strategy", config["strategy"] + (f" ({settings})" if settings else "")),
        ("capacity", f"{manifest['capacity']:,} tokens a pack"),
        ("packs", f"{manifest['packs']:,} (lower bound {manifest['lower_bound']:,})"),
        ("fill", f"{manifest['fill']:.4%}"),
        ("samples", f"{counts['samples_packed']:,} of {counts['samples_in']:,}"),
        ("tokens", f"{counts['tokens_packed']:,} of {counts['tokens_in']:,}"),
        ("targets", f"{counts['targets_packed']:,} of {counts['targets_in']:,}"),
        (
            "samples a pack",
            f"{manifest['segments_per_pack']['mean']:.2f} on average, {manifest['segments_per_pack']['max']} at most",
        ),
        ("run", manifest["run_id"]),
    ]
    if "embedding_model" in manifest:
        rows.append(("embedded by", manifest["embedding_model"]["name"]))
    rows += [(name.replace("_", " "), f"{figure:.6g}") for name, figure in sorted(manifest["report"].items())]
    left_out = [
        f"| {reason} | {loss['samples']:,} | {loss['tokens']:,} | {loss['targets']:,} |"
        for reason, loss in counts["dropped"].items()
        if any(loss.values())
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    lost = "\n".join(left_out) if left_out else "| nothing | 0 | 0 | 0 |"
    sources = "\n".join(
        f"- {entry['name']}: {entry['rows']:,} rows, xxh3_128 {entry['xxh3_128']}" for entry in manifest["inputs"]
    )
    split = f'["{next(iter(manifest["splits"]))}"]' if "splits" in manifest else ""
    return f"""---
tags: [packed]
---
# Packed dataset

Several samples stand end to end in each row. `position_ids` restart at 0 where a sample begins, `boundaries`
are the pack's `cu_seqlens`, and the first label of every sample is -100.

| | |
| --- | --- |
{table}

Left out or masked, by reason:

| reason | samples | tokens | targets |
| --- | --- | --- | --- |
{lost}

Packed from:
{sources}

## Use

```python
import datasets

packs = datasets.load_from_disk("this folder"){split}
```

Give `position_ids` to the model, one pack a row, batch size 1, **and no attention mask**: an all-ones mask makes
transformers ignore the restarting positions and lets samples attend to each other. Set `use_cache=False`.
"""


def tokenized_card(manifest: Mapping[str, Any]) -> str:
    """README.md of a tokenised dataset. `manifest`: all of it but `files` and `self`."""
    counts, config, template = manifest["counts"], manifest["config"], manifest["chat_template"]
    rows = [
        ("rows", f"{counts['rows']:,}"),
        ("samples", f"{counts['samples']:,}"),
        ("tokens", f"{counts['tokens']:,}"),
        ("targets", f"{counts['targets']:,}"),
        ("tokenizer", f"{manifest['tokenizer']['name']}, xxh3_128 {manifest['tokenizer']['xxh3_128']}"),
        ("chat template", f"{template['name']}, xxh3_128 {template['xxh3_128']}" if template else "none"),
        ("trained on", config["train_on"] or "what the format has by default"),
        ("run", manifest["run_id"]),
    ]
    rows += [(f"left out: {reason}", f"{number:,} rows") for reason, number in counts["skipped"].items()]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    sources = "\n".join(
        f"- {entry['name']}: {entry['rows']:,} rows, xxh3_128 {entry['xxh3_128']}" for entry in manifest["inputs"]
    )
    return f"""---
tags: [tokenized]
---
# Tokenised dataset

One sample a row: `input_ids`, and `labels` that are -100 where a token is not trained. Nothing is padded or shifted.

| | |
| --- | --- |
{table}

Tokenised from:
{sources}
"""


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
