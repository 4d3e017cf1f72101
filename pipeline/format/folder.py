"""What stands around the shards of a dataset: written once all shards are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.base.storage import FileFacts, write_file
from pipeline.format import manifest as manifests
from pipeline.format.dataset_files import dict_file, split_files
from pipeline.reading.inputs import SINGLE


def finish_folder(
    root: Path,
    shards: Mapping[str, list[str]],
    schema: pa.Schema,
    manifest: Mapping[str, Any],
    card: str,
    files: Mapping[str, FileFacts],
    only_split: str | None,
) -> None:
    """Write what makes a folder of shards a dataset, and its manifest last.

    shards: names by split, in order; files: what is in the folder already; only_split: the split of the input that a
    dataset without splits is.
    """
    files = dict(files)
    for split, names in shards.items():
        for name, text in split_files(names, manifest["run_id"], split or only_split, schema).items():
            files[inside(split, name)] = write_file(root / split / name, text.encode())
    if SINGLE not in shards:
        files["dataset_dict.json"] = write_file(root / "dataset_dict.json", dict_file(list(shards)).encode())
    files["README.md"] = write_file(root / "README.md", card.encode())
    write_file(root / manifests.MANIFEST, manifests.seal(manifest, files))


def inside(split: str, name: str) -> str:
    """A file's path in the dataset."""
    return f"{split}/{name}" if split else name
