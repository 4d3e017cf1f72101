"""What makes vectors of rows, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.base.engine import LocalEngine
from pipeline.embedding.store import Arrays
from pipeline.reading.windows import SplitRows
from strategies.contract import Embedding, Int16Array


class Embedder(Protocol):
    """Makes vectors of rows; the same rows give the same vectors."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the vectors but the content of the rows."""

    @property
    def model(self) -> dict[str, str] | None:
        """Name and content hash of the model, where there is one."""

    @property
    def column(self) -> str | None:
        """The column it reads beside the tokens, where there is one."""

    def fit(self, splits: Sequence[SplitRows], engine: LocalEngine) -> Arrays:
        """What has to be learned from the rows before any is embedded, as named arrays; stored, and given to `embed`.

        Raises `DataError` for rows that cannot be embedded.
        """

    def embed(self, split: SplitRows, start: int, stop: int, fitted: Arrays) -> Int16Array:
        """Vectors of rows start..stop-1.  # shape: (stop - start, num_dimensions)

        Raises `DataError` for a row that cannot be embedded.
        """


def make_embedder(wanted: Embedding) -> Embedder:
    """Raises `ConfigError` for a model that is not there, and where what it needs is not installed."""
    if wanted.embedder == "column":
        from pipeline.embedding.columns import ColumnEmbedder  # noqa: PLC0415 - each brings its own libraries

        return ColumnEmbedder(wanted.column)
    if wanted.embedder == "sentence-transformers":
        from pipeline.embedding.sentences import SentenceEmbedder  # noqa: PLC0415

        return SentenceEmbedder(wanted.model, wanted.column, wanted.max_tokens)
    from pipeline.embedding.tokens import TokenEmbedder  # noqa: PLC0415

    return TokenEmbedder()
