"""Vectors on disk, by what they were made of: made once, found again by later runs.

They lie under the cache folder, or in the run's staging where that cannot be written.
"""

from __future__ import annotations

import errno
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.digests import hash_arrays, hash_bytes
from pipeline.base.storage import make_folders, read_bytes, write_file
from strategies.arrays import Arrays

log = logging.getLogger(__name__)


class VectorStore:
    """Named arrays that belong to one embedding of one input."""

    def __init__(self, cache_dir: Path, staging: Path, identity: Mapping[str, Any]) -> None:
        """identity: everything that decides the vectors."""
        key = hash_bytes(json.dumps(identity, sort_keys=True).encode())
        self._folder = cache_dir / "embeddings" / key
        try:
            make_folders(self._folder)
            described = json.dumps(identity, sort_keys=True, indent=1).encode()
            write_file(self._folder / "identity.json", described, is_shared=True)
        except OSError as error:
            log.warning("embeddings are not kept for later runs: %s", error)
            self._folder = staging

    def load(self, name: str) -> tuple[Arrays, str] | None:
        """Arrays and their hash, if they were saved and are whole."""
        try:
            return self.read(name)
        except OSError:
            return None

    def read(self, name: str) -> tuple[Arrays, str]:
        """Arrays that were saved, and their hash. Raises `OSError`, also if they are not what was saved."""
        path = self._path(name)
        described, data = read_bytes(path.with_suffix(".json")), read_bytes(path)
        try:
            facts = json.loads(described)
            if hash_bytes(data) == facts["xxh3_128"]:
                with np.load(io.BytesIO(data)) as arrays:
                    return dict(arrays), str(facts["content"])
        except (ValueError, KeyError, TypeError):
            pass
        raise OSError(errno.EIO, "not what was saved there", str(path))

    def save(self, name: str, arrays: Arrays) -> str:
        """Keep arrays; returns their hash. Raises `OSError`."""
        archive = io.BytesIO()
        np.savez(archive, **arrays)  # type: ignore[arg-type]
        data, content = archive.getvalue(), hash_arrays(arrays)
        path = self._path(name)
        write_file(path, data, is_shared=True)  # two runs may write the same
        facts = {"bytes": len(data), "xxh3_128": hash_bytes(data), "content": content}
        write_file(path.with_suffix(".json"), json.dumps(facts).encode(), is_shared=True)
        return content

    def _path(self, name: str) -> Path:
        return self._folder / f"embedding-{name}.npz"
