"""What makes vectors of rows, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.base.engine import LocalEngine
from pipeline.format.identity import NamedHash
from pipeline.reading.windows import SplitRows
from strategies.arrays import Arrays, Int16Array
from strategies.contract import Embedding


class Embedder(Protocol):
    """Makes vectors of rows; the same rows give the same vectors."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the vectors but the content of the rows."""

    @property
    def model(self) -> NamedHash | None:
        """The model, where there is one."""

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


def make_embedder(embedding: Embedding) -> Embedder:
    """The embedder that a strategy wants.

    Raises `ConfigError` for a model that is not there, and where what it needs is not installed.
    """
    if embedding.embedder == "column":
        from pipeline.embedding.columns import ColumnEmbedder  # noqa: PLC0415 - each brings its own libraries

        return ColumnEmbedder(embedding.column)
    if embedding.embedder == "sentence-transformers":
        from pipeline.embedding.sentences import SentenceEmbedder  # noqa: PLC0415

        return SentenceEmbedder(embedding.model, embedding.column, embedding.max_tokens)
    from pipeline.embedding.tokens import TokenEmbedder  # noqa: PLC0415

    return TokenEmbedder()
