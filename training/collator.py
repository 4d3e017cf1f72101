"""From packs to the tensors of a training step.

Any number of packs become one row of tokens, [1, ΣT], with the boundaries of its segments as FlashAttention wants
them. They are stored with the packs, so nothing is searched for and no device is waited for. There is never an
attention mask: an all-ones mask makes transformers ignore where segments begin, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from pipeline.format.labels import IGNORE

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = "Sequence[Mapping[str, Any]] | Sequence[pa.Table] | pa.Table | pa.RecordBatch"
"""Packs: mappings of columns (lists, arrays or tensors), one-row tables, or one table."""

ATTENTIONS = ("isolated", "joint")


@dataclass(frozen=True, kw_only=True)
class PackedCollator:
    """Collates packs; a `data_collator` for Hugging Face's `Trainer`, a `collate_fn` for a plain `DataLoader`.

    Returns a mapping with

    - input_ids, labels, position_ids: int64.  # shape: (1, num_tokens)
    - cu_seq_lens_q, cu_seq_lens_k: int32, where segments begin, and the end.  # shape: (num_segments + 1,)
    - max_length_q, max_length_k: Python ints, the longest segment.

    Raises `ValueError` for packs that do not fit `pad_to` or `max_segments`, or that lack a column.
    """

    attention: str = "isolated"
    """isolated: samples never see each other. joint: a pack is one segment, and positions run on through it."""

    sample_mean: bool = False
    """Add loss_weights (float32, shape (1, num_tokens)): 1 / targets of its segment for each target, else 0; so that
    their sum is the number of segments that have targets. For `train_step`; other loops have to apply them."""

    pad_to: int | None = None
    """Tokens of every row, for static shapes: what is missing is a segment of its own, not trained."""

    max_segments: int | None = None
    """With `pad_to`: segments of every row at most, padding included; boundaries are filled up by repeating the last.
    By default `pad_to`."""

    pad_token_id: int = 0
    """Any valid id: padding is not trained, and nothing sees it."""

    seq_idx: bool = False
    """Add seq_idx (int32, shape (1, num_tokens)): the number of each token's segment, which some hybrid models need."""

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be isolated or joint, not {self.attention!r}")
        if self.max_segments is not None and self.pad_to is None:
            raise ValueError("max_segments has no effect without pad_to")
        if self.pad_to is not None and self.pad_to < 1:
            raise ValueError(f"pad_to must be at least 1, not {self.pad_to}")

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Lay packs end to end. O(num_tokens)."""
        packs = _Packs(rows)
        lengths = packs.lengths("input_ids")
        if len(lengths) == 0:
            raise ValueError("a batch of no packs")
        pack_offsets = np.concatenate([[0], np.cumsum(lengths)])
        num_tokens = int(pack_offsets[-1])
        size = num_tokens if self.pad_to is None else self.pad_to
        if num_tokens > size:
            raise ValueError(f"{len(lengths)} packs of {num_tokens} tokens do not fit pad_to={size}")
        starts = pack_offsets[:-1] if self.attention == "joint" else packs.segment_starts(pack_offsets)
        boundaries = np.concatenate([starts, [num_tokens], [size] if size > num_tokens else []]).astype(np.int64)
        segments = np.diff(boundaries)
        batch: dict[str, Any] = {
            "input_ids": _row(packs.values("input_ids"), size, num_tokens, self.pad_token_id),
            "labels": _row(packs.values("labels"), size, num_tokens, IGNORE),
            "position_ids": self._positions(packs, boundaries, size, num_tokens),
        }
        if self.sample_mean:
            batch["loss_weights"] = torch.from_numpy(_weights(packs, batch["labels"].numpy()[0], pack_offsets))[None]
        if self.seq_idx:
            batch["seq_idx"] = torch.from_numpy(np.repeat(np.arange(len(segments), dtype=np.int32), segments))[None]
        if self.pad_to is not None:
            most = self.max_segments or self.pad_to
            if len(segments) > most:
                raise ValueError(f"{len(segments)} segments, padding included, are more than max_segments={most}")
            boundaries = np.pad(boundaries, (0, most + 1 - len(boundaries)), mode="edge")
        longest = self.pad_to or int(segments.max(initial=0))
        for side in ("q", "k"):
            batch[f"cu_seq_lens_{side}"] = torch.from_numpy(boundaries.astype(np.int32))
            batch[f"max_length_{side}"] = longest
        return batch

    def _positions(self, packs: _Packs, boundaries: npt.NDArray[np.int64], size: int, num_tokens: int) -> torch.Tensor:
        if self.attention == "isolated":
            positions = _row(packs.values("position_ids"), size, num_tokens, 0)
        else:
            starts = np.repeat(boundaries[:-1], np.diff(boundaries))
            positions = torch.from_numpy(np.arange(size) - starts)[None]
        # Models may have no more positions than the longest segment.
        longest = int(np.diff(boundaries[boundaries <= num_tokens]).max(initial=1))
        positions[0, num_tokens:] = torch.arange(size - num_tokens) % longest
        return positions


class _Packs:
    """The columns of some packs, pack after pack, whatever they came as."""

    def __init__(self, rows: Rows) -> None:
        self._rows: Sequence[Any] = [rows] if _is_arrow(rows) else rows
        self._read: dict[str, tuple[list[npt.NDArray[Any]], npt.NDArray[np.int64]]] = {}

    def values(self, name: str) -> list[npt.NDArray[Any]]:
        """The values of a column, in pieces."""
        return self._column(name)[0]

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """Values of a column in each pack.  # shape: (num_packs,)"""
        return self._column(name)[1]

    def segment_starts(self, pack_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """First token of each segment, from the stored boundaries.  # shape: (num_segments,)"""
        boundaries, counts = np.concatenate(self.values("boundaries")), self.lengths("boundaries")
        starts = boundaries + np.repeat(pack_offsets[:-1], counts)
        return np.delete(starts, np.cumsum(counts) - 1)  # the last of each pack is where the next one begins

    def _column(self, name: str) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.int64]]:
        if name not in self._read:
            try:
                columns = [row[name] for row in self._rows]
            except KeyError:
                raise ValueError(
                    f"packs need a column {name!r}; was it removed? (Trainer: remove_unused_columns=False)"
                ) from None
            if columns and _is_arrow(columns[0]):
                chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
                values = [chunk.flatten().to_numpy() for chunk in chunks]
                lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
            else:
                values = [np.asarray(column) for column in columns]
                lengths = np.array([len(each) for each in values])
            self._read[name] = values, lengths.astype(np.int64)
        return self._read[name]


def _is_arrow(value: Any) -> bool:
    """Told without importing pyarrow, which training on rows of other kinds does not need."""
    return type(value).__module__.partition(".")[0] == "pyarrow"


def _row(pieces: list[npt.NDArray[Any]], size: int, num_tokens: int, filling: int) -> torch.Tensor:
    """Values end to end as one row of int64, filled up.  # shape: (1, size)"""
    row = np.empty((1, size), np.int64)
    np.concatenate(pieces, out=row[0, :num_tokens])
    row[0, num_tokens:] = filling
    return torch.from_numpy(row)


def _weights(
    packs: _Packs, labels: npt.NDArray[np.int64], pack_offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """1 / targets of its segment, for each target; 0 elsewhere.  # shape: (num_tokens,)"""
    num_tokens = int(pack_offsets[-1])
    counts = np.concatenate(packs.values("target_counts"))
    ends = np.append(packs.segment_starts(pack_offsets)[1:], num_tokens)
    each = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    weights = np.zeros(len(labels), np.float32)
    weights[:num_tokens] = np.repeat(each, np.diff(np.concatenate([[0], ends])))
    weights[labels == IGNORE] = 0
    return weights
