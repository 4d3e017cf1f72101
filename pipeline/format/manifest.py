"""manifest.json as typed records: what a dataset is, how it was made, and the checksums that prove it.

The file is the canonical form of its content, so that any change to it shows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType, structs

from pipeline.base.digests import canonical_json, hash_json, json_of
from pipeline.base.errors import ConfigError
from pipeline.base.objects.copies import LATEST
from pipeline.base.storage import FileFacts, read_bytes
from pipeline.base.words import leads_out
from pipeline.format.figures import Figures
from pipeline.format.identity import FORMAT_VERSION, ORIGINS, PACKED, TOKENIZED, Identity, NamedHash
from pipeline.format.options import InputOptions, PackOptions, TokenizeOptions
from pipeline.format.records import (
    EmbeddingEntry,
    FileEntry,
    InputEntry,
    PackAppend,
    SplitEntry,
    Tally,
    TokenizeAppend,
    TokenizedSplit,
    WindowEntry,
    parts_of,
)

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig(TokenizeOptions, InputOptions):
    """All options that decide the bytes of a tokenised dataset."""


class PackManifest(Figures, frozen=True, kw_only=True):
    """What the manifest of a packed dataset says.

    Where it was appended to, `counts` and all figures are of the whole, `report` and `embedding` of the first run.
    """

    format_version: int
    algorithm_version: int
    run_id: str
    config: PackOptions
    inputs: list[InputEntry]
    tokenizer: NamedHash | UnsetType = UNSET
    chat_template: NamedHash | UnsetType | None = UNSET
    embedding_model: NamedHash | UnsetType = UNSET
    embedding: EmbeddingEntry | UnsetType = UNSET
    windows: list[WindowEntry] | UnsetType = UNSET
    """The windows of a dataset without splits."""

    splits: dict[str, SplitEntry] | UnsetType = UNSET
    dropped_rows: dict[str, int] | UnsetType = UNSET
    """Raw rows that were left out as they were tokenised, by reason; they count as empty samples."""

    tokenized: Tally | UnsetType = UNSET
    """What became of raw rows; where they were tokenised as they were packed."""

    appends: list[PackAppend] | UnsetType = UNSET
    """What came after the first run, append by append; `windows` and `splits` hold their windows, too."""

    files: dict[str, FileEntry]
    """Every other file of the directory."""

    own_hash: str = msgspec.field(name="self")
    """The hash of everything else that is said here."""

    def __post_init__(self) -> None:
        if (self.windows is UNSET) == (self.splits is UNSET):
            raise ValueError("Object has to have either `windows` or `splits`")

    @property
    def parts(self) -> dict[str, SplitEntry]:
        """What is said of each split; a dataset without splits has one, called `SINGLE`."""
        return parts_of(self, self.windows, self.splits)

    def identity(self, settings: Mapping[str, Any]) -> Identity:
        """What makes it another run than others. settings: options of its strategy that are not at their default."""
        return _identity(PACKED, self, settings)


class TokenizeManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the manifest of a tokenised dataset says."""

    kind: str = TOKENIZED
    format_version: int
    algorithm_version: int
    run_id: str
    config: TokenizeConfig
    inputs: list[InputEntry]
    tokenizer: NamedHash
    chat_template: NamedHash | None
    counts: Tally
    splits: dict[str, TokenizedSplit] | UnsetType = UNSET
    appends: list[TokenizeAppend] | UnsetType = UNSET
    """What came after the first run, append by append; `counts` are of the whole."""

    files: dict[str, FileEntry]
    """Every other file of the directory."""

    own_hash: str = msgspec.field(name="self")
    """The hash of everything else that is said here."""

    def identity(self) -> Identity:
        """What makes it another run than others."""
        return _identity(TOKENIZED, self, {})


Manifest = PackManifest | TokenizeManifest
AnyManifest = TypeVar("AnyManifest", PackManifest, TokenizeManifest)


def batches_of(manifest: Manifest) -> list[list[InputEntry]]:
    """The data files of the first run, then those of each append."""
    later = [append.files for append in manifest.appends] if isinstance(manifest.appends, list) else []
    first = manifest.inputs[: len(manifest.inputs) - sum(map(len, later))]
    return [first, *later]


def _identity(kind: str, manifest: Manifest, settings: Mapping[str, Any]) -> Identity:
    named = {key: getattr(manifest, key, UNSET) for key in ORIGINS}
    return Identity(
        kind=kind,
        config=manifest.config,
        settings=settings,
        batches=batches_of(manifest),
        origin={key: entry for key, entry in named.items() if isinstance(entry, NamedHash)},
        format_version=manifest.format_version,
        algorithm_version=manifest.algorithm_version,
    )


def with_files(manifest: AnyManifest, files: Mapping[str, FileFacts | FileEntry]) -> AnyManifest:
    """The manifest with the files of its directory, and the hash that seals it."""
    entries = {
        name: facts if isinstance(facts, FileEntry) else FileEntry(**asdict(facts)) for name, facts in files.items()
    }
    whole = structs.replace(manifest, files=entries)
    return structs.replace(whole, own_hash=hash_of_rest(msgspec.to_builtins(whole)))


def to_bytes(manifest: Manifest) -> bytes:
    """The one form of a manifest on disk."""
    return canonical_json(msgspec.to_builtins(manifest))


def hash_of_rest(value: Mapping[str, Any]) -> str:
    """What a manifest's `self` has to be: the hash of the rest."""
    return hash_json({key: entry for key, entry in value.items() if key != "self"})


class ManifestError(ValueError):
    """A manifest is missing, is none of ours, or was changed after it was written."""


class OldFormatError(ManifestError):
    """A packed dataset was written by an older release, in a format that is not read any more."""

    def __init__(self, message: str, files: Collection[str]) -> None:
        """files: those that the manifest names."""
        super().__init__(message)
        self.files = files


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a packed or tokenised dataset. Raises `ManifestError`, and `OSError` where it cannot be read."""
    where = folder / MANIFEST
    try:
        content = read_bytes(where)
    except FileNotFoundError:
        versions = f"; versions are inside: name the current one, {LATEST}" if (folder / LATEST).is_symlink() else ""
        raise ManifestError(f"{where} is missing{versions}") from None
    return parse_manifest(content, str(where))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """The manifest that a file holds. where: words naming the file. Raises `ManifestError`."""
    try:
        value = json_of(content)
    except ValueError as error:
        raise ManifestError(f"{where} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ManifestError(f"{where} is not a manifest of format {FORMAT_VERSION}: a JSON object is needed")
    version, is_tokenized = value.get("format_version"), value.get("kind") == TOKENIZED
    if version == 1 and not is_tokenized:
        files = value.get("files")
        raise OldFormatError(
            f"{where} is of format version 1, written by an older release; this one reads version {FORMAT_VERSION}."
            " Pack the input again; --overwrite replaces what is there",
            files=list(files) if isinstance(files, dict) else [],
        )
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ManifestError(f"{where} is of format version {version}; this release reads up to {FORMAT_VERSION}")
    if hash_of_rest(value) != value.get("self"):
        raise ManifestError(f"{where} was changed after it was written")
    try:
        if is_tokenized:
            manifest: Manifest = msgspec.convert(_up_to_date(value), TokenizeManifest)
        else:
            manifest = msgspec.convert(value, PackManifest)
        _require_inside(manifest.files)
        return manifest
    except (msgspec.ValidationError, ConfigError) as error:
        raise ManifestError(f"{where} is not a manifest of format {FORMAT_VERSION}: {error}") from None


def _require_inside(files: Collection[str]) -> None:
    """Raise `ConfigError` for a path that leads out of the directory."""
    for path in files:
        if leads_out(path):
            raise ConfigError(f"it names the file {path!r}, which could lie anywhere")


def _up_to_date(value: dict[str, Any]) -> dict[str, Any]:
    """The content of a tokenised dataset's manifest in the words of today, whichever version wrote it."""
    if value.get("format_version") != 1:
        return value
    try:
        config = dict(value["config"])
        if config.get("on_error") == "skip":
            config["on_error"] = "drop"
        renewed = value | {"config": config, "counts": _renamed(value["counts"])}
        if "splits" in value:
            splits = value["splits"].items()
            renewed["splits"] = {name: {"counts": _renamed(split["counts"])} for name, split in splits}
    except (KeyError, TypeError, ValueError, AttributeError):
        return value  # what is wrong with it is told as for any other
    return renewed


def _renamed(counts: dict[str, Any]) -> dict[str, Any]:
    return {"dropped" if key == "skipped" else key: number for key, number in counts.items()}
