"""From what the user names as INPUT to data files by split."""

from __future__ import annotations

import fnmatch
import logging
import os
import posixpath
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec

from pipeline.base.digests import json_of
from pipeline.base.errors import BusyError, ConfigError, DataError
from pipeline.base.objects.copies import LATEST, VERSION
from pipeline.base.words import counted, first_line, leads_out
from pipeline.format.identity import SINGLE, TOKENIZED
from pipeline.format.manifest import MANIFEST, ManifestError, TokenizeManifest, parse_manifest
from pipeline.format.options import InputOptions
from pipeline.format.records import FileEntry
from pipeline.reading.decoding.foreign import refuse_content
from pipeline.reading.files import InputFile, reaching

log = logging.getLogger(__name__)

_FORMATS = {
    ".arrow": "arrow",
    ".parquet": "parquet",
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".jsonl.zst": "json",
    ".json": "json",
    ".json.gz": "json",
    ".json.zst": "json",
}
_MARKS = "*?["
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input as the user gave it, or one file that a glob found."""

    name: str
    splits: dict[str, tuple[InputFile, ...]]
    """The files of each split; a dataset without splits has one called `SINGLE`."""

    folder: str | None = None
    """The local directory that it is, if it is one."""

    from_hub: bool = False

    manifest: TokenizeManifest | None = None
    """What is said of a dataset that was tokenised here."""

    def entry_of(self, file: InputFile) -> FileEntry | None:
        """What the manifest says of a file, if there is one."""
        entries = self.manifest.files.items() if self.manifest else ()
        return next((entry for name, entry in entries if file.path.endswith(f"/{name}")), None)

    def files(self) -> list[InputFile]:
        """The files of all splits, in order."""
        return [file for group in self.splits.values() for file in group]


def resolve(names: str | Path | Iterable[str | Path], options: InputOptions) -> list[Input]:
    """Find the files of one or several inputs, in the order given; a glob stands for its matches, sorted.

    Raises `DataError` for a missing path, an empty or foreign directory, an unknown file type or split,
    or a mixture of datasets with and without splits; `ConfigError` for options that have no effect on any input.
    """
    inputs: list[Input] = []
    for name in [names] if isinstance(names, str | Path) else names:
        inputs += _resolve(str(name), options)
    if not inputs:
        raise ConfigError("there is no input")
    for option in ("subset", "revision"):
        if getattr(options, option) is not None and not any(entry.from_hub for entry in inputs):
            raise ConfigError(f"--{option} is for datasets of the Hub and has no effect: no input is a Hub id")
    if options.split is not None:
        inputs = [_only(entry, options.split) for entry in inputs]
    if len({tuple(sorted(entry.splits)) for entry in inputs}) > 1:
        splits = "; ".join(f"{entry.name}: {', '.join(entry.splits).strip() or 'no splits'}" for entry in inputs)
        raise DataError(f"inputs with different splits cannot be packed together ({splits}); choose one with --split")
    return inputs


def shown_files(inputs: Iterable[Input]) -> list[str]:
    """The paths of all local files, and the URLs of all others."""
    return [file.shown for entry in inputs for file in entry.files()]


def local_folders(inputs: Iterable[Input]) -> list[str]:
    """The inputs that are local directories."""
    return [entry.folder for entry in inputs if entry.folder is not None]


def _only(entry: Input, split: str) -> Input:
    if SINGLE in entry.splits:
        raise DataError(f"{entry.name} has no splits, so --split {split} names nothing")
    if split not in entry.splits:
        raise DataError(f"{entry.name} has no split {split!r} (it has: {', '.join(entry.splits)})")
    return replace(entry, splits={SINGLE: entry.splits[split]})


def _resolve(name: str, options: InputOptions) -> list[Input]:
    system, path = _placed(name)
    system.invalidate_cache()  # what an earlier call of this process saw may be gone
    with reaching(name, system):
        if system.exists(path):
            return [_at(system, path, name)]
        if any(mark in name for mark in _MARKS):
            return [_at(system, match, match) for match in _matches(system, path, name)]
    if _HUB_ID.fullmatch(name) and _format(name) is None:
        return [_hub(name, options)]
    raise DataError(f"input {name}: no such file or directory")


def _placed(name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system that a name belongs to, and its path there. Raises `DataError` for a URL of an unknown kind.

    What lies on a disk under a name with `::` is a path; any other such name is a chained URL, if it begins as one.
    """
    if "::" in name and _is_path(name.removeprefix("file://"), name.split("::", maxsplit=1)[0]):
        return fsspec.filesystem("file"), fsspec.core.strip_protocol(name)
    try:
        system, path = fsspec.url_to_fs(name)
    except (ValueError, ImportError, FileNotFoundError, zipfile.BadZipFile, tarfile.TarError) as error:
        extra = "; pip install 'tightpack[s3]'" if isinstance(error, ImportError) and name.startswith("s3") else ""
        raise DataError(f"input {name}: {error}{extra}") from None
    return system, path


def _is_path(path: str, first: str) -> bool:
    """Whether a name with `::`, which begins with `first`, is a path or a pattern of paths, and no chained URL."""
    is_chained = first in fsspec.available_protocols() or "://" in first.removeprefix("file://")
    return not is_chained or os.path.lexists(path) or bool(fsspec.filesystem("file").glob(path))


def _matches(system: fsspec.AbstractFileSystem, pattern: str, name: str) -> list[str]:
    """What a pattern finds, sorted; names that begin with a dot are left out, as in a shell, and told.

    Raises `DataError` where nothing is left.
    """
    found = sorted(str(match) for match in system.glob(pattern))
    parts = posixpath.normpath(pattern).split("/")
    is_plain = [not set(part) & set(_MARKS) for part in parts]
    plain = is_plain.index(False) if False in is_plain else len(parts)  # what stands before was named in full
    shown = [match for match in found if _takes(parts[plain:], posixpath.normpath(match).split("/")[plain:])]
    hidden = sorted(set(found) - set(shown))
    told = ""
    if hidden:
        examples = ", ".join(hidden[:3]) + (", …" if len(hidden) > 3 else "")
        number = counted(len(hidden), "hidden file")
        told = f"{number} left out, as in a shell ({examples}); a pattern that begins with a dot takes them"
    if not shown:
        raise DataError(f"input {name}: nothing matches this pattern" + (f", but for {told}" if told else ""))
    if told:
        log.warning("input %s: %s", name, told)
    return shown


def _takes(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a pattern finds a path as a shell does, part by part: a leading dot is matched by a dot alone."""
    if not pattern:
        return not parts
    if pattern[0] == "**" and _takes(pattern[1:], parts):
        return True
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _takes(pattern, parts[1:])
    is_same = parts[0] == pattern[0] or fnmatch.fnmatchcase(parts[0], pattern[0])
    return is_same and _takes(pattern[1:], parts[1:])


def _at(system: fsspec.AbstractFileSystem, path: str, name: str) -> Input:
    base = path.rstrip("/").rsplit("/", 1)[-1]
    if not system.isdir(path):
        version = _named_version(system, path) if base == LATEST else None
        if version is not None:
            return replace(_at(system, version, name), name=base)
        kind = _format(base)
        if kind is None:
            raise DataError(
                f"input {name}: unknown file type; known are {', '.join(_FORMATS)}; write it as one of these"
            )
        return Input(name=base, splits={SINGLE: (InputFile(system=system, path=path, format=kind),)})
    folder = path if "file" in system.protocol else None
    if system.exists(f"{path}/dataset_dict.json"):
        splits = _read_json(system, f"{path}/dataset_dict.json").get("splits")
        if not isinstance(splits, list) or not splits:
            raise DataError(f"input {path}/dataset_dict.json: it names no splits")
        for split in splits:
            _require_inside(split, f"input {path}/dataset_dict.json: the split")
        files = {str(split): _saved_files(system, f"{path}/{split}") for split in splits}
        return Input(name=base, splits=files, folder=folder, manifest=_tokenized_manifest(system, path))
    if system.exists(f"{path}/state.json"):
        files = {SINGLE: _saved_files(system, path)}
        return Input(name=base, splits=files, folder=folder, manifest=_tokenized_manifest(system, path))
    inside = [str(entry).rsplit("/", 1)[-1] for entry in system.ls(path, detail=False)]
    if not inside:
        raise DataError(f"input {name}: the directory is empty")
    data = next((ending for ending in _FORMATS if any(entry.endswith(ending) for entry in inside)), None)
    way_out = f"; name its files with a quoted pattern, as in '{name}/*{data}'" if data else ""
    way_out = f"; versions are inside: name the current one, '{name}/{LATEST}'" if LATEST in inside else way_out
    raise DataError(f"input {name}: not a dataset written by save_to_disk (it has no state.json){way_out}")


def _require_inside(name: object, what: str) -> None:
    """Raise `DataError` for a name that is no plain name, and could lead out of the directory."""
    if not isinstance(name, str) or "/" in name or leads_out(name):
        raise DataError(f"{what} {name!r} is no plain name, and could lie anywhere; the file was tampered with")


def _named_version(system: fsspec.AbstractFileSystem, path: str) -> str | None:
    """The version that an object names as the current one, where there are no links; None if it names none."""
    text = system.cat_file(path, end=64).decode(errors="replace").strip()
    return f"{path.removesuffix(LATEST)}{text}" if VERSION.fullmatch(text) else None


def _saved_files(system: fsspec.AbstractFileSystem, path: str) -> tuple[InputFile, ...]:
    """The shards of a `save_to_disk` directory, as its state.json lists them."""
    state = _read_json(system, f"{path}/state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"input {path}: it was saved with an index mapping; save it again with datasets 2 or later")
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"input {path}/state.json: it lists no data files") from None
    for file in names:
        _require_inside(file, f"input {path}/state.json: the shard")
        if not system.exists(f"{path}/{file}"):
            raise DataError(f"input {path}: the shard {file} listed in state.json is missing")
    return tuple(InputFile(system=system, path=f"{path}/{file}", format="arrow") for file in names)


def _tokenized_manifest(system: fsspec.AbstractFileSystem, path: str) -> TokenizeManifest | None:
    """The manifest of a dataset that `tokenize` wrote; other people's are not looked at."""
    where = f"{path}/{MANIFEST}"
    if not system.isfile(where):
        return None
    content = system.cat_file(where)
    try:
        value = json_of(content)
    except ValueError as error:
        raise DataError(f"input {where}: damaged, not valid JSON ({error}); tokenise again, or remove it") from None
    if not isinstance(value, dict) or value.get("kind") != TOKENIZED:
        return None
    try:
        manifest = parse_manifest(content, where)
    except ManifestError as error:
        raise DataError(f"input {error}; tokenise again") from None
    assert isinstance(manifest, TokenizeManifest)
    return manifest


def _read_json(system: fsspec.AbstractFileSystem, path: str) -> dict[str, Any]:
    if not system.isfile(path):
        raise DataError(f"input {path}: no such file; the dataset directory is incomplete")
    content = system.cat_file(path)
    refuse_content(content, "json", f"input {path}")
    try:
        value = json_of(content)
    except ValueError as error:
        raise DataError(f"input {path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"input {path}: a JSON object is needed")
    return value


def _format(name: str) -> str | None:
    return next((kind for ending, kind in _FORMATS.items() if name.lower().endswith(ending)), None)


def _hub(name: str, options: InputOptions) -> Input:
    """A dataset of the Hub, through `datasets`; the Arrow files in its cache are the data."""
    import datasets  # noqa: PLC0415 - takes a second, and only these inputs need it

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(name, options.subset, revision=options.revision)
    except FileNotFoundError as error:  # DatasetNotFoundError, DataFilesNotFoundError and EmptyDatasetError are such
        raise DataError(f"input {name}: no such path, and no dataset of that name ({first_line(error)})") from None
    except ConnectionError as error:
        message = f"input {name}: no such path, and the Hub cannot be reached ({first_line(error)})"
        raise (DataError if datasets.config.HF_HUB_OFFLINE else BusyError)(message) from None
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"input {name}: {first_line(error)}") from None
    local = fsspec.filesystem("file")
    return Input(
        name=name.rstrip("/").rsplit("/", 1)[-1],
        splits={
            str(split): tuple(
                InputFile(system=local, path=cached["filename"], format="arrow") for cached in part.cache_files
            )
            for split, part in loaded.items()
        },
        from_hub=True,
    )
