"""Content hashes of files."""

from __future__ import annotations

from pathlib import Path

import xxhash

_BLOCK = 1 << 24


def file_hash(path: Path) -> str:
    """xxh3_128 of a file's content, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
