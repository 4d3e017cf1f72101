"""What makes one run another: everything that decides the bytes of its output, and the hash of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.base.digests import hash_json
from pipeline.base.options import Options

FORMAT_VERSION = 2
"""It changes when readers have to change; see docs/format.md."""

ALGORITHM_VERSION = 2
"""It is bumped by hand whenever the bytes of any output would change, also by another default."""

PACKED, TOKENIZED = "packed", "tokenized"
"""The kinds of directories of ours."""

SINGLE = ""
"""The name of the only split of a dataset that has no splits."""


class NamedHash(msgspec.Struct, frozen=True, kw_only=True):
    """Something whose content decides bytes, and what to call it."""

    name: str
    xxh3_128: str


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

    inputs: Sequence[NamedHash]
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
                "inputs": [[entry.xxh3_128 for entry in self.inputs]],  # one list for each append
                **{key: entry.xxh3_128 for key, entry in self.origin.items()},
            }
        )


def combine(hashes: Mapping[str, Sequence[str]]) -> str:
    """One hash for the files of an input: split -> the content hashes of its files, all in their order."""
    return hash_json({"splits": [[split, *digests] for split, digests in hashes.items()]})


def differences(old: Identity, new: Identity) -> list[str]:
    """What differs between two runs, a line for each, for the message that refuses to replace one by the other."""
    lines = []
    before, after = (_flat(msgspec.to_builtins(identity.config)) for identity in (old, new))
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            lines.append(f"{key}: {before.get(key)} there, {after.get(key)} now")
    if [entry.xxh3_128 for entry in old.inputs] != [entry.xxh3_128 for entry in new.inputs]:
        there, now = (", ".join(map(_called, identity.inputs)) for identity in (old, new))
        lines.append(f"content of the inputs: {there} there, {now} now")
    for key in ORIGINS:
        entries = [identity.origin.get(key) for identity in (old, new)]
        if len({entry and entry.xxh3_128 for entry in entries}) > 1:
            there, now = (_called(entry) if entry else "not known" for entry in entries)
            lines.append(f"{key}: {there} there, {now} now")
    for key in ("format_version", "algorithm_version"):
        if getattr(old, key) != getattr(new, key):
            lines.append(f"{key}: {getattr(old, key)} there, {getattr(new, key)} now")
    return lines


def _called(entry: NamedHash) -> str:
    return f"{entry.name} ({entry.xxh3_128[:8]})"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names; empty ones do not count."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
