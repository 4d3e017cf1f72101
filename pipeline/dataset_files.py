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

_FEATURES = {
    name: {"feature": {"dtype": str(kind), "_type": "Value"}, "_type": "List"} for name, kind in COLUMNS.items()
}

SCHEMA = pa.schema(
    [(name, pa.list_(kind)) for name, kind in COLUMNS.items()],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


def split_files(shards: list[str], run_id: str, split: str | None) -> dict[str, str]:
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
    info = {"citation": "", "description": "", "features": _FEATURES, "homepage": "", "license": ""}
    return {"state.json": _text(state), "dataset_info.json": _text(info)}


def dict_file(splits: list[str]) -> str:
    """dataset_dict.json of a dataset with splits."""
    return json.dumps({"splits": splits})


def card(manifest: Mapping[str, Any]) -> str:
    """README.md of the packed dataset. `manifest`: all of it but `files` and `self`."""
    config, counts = manifest["config"], manifest["counts"]
    settings = ", ".join(f"{key}={value}" for key, value in config["set"].items())
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


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
