"""Content hashes of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

_BLOCK = 1 << 24


def hash_of(hashes: Iterable[str]) -> str:
    """One hash for several, in their order."""
    return xxhash.xxh3_128_hexdigest("\n".join(hashes).encode())


def file_hash(path: Path) -> str:
    """xxh3_128 of a file's content, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
