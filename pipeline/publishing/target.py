"""The place that an output names, on a disk or an object store, and its publication."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.base.objects.copies import LATEST, VERSION
from pipeline.base.objects.store import ObjectStore, is_url
from pipeline.base.options import RunOptions
from pipeline.base.progress import ProgressCallback
from pipeline.format.identity import Identity
from pipeline.format.manifest import Manifest
from pipeline.publishing.output import check_output
from pipeline.publishing.place import Place
from pipeline.publishing.publication import Publication, publication
from pipeline.publishing.stored.place import StoredPlace
from pipeline.publishing.stored.publication import stored_publication

AnyPlace = Place | StoredPlace


def place_of(
    output: str | Path, run: RunOptions, *, overwrite: bool, append: bool, versioned: bool, keep: int | None
) -> AnyPlace:
    """The place of an output, which is not looked at yet.

    Raises `ConfigError` for a URL that cannot be written, and for choices that contradict each other.
    """
    if overwrite and append:
        raise ConfigError("--overwrite makes all of it anew and --append adds to it; choose one")
    if not is_url(output):
        path = Path(os.path.realpath(output))
        _refuse_name(path, versioned=versioned)
        return Place(output=path, versioned=versioned, keep=keep)
    cache = run.resolved().cache_dir
    assert cache is not None
    store = ObjectStore.at(output, "--output", is_output=True)
    return StoredPlace(store=store, cache=cache, versioned=versioned, keep=keep)


def _refuse_name(path: Path, *, versioned: bool) -> None:
    """Raise `ConfigError` for a name that cannot be told, and for a version, which is named by its run."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise ConfigError(f"--output {shown}: its name, or a folder's, is not in UTF-8; choose another") from None
    if not versioned and VERSION.fullmatch(path.name) and (path.parent / LATEST).is_symlink():
        raise ConfigError(
            f"--output {path} is one of the versions in {path.parent}, each of which is what one run wrote; name"
            f" --output {path.parent} --versioned"
        )


def check_place(
    place: AnyPlace,
    files: Iterable[str],
    folders: Iterable[str],
    *,
    overwrite: bool,
    append: bool,
    is_shared: bool = False,
) -> None:
    """Look at a place before any work is done.

    files: of the inputs, by path or URL; folders: inputs that are local directories; overwrite, append: whether what
    is there is replaced, or added to; is_shared: as of `check_output`.

    Raises as `check_output`, and `ConfigError` where an object store cannot do that.
    """
    if isinstance(place, Place):
        local = [file for file in files if not is_url(file)]
        check_output(place.output, files=local, folders=folders, is_shared=is_shared)
        return
    url = place.store.url
    inside = next((file for file in files if file.startswith(f"{url}/")), None)
    if inside is not None:
        raise ConfigError(f"--output {url} holds the input {inside}; choose another output")
    if (overwrite or append) and not place.versioned:
        flag = "--overwrite" if overwrite else "--append"
        raise ConfigError(
            f"{flag}: nothing can be replaced in one step on an object store; add --versioned, which keeps each run"
            " beside the others"
        )


def publication_at(
    place: AnyPlace,
    identity: Identity,
    overwrite: bool,
    base: Manifest | None,
    progress: ProgressCallback | None,
    *,
    may_fail: bool = False,
) -> AbstractContextManager[Publication]:
    """The publication at a place, as `publication`. progress: is called where something is uploaded."""
    if isinstance(place, StoredPlace):
        return stored_publication(place, identity, overwrite=overwrite, base=base, progress=progress)
    return publication(place, identity, overwrite=overwrite, base=base, may_fail=may_fail)
