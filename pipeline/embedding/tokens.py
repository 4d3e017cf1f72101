"""Vectors from token counts alone: TF-IDF of the prompt, reduced to a few dimensions. No model, no torch.

An inner product of such vectors says how many rare tokens two prompts share. The reduction is a truncated singular
value decomposition (latent semantic analysis, Deerwester et al., 1990) of the counts of a sample of rows. As both
steps are linear, and length does not count in the end, a prompt's vector is the sum of one row a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import ConfigError
from pipeline.embedding.prompts import prompts, sum_of_rows
from pipeline.reading.windows import SplitRows
from strategies import Draws
from strategies.arrays import Arrays, Float32Array, Int16Array, Int32Array, Int64Array
from strategies.related.affinity import quantise

_DIMENSIONS = 128
_FITTED_ON = 20_000  # rows
_FITTED_AT_ONCE = 4096  # rows looked through by one task
_ROUNDS = 4  # power iterations of the decomposition


class TokenEmbedder:
    """Embeds rows by the tokens of their prompts."""

    model = None
    column = None

    def __init__(self) -> None:
        """Raises `ConfigError` where scikit-learn is not installed."""
        self.identity = {"embedder": "tokens", "dimensions": _DIMENSIONS, "fitted_on": _FITTED_ON, "version": 1}
        try:
            import sklearn  # noqa: F401, PLC0415 - asked for before any work is done
        except ModuleNotFoundError:
            raise ConfigError(
                "embedder tokens needs scikit-learn: pip install 'tightpack[related]' (or give vectors of your own with"
                " --set embedder=column)"
            ) from None

    def fit(self, splits: Sequence[SplitRows], engine: LocalEngine) -> Arrays:
        """Learn the row of each token from a sample: token -> its weight times its part in each dimension."""
        tokens, offsets = _sampled_prompts(splits, engine)
        known, columns = np.unique(tokens, return_inverse=True)
        num_dimensions = min(_DIMENSIONS, len(known) - 1, len(offsets) - 2)
        if num_dimensions < 2:
            # Too little to tell anything apart: each token for itself, as far as there is room.
            table = np.eye(len(known), _DIMENSIONS, dtype=np.float32)
        else:
            table = _decomposed(columns, offsets, len(known), num_dimensions)
        return {"known": known.astype(np.int32), "table": table}

    def embed(self, split: SplitRows, start: int, stop: int, fitted: Arrays) -> Int16Array:
        """Embed the prompts of some rows; some 280,000 a second on one core."""
        tokens, offsets = prompts(split.read(start, stop), np.arange(stop - start))
        return quantise(sum_of_rows(tokens, offsets, fitted["known"], fitted["table"]))


def _sampled_prompts(splits: Sequence[SplitRows], engine: LocalEngine) -> tuple[Int32Array, Int64Array]:
    """Prompts of a sample of all rows, in their order."""
    firsts = np.cumsum([0, *(split.num_rows for split in splits)])
    drawn = np.sort(Draws("embedder=tokens/fit").sample(int(firsts[-1]), _FITTED_ON))
    tasks: list[tuple[SplitRows, int, int, Int64Array]] = []
    for split, first in zip(splits, firsts, strict=False):
        for start in range(0, split.num_rows, _FITTED_AT_ONCE):
            stop = min(start + _FITTED_AT_ONCE, split.num_rows)
            begin, end = np.searchsorted(drawn, [first + start, first + stop])
            if end > begin:
                tasks.append((split, start, stop, drawn[begin:end] - first - start))
    read = list(engine.map(lambda task: prompts(task[0].read(task[1], task[2]), task[3]), tasks))
    lengths = [np.diff(offsets) for _, offsets in read]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))])
    return np.concatenate([np.empty(0, np.int32), *(tokens for tokens, _ in read)]), offsets


def _decomposed(columns: Int64Array, offsets: Int64Array, num_known: int, num_dimensions: int) -> Float32Array:
    """The table of a sample's prompts, made on one thread, so that their number changes nothing.

    columns: the prompts' tokens, numbered by the tokens known.
    # shape: (num_known, num_dimensions)
    """
    from scipy.sparse import csr_matrix  # noqa: PLC0415 - only for this embedder
    from sklearn.decomposition import TruncatedSVD  # noqa: PLC0415
    from sklearn.feature_extraction.text import TfidfTransformer  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    with threadpool_limits(1):
        counts = csr_matrix((np.ones(len(columns), np.float32), columns, offsets), (len(offsets) - 1, num_known))
        counts.sum_duplicates()
        weighting = TfidfTransformer()
        weighted = weighting.fit_transform(counts)
        decomposition = TruncatedSVD(num_dimensions, n_iter=_ROUNDS, random_state=0).fit(weighted)
    table: Float32Array = (weighting.idf_ * decomposition.components_).T.astype(np.float32)
    return np.ascontiguousarray(table)
