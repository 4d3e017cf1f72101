"""What makes one run another: everything that decides the bytes of its output, and the hash of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from pipeline.base.digests import hash_json
from pipeline.base.options import Options
from pipeline.base.words import counted

FORMAT_VERSION = 2
"""It changes when readers have to change; see docs/format.md."""

ALGORITHM_VERSION = 2
"""It is bumped by hand whenever the bytes of any output would change, also by another default."""

_SHOWN = 8  # files in a message

PACKED, TOKENIZED = "packed", "tokenized"
"""The kinds of directories of ours."""

SINGLE = ""
"""The name of the only split of a dataset that has no splits."""


class NamedHash(msgspec.Struct, frozen=True, kw_only=True):
    """Something whose content decides bytes, and what to call it."""

    name: str
    xxh3_128: str


class FileHash(NamedHash, frozen=True, kw_only=True):
    """One data file of the input, by its base name (of a file in a directory, its place inside), never by its path."""

    split: str | UnsetType = UNSET
    """The split that it belongs to, where there are splits."""

    @property
    def content(self) -> tuple[str, ...]:
        """What tells it from other files: its hash, and its split where there are splits."""
        return content_of(self.xxh3_128, SINGLE if self.split is UNSET else self.split)


def content_of(digest: str, split: str) -> tuple[str, ...]:
    """What tells a data file from others, by the hash of its bytes and its split."""
    return (digest,) if split == SINGLE else (split, digest)


TOKENIZER, CHAT_TEMPLATE, EMBEDDING_MODEL = ORIGINS = ("tokenizer", "chat_template", "embedding_model")
"""Where tokens come from, and what made vectors of samples."""

Origin = Mapping[str, NamedHash]
"""The entries of `ORIGINS` that there are, and are known."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides the bytes of a directory."""

    kind: str
    """packed or tokenized."""

    config: Options
    """All options that change bytes."""

    settings: Mapping[str, Any]
    """Options of the strategy that are not at their default."""

    batches: Sequence[Sequence[FileHash]]
    """The data files of the first run, then those of each append, all in their order."""

    origin: Origin
    format_version: int = FORMAT_VERSION
    algorithm_version: int = ALGORITHM_VERSION

    @property
    def run_id(self) -> str:
        """The hash of everything here but names, in hex.

        Options at their default are left out of it, so that a new option changes no `run_id`.
        """
        config = self.config.changed()
        config.pop("set", None)
        return hash_json(
            {
                "kind": self.kind,
                "format_version": self.format_version,
                "algorithm_version": self.algorithm_version,
                "config": config | ({"set": dict(self.settings)} if self.settings else {}),
                "inputs": [[list(file.content) for file in batch] for batch in self.batches],
                **{key: entry.xxh3_128 for key, entry in self.origin.items()},
            }
        )


def differences(old: Identity, new: Identity) -> list[str]:
    """What differs between two runs, a line for each, for the message that refuses to replace one by the other."""
    lines = []
    before, after = (_flat(msgspec.to_builtins(identity.config)) for identity in (old, new))
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key)} there, {after.get(key)} now")
    contents = [[file.content for batch in identity.batches for file in batch] for identity in (old, new)]
    if contents[0] != contents[1]:
        there, now = (_files(identity) for identity in (old, new))
        lines.append(f"content of the inputs: {there} there, {now} now")
    elif len(old.batches) != len(new.batches):
        there, now = (counted(len(identity.batches) - 1, "append") for identity in (old, new))
        lines.append(f"how the inputs came: with {there} there, with {now} now; --append finds them all")
    for key in ORIGINS:
        entries = [identity.origin.get(key) for identity in (old, new)]
        if len({entry and entry.xxh3_128 for entry in entries}) > 1:
            there, now = (_called(entry) if entry else "not known" for entry in entries)
            lines.append(f"{key}: {there} there, {now} now")
    for key in ("format_version", "algorithm_version"):
        if getattr(old, key) != getattr(new, key):
            lines.append(f"{key}: {getattr(old, key)} there, {getattr(new, key)} now")
    return lines


def _files(identity: Identity) -> str:
    """The data files, the first of them by name."""
    files = [_called(file) for batch in identity.batches for file in batch]
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more


def _called(entry: NamedHash) -> str:
    return f"{entry.name} ({entry.xxh3_128[:8]})"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names; empty ones do not count."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
