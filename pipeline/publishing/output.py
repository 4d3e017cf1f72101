"""Where an output may stand: decided from paths alone, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.base.lock import refuse_locked


def check_output(output: str | Path, *, files: Iterable[str], folders: Iterable[str], is_shared: bool = False) -> Path:
    """The real path of an output.

    files: of the inputs; folders: inputs that are local directories; is_shared: whether other processes of the same run
    may be writing it.
    Raises `ConfigError` if the output holds an input, lies inside one, or is a file; `BusyError` if
    another run is writing it now.
    """
    path = Path(os.path.realpath(output))
    in_the_way = next((part for part in (path, *path.parents) if part.exists()), path)
    if not in_the_way.is_dir():
        raise ConfigError(f"--output {path}: {in_the_way} is a file")
    for file in map(os.path.realpath, files):
        if path == Path(file) or path in Path(file).parents:
            raise ConfigError(f"--output {path} holds the input {file}; choose another output")
    for folder in folders:
        if path.is_relative_to(os.path.realpath(folder)):
            raise ConfigError(f"--output {path} lies inside the input {folder}; choose another output")
    refuse_locked(lock_path(path), busy_message(path), is_shared=is_shared)
    return path


def lock_path(output: Path) -> Path:
    """The file whose lock a run holds while it writes an output."""
    return output.parent / f".{output.name}.lock"


def busy_message(output: Path) -> str:
    """What is said where another run holds that lock."""
    return f"another run is writing {output}; wait for it, or choose another --output"
