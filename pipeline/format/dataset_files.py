"""The small files that make a folder of shards a dataset, written once all shards are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.base.storage import FileFacts, write_file
from pipeline.format.card import pack_card, tokenize_card
from pipeline.format.columns import features_of
from pipeline.format.identity import SINGLE
from pipeline.format.manifest import MANIFEST, AnyManifest, PackManifest, to_bytes, with_files
from pipeline.format.records import FileEntry


def finish_dataset(
    folder: Path,
    manifest: AnyManifest,
    schema: pa.Schema,
    shards: Mapping[str, Sequence[str]],
    files: Mapping[str, FileFacts | FileEntry],
    only_split: str | None,
) -> AnyManifest:
    """Write what makes a folder of shards a dataset, its manifest last; returns the manifest with its files.

    shards: names by split, in order; files: what is in the folder already; only_split: the split of the input that a
    dataset without splits is. Raises `OSError`.
    """
    files = dict(files)
    for split, names in shards.items():
        for name, value in _split_files(names, manifest.run_id, split or only_split, schema).items():
            files[path_in_dataset(split, name)] = _write_json(folder / split / name, value)
    if SINGLE not in shards:
        content = json.dumps({"splits": list(shards)})
        files["dataset_dict.json"] = write_file(folder / "dataset_dict.json", content.encode())
    card = pack_card(manifest) if isinstance(manifest, PackManifest) else tokenize_card(manifest)
    files["README.md"] = write_file(folder / "README.md", card.encode())
    whole = with_files(manifest, files)
    write_file(folder / MANIFEST, to_bytes(whole))
    return whole


def is_left_by_others(path: Path) -> bool:
    """Whether tools that read datasets leave files of such a name, or in such a folder, in their directories.

    path: in the dataset's directory. `datasets` writes cache-* and tmp*, NFS .nfs* for what is open and removed.
    """
    return any(part.startswith(("cache-", "tmp", ".nfs")) for part in path.parts)


def path_in_dataset(split: str, name: str) -> str:
    """A file's path in the dataset's directory."""
    return f"{split}/{name}" if split else name


def _split_files(shards: Sequence[str], run_id: str, split: str | None, schema: pa.Schema) -> dict[str, Any]:
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
    features = features_of({field.name: field.type for field in schema})
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    return {"state.json": state, "dataset_info.json": info}


def _write_json(path: Path, value: Any) -> FileFacts:
    return write_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
