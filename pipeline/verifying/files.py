"""The files of a dataset beside its shards, and what else lies in its directory."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.base.digests import hash_file
from pipeline.base.storage import read_bytes
from pipeline.base.words import in_one_line
from pipeline.format.dataset_files import is_left_by_others, path_in_dataset
from pipeline.format.identity import SINGLE
from pipeline.format.manifest import MANIFEST, Manifest
from pipeline.format.records import FileEntry

log = logging.getLogger(__name__)

Problems = list[str]
"""What is wrong, in words."""


def check_files(directory: Path, manifest: Manifest, shards: Mapping[str, Sequence[str]]) -> Problems:
    """Check every file but the shards, and that nothing is there that does not belong to the dataset.

    shards: the paths of each split's, in their order.
    """
    needed = {path_in_dataset(split, name) for split in shards for name in ("state.json", "dataset_info.json")}
    needed |= {"README.md"} if list(shards) == [SINGLE] else {"README.md", "dataset_dict.json"}
    problems = [f"{MANIFEST}: it does not list {name}" for name in sorted(needed - set(manifest.files))]
    for name, entry in manifest.files.items():
        if not entry.is_shard:
            problems += [f"{name}: {fault}" for fault in [fault_of(directory / name, entry)] if fault]
    for split, paths in shards.items():
        problems += _check_state(directory, split, [Path(path).name for path in paths])
    return problems + _check_strangers(directory, {*manifest.files, MANIFEST})


def fault_of(path: Path, entry: FileEntry) -> str | None:
    """What is wrong with a file, by its size and checksum."""
    try:
        size = path.stat().st_size
        if size != entry.bytes:
            return f"it has {size:,} bytes, the manifest says {entry.bytes:,}"
        return None if hash_file(path) == entry.xxh3_128 else "its checksum is not the manifest's"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"it cannot be read ({in_one_line(error)})"


def _check_state(directory: Path, split: str, shards: Sequence[str]) -> Problems:
    name = path_in_dataset(split, "state.json")
    try:
        state = json.loads(read_bytes(directory / name))
        listed = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # reported by its checksum
    return [] if listed == list(shards) else [f"{name}: it does not list the manifest's shards in their order"]


def _check_strangers(directory: Path, known: set[str]) -> Problems:
    problems = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name in known or (path.is_dir() and not path.is_symlink()):
            continue
        if is_left_by_others(Path(name)):
            log.warning("%s is not part of the dataset; a tool that read it left it there", path)
        else:
            problems.append(f"{name}: it is not part of the dataset; move it away")
    return problems
