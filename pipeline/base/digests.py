"""Content hashes. All of them are xxh3_128, in hex."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from pipeline.base.storage import FileFacts, open_file

if TYPE_CHECKING:
    import numpy as np

_BLOCK_BYTES = 1 << 26


def hash_bytes(content: bytes) -> str:
    """The hash of some bytes."""
    return xxhash.xxh3_128_hexdigest(content)


def hash_file(path: str | Path) -> str:
    """The hash of a local file's bytes. Raises `OSError`."""
    digest = xxhash.xxh3_128()
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view, memoryview(view) as data:
                for start in range(0, size, _BLOCK_BYTES):
                    digest.update(data[start : start + _BLOCK_BYTES])
    return digest.hexdigest()


def hash_blocks(blocks: Iterable[bytes]) -> str:
    """The hash of bytes that come in parts."""
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def is_whole(path: Path, facts: FileFacts) -> bool:
    """Whether a file is there with the content that was written. Raises `OSError` where it cannot be read."""
    return path.is_file() and path.stat().st_size == facts.bytes and hash_file(path) == facts.xxh3_128


def hash_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """The hash of named arrays: their names, types, shapes and values."""
    import numpy as np  # noqa: PLC0415 - commands that hash no arrays start without it

    digest = xxhash.xxh3_128()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """The hash of a JSON value's canonical form."""
    return hash_bytes(canonical_json(value))


_MOST_DIGITS = 30  # more than any count has, and no float overflows


def json_of(content: bytes) -> Any:
    """The value of a text in JSON. Raises `ValueError`, also for what is nested too deeply, and for lone surrogates
    and integers beyond any count.
    """
    try:
        value = json.loads(content, parse_int=_integer)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def canonical_json(value: Any) -> bytes:
    """The one form of a JSON value: sorted keys, fixed separators, ASCII, and a line feed at its end."""
    return (json.dumps(value, indent=1, sort_keys=True, separators=(",", ": "), ensure_ascii=True) + "\n").encode()
