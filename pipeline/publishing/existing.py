"""What is already there under the output's name, and whether it may be replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.format import manifest as manifests
from pipeline.reading.files import hash_file
from pipeline.reading.inputs import Input


def refuse_nesting(output: Path, inputs: list[Input]) -> None:
    """Raise `ConfigError` if the output holds an input, lies inside one, or is a file."""
    in_the_way = next((path for path in (output, *output.parents) if path.exists()), output)
    if not in_the_way.is_dir():
        raise ConfigError(f"--output {output}: {in_the_way} is a file")
    for entry in inputs:
        for file in (file for file in entry.files() if file.is_local):
            path = Path(os.path.realpath(file.path))
            if path == output or output in path.parents:
                raise ConfigError(f"--output {output} holds the input {path}; choose another output")
        if entry.folder is not None and output.is_relative_to(os.path.realpath(entry.folder)):
            raise ConfigError(f"--output {output} lies inside the input {entry.folder}; choose another output")


def up_to_date(
    output: Path, run_id: str, told: Mapping[str, Any], read: Callable[[Path], dict[str, Any]], overwrite: bool
) -> bool:
    """Whether the output is there already: by names and sizes, and with `overwrite`, which mends, by checksums.

    told: what identifies the run, to say what differs; read: the manifest of a directory of the wanted kind.
    Raises `ConfigError` if something else is in its place that may not be replaced.
    """
    if not output.exists() or not any(output.iterdir()):
        return False
    try:
        old = read(output)
    except ValueError as error:
        if not overwrite:
            raise ConfigError(
                f"--output {output} exists and is not what would be written ({error}); choose another output"
            ) from None
        if not any((output / name).exists() for name in (manifests.MANIFEST, "state.json", "dataset_dict.json")):
            raise ConfigError(f"--output {output} is no dataset; --overwrite only replaces datasets") from None
        return False
    if old["run_id"] == run_id:
        damaged = next(
            (name for name, facts in old["files"].items() if not _is_whole(output / name, facts, overwrite)), None
        )
        if damaged is not None and not overwrite:
            raise ConfigError(f"--output {output} is this run, but {damaged} is damaged; --overwrite writes it anew")
        return damaged is None
    if overwrite:
        _refuse_foreign_files(output, old)
        return False
    differing = "".join(f"\n  {line}" for line in manifests.differences(old, told))
    raise ConfigError(
        f"--output {output} holds another run ({old['run_id']} there, {run_id} now); choose another output, or"
        f" replace it with --overwrite. What differs:{differing}"
    )


def _refuse_foreign_files(output: Path, old: dict[str, Any]) -> None:
    """Replacing removes the whole directory, so nothing may lie in it but the dataset and what readers cache there."""
    known = {*old["files"], manifests.MANIFEST}
    for path in sorted(output.rglob("*")):
        if path.is_file() and str(path.relative_to(output)) not in known and not path.match("cache-*.arrow"):
            raise ConfigError(f"--output {output}: {path} is not part of the dataset there; move it away first")


def _is_whole(file: Path, facts: dict[str, Any], by_checksum: bool) -> bool:
    """Whether a published file is there in full."""
    if not file.is_file() or file.stat().st_size != facts["bytes"]:
        return False
    return not by_checksum or hash_file(str(file)) == facts["xxh3_128"]
