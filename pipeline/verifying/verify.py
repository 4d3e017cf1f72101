"""Is a packed dataset what its manifest says, and does it hold every token of its source?"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import ConfigError
from pipeline.format import manifest as manifests
from pipeline.packing.config import PackConfig
from pipeline.publishing.publication import Staging
from pipeline.reading.files import FileCache, hash_file
from pipeline.reading.input_rows import open_inputs
from pipeline.reading.inputs import SINGLE, resolve
from pipeline.tokenizing.for_packing import tokenize_inputs
from pipeline.verifying.splits import Checker, Found, Source, shards_of, splits_of
from strategies import find

if TYPE_CHECKING:
    from pipeline.tokenizing.tokenization import Tokenization

log = logging.getLogger(__name__)

_MOST_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was looked at, and what is wrong with it."""

    directory: str
    problems: list[str]
    files: int
    bytes: int
    packs: int
    segments: int
    tokens: int
    source: bool
    """Whether the tokens were compared with their source."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class SourceGiven:
    """What to compare with."""

    inputs: tuple[str, ...]
    tokenizer: str | None = None
    """Path or Hub id, for raw inputs that were tokenised as they were packed."""

    chat_template: Path | None = None


def verify(directory: Path, given: SourceGiven, *, num_workers: int, cache_dir: Path) -> Verified:
    """Check files and their checksums, every invariant of the format, the counts, and with inputs given every token.

    Raises `DataError` and the like for a source that cannot be read; what is wrong with the packed dataset
    itself is returned as problems.
    """
    started = time.monotonic()
    problems, manifest = _check_manifest(directory)
    found = Found()
    if manifest is not None:
        with (
            FileCache(cache_dir) as cache,
            tempfile.TemporaryDirectory(prefix="verify-") as folder,
            LocalEngine(num_workers) as engine,
        ):
            problems += _check_small_files(directory, manifest)
            opened = _open_sources(manifest, given, cache, engine, Path(folder)) if given.inputs else None
            if opened is not None and set(opened.splits) != set(splits_of(manifest)):
                packed = _told(splits_of(manifest))
                problems.append(f"source: it has {_told(opened.splits)}, the packed dataset {packed}")
                opened = None
            checker = Checker(directory, manifest, engine, opened)
            problems += checker.run()
            found = checker.found
    return Verified(
        directory=str(directory),
        problems=problems[:_MOST_PROBLEMS],
        files=len(manifest["files"]) + 1 if manifest else 0,
        bytes=sum(facts["bytes"] for facts in manifest["files"].values()) if manifest else 0,
        packs=found.packs,
        segments=found.segments,
        tokens=found.tokens,
        source=bool(given.inputs),
        seconds=time.monotonic() - started,
    )


def _told(splits: Iterable[str]) -> str:
    return "no splits" if list(splits) == [SINGLE] else f"the splits {', '.join(splits)}"


def _check_manifest(directory: Path) -> tuple[list[str], dict[str, Any] | None]:
    """The manifest, if it is whole and in its canonical form. Raises `ConfigError` for a tokenised dataset."""
    if not directory.is_dir():
        return [f"{directory}: no such directory"], None
    if manifests.is_tokenized(directory):
        raise ConfigError(
            f"{directory} is a tokenised dataset, and `verify` is for packed ones; `pack` compares it with its manifest"
        )
    try:
        manifest = manifests.read(directory)
        raw = (directory / manifests.MANIFEST).read_bytes()
    except (ValueError, OSError) as error:
        return [str(error)], None
    if manifests.canonical(manifest) != raw:
        return [f"{manifests.MANIFEST}: was changed after it was written"], None
    if manifest["format_version"] != manifests.FORMAT_VERSION:
        return [f"{manifests.MANIFEST}: format version {manifest['format_version']} is not known to this release"], None
    try:
        config = PackConfig(**manifest["config"])
    except TypeError as error:
        return [f"{manifests.MANIFEST}: its config is not one of ours ({error})"], None
    hashes = [entry["xxh3_128"] for entry in manifest["inputs"]]
    if manifests.identity({**manifest, "config": config.to_json()}, hashes) != manifest["run_id"]:
        return [f"{manifests.MANIFEST}: run_id is not that of its config and inputs"], None
    return [], manifest


def _check_small_files(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Everything but the shards' content."""
    splits = list(splits_of(manifest))
    needed = {f"{split}/{name}" if split else name for split in splits for name in ("state.json", "dataset_info.json")}
    needed |= {"README.md"} if splits == [SINGLE] else {"README.md", "dataset_dict.json"}
    problems = [f"{manifests.MANIFEST}: it does not list {name}" for name in sorted(needed - set(manifest["files"]))]
    for name, facts in manifest["files"].items():
        if "packs" in facts:
            continue
        if not (directory / name).is_file():
            problems.append(f"{name}: missing")
        elif hash_file(str(directory / name)) != facts["xxh3_128"]:
            problems.append(f"{name}: its checksum is not the manifest's")
    for split in splits:
        try:
            state = json.loads((directory / split / "state.json").read_bytes())
            listed = [entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # reported above by its checksum
        if listed != [Path(name).name for _, name in shards_of(manifest, split)]:
            problems.append(
                f"{split + '/' if split else ''}state.json: it does not list the manifest's shards in their order"
            )
    known = {*manifest["files"], manifests.MANIFEST}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and str(path.relative_to(directory)) not in known:
            log.warning("%s is not part of the packed dataset", path)
    return problems


def _open_sources(
    manifest: Mapping[str, Any], given: SourceGiven, cache: FileCache, engine: LocalEngine, folder: Path
) -> Source:
    config = PackConfig(**manifest["config"])
    tokenization = _tokenization(manifest, config, given)
    inputs = resolve(given.inputs, split=config.split, subset=config.subset, revision=config.revision)
    staging = Staging(folder / "source", "verify")
    staging.open()
    if tokenization is None:
        opened = open_inputs(inputs, config.column, cache, engine, staging)
    else:
        opened = tokenize_inputs(inputs, tokenization, cache, engine, staging).opened
    return Source(
        splits=opened.splits,
        config=config,
        cuts_stream=_cuts_stream(config.strategy),
    )


def _tokenization(manifest: Mapping[str, Any], config: PackConfig, given: SourceGiven) -> Tokenization | None:
    """How raw inputs were tokenised; None if the dataset was packed from tokens.

    Raises `ConfigError` if the tokenizer or the template given is not the one that was used.
    """
    if config.tokenize is None:
        if given.tokenizer:
            raise ConfigError("the dataset was packed from tokens: give those as --source, without --tokenizer")
        return None
    if given.tokenizer is None:
        raise ConfigError(
            f"the dataset was packed from raw rows: to compare them, give --tokenizer ({manifest['tokenizer']['name']})"
            " and, if one was used, --chat-template"
        )
    from pipeline.tokenizing.tokenization import from_manifest, today  # noqa: PLC0415 - most datasets need no tokenizer

    day = config.tokenize.get("rendered_on", today())
    if day != today():
        raise ConfigError(f"the chat template wrote the day, {day}: the tokens can only be compared on that day")
    tokenization = from_manifest(config.tokenize, given.tokenizer, given.chat_template)
    for key, found in tokenization.describe().items():
        packed = manifest.get(key)
        if (found and found["xxh3_128"]) != (packed and packed["xxh3_128"]):
            names = [f"{one['name']} ({one['xxh3_128'][:8]})" if one else "none" for one in (found, packed)]
            raise ConfigError(f"--source: the {key.replace('_', ' ')} is {names[0]}, but it was packed with {names[1]}")
    return tokenization


def _cuts_stream(name: str) -> bool:
    try:
        return find(name).stream_order is not None
    except ValueError:
        return False  # somebody else's strategy, not installed here; all of ours are known
