"""What is already there under the output's name, and whether it may be replaced."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.digests import is_whole
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.storage import FileFacts, list_folder
from pipeline.format.dataset_files import is_left_by_others
from pipeline.format.identity import PACKED, Identity, differences
from pipeline.format.manifest import MANIFEST, Manifest, ManifestError, OldFormatError, PackManifest, read_manifest
from pipeline.format.records import FileEntry

log = logging.getLogger(__name__)


def manifest_there(output: Path, kind: str) -> Manifest | None:
    """The manifest of what is there, None if there is nothing. kind: packed or tokenized.

    Raises `ConfigError` for anything but a dataset of that kind.
    """
    if not output.exists() or not list_folder(output):
        return None
    try:
        there = read_manifest(output)
    except ManifestError as error:
        raise _not_what_would_be_written(output, str(error)) from None
    refuse_other_kind(output, there, kind)
    return there


def existing_run(output: Path, identity: Identity, *, overwrite: bool, base: Manifest | None = None) -> Manifest | None:
    """The manifest of what is there, if it is this run: by names and sizes, and with `overwrite`, which mends, by
    checksums. None if the output can be written.

    base: what is appended to. Raises `ConfigError` if something else is in its place that may not be replaced, and
    `BusyError` if another run replaced what is appended to.
    """
    if not output.exists() or not list_folder(output):
        return None
    try:
        old = read_manifest(output)
    except OldFormatError as error:
        if not overwrite:
            raise ConfigError(f"--output {output} is in the way: {error}") from None
        _refuse_foreign_files(output, error.files)
        return None
    except ManifestError as error:
        if not overwrite:
            raise _not_what_would_be_written(output, str(error)) from None
        if not any((output / name).exists() for name in (MANIFEST, "state.json", "dataset_dict.json")):
            raise ConfigError(f"--output {output} is no dataset; --overwrite only replaces datasets") from None
        return None
    if old.run_id == identity.run_id:
        damaged = next(
            (name for name, entry in old.files.items() if not _is_whole(output / name, entry, overwrite)), ""
        )
        if damaged and not overwrite:
            raise ConfigError(f"--output {output} is this run, but {damaged} is damaged; --overwrite writes it anew")
        return None if damaged else old
    if base is not None:
        if old.run_id != base.run_id:
            raise BusyError(f"another run replaced {output} meanwhile; run the same command again")
        require_whole(output, old)
        _refuse_foreign_files(output, old.files)
        return None
    if not overwrite:
        way_out = "choose another output, or replace it with --overwrite, or add new inputs to it with --append"
        raise another_run(output, old, identity, way_out)
    _refuse_foreign_files(output, old.files)
    return None


def require_whole(output: Path, there: Manifest) -> None:
    """Raise `ConfigError` if a file that is appended to is missing or has another size."""
    damaged = next((name for name, entry in there.files.items() if not _is_whole(output / name, entry, False)), "")
    if damaged:
        raise ConfigError(f"--output {output}: {damaged} is damaged; make the dataset anew with --overwrite")


def another_run(output: Path | str, old: Manifest, identity: Identity, way_out: str) -> ConfigError:
    """The error of a run whose place another has."""
    try:
        refuse_other_kind(output, old, identity.kind)
    except ConfigError as error:
        return error
    there = old.identity({}) if isinstance(old, PackManifest) else old.identity()
    lines = "".join(f"\n  {line}" for line in differences(there, identity))
    return ConfigError(
        f"--output {output} holds another run ({old.run_id} there, {identity.run_id} now); {way_out}."
        f" What differs:{lines}"
    )


def refuse_other_kind(output: Path | str, there: Manifest, kind: str) -> None:
    """Raise `ConfigError` unless what is there is a dataset of that kind."""
    if isinstance(there, PackManifest) != (kind == PACKED):
        called = "packed" if isinstance(there, PackManifest) else "tokenised"
        raise _not_what_would_be_written(output, f"{output} is a {called} dataset")


def _not_what_would_be_written(output: Path | str, why: str) -> ConfigError:
    return ConfigError(f"--output {output} exists and is not what would be written ({why}); choose another output")


def _refuse_foreign_files(output: Path, files: Iterable[str]) -> None:
    """Replacing removes the whole directory, so nothing may lie in it but the dataset and what readers leave there."""
    ours = {*files, MANIFEST}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        if name.as_posix() in ours or (path.is_dir() and not path.is_symlink()):
            continue
        if is_left_by_others(name):
            log.warning("%s is not part of the dataset there, and is replaced with it", path)
        else:
            raise ConfigError(f"--output {output}: {path} is not part of the dataset there; move it away first")


def _is_whole(file: Path, entry: FileEntry, by_checksum: bool) -> bool:
    """Whether a published file is there in full."""
    if by_checksum:
        return is_whole(file, FileFacts(bytes=entry.bytes, xxh3_128=entry.xxh3_128))
    return file.is_file() and file.stat().st_size == entry.bytes
