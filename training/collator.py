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
from training.loss import targets_of
from training.shapes import Shape

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = "Sequence[Mapping[str, Any]] | Sequence[pa.Table] | pa.Table | pa.RecordBatch | Mapping[str, Any]"
"""Packs: mappings of columns (lists, arrays or tensors), one-row tables, one table, or one mapping of columns that hold
a list of packs each, as a slice of a dataset is."""

ATTENTIONS = ("isolated", "joint")


@dataclass(frozen=True, kw_only=True)
class PackedCollator:
    """Collates packs; a `data_collator` for Hugging Face's `Trainer`, a `collate_fn` for a plain `DataLoader`.

    Takes rows (mappings of columns, or one-row tables), one table, or a slice of a dataset (a mapping of columns, each
    with a list of packs). Returns a mapping with

    - input_ids, labels, position_ids: int64.  # shape: (1, num_tokens)
    - cu_seq_lens_q, cu_seq_lens_k: int32, where segments begin, and the end; one tensor.  # shape: (num_segments + 1,)
    - max_length_q, max_length_k: Python ints, the longest segment.

    The first token of a segment is never a target, whatever its label: it would be predicted from another sample.

    Raises `ValueError` for packs that do not fit `pad_to`, `max_length`, `max_segments` or `max_targets`, or that lack
    a column.
    """

    attention: str = "isolated"
    """isolated: samples never see each other. joint: a pack is one segment, and positions run on through it."""

    sample_mean: bool = False
    """Add loss_weights (float32, shape (1, num_tokens)): 1 / targets of its segment for each target, else 0; so that
    their sum is the number of segments that have targets. For `train_step`; other loops have to apply them."""

    targets: bool = False
    """Add targets (int64, shape (num_targets,)): where in the row the targets stand. For `train_step`, which finds them
    itself otherwise; so they are found ahead, and pinned where the loader pins."""

    pad_to: int | None = None
    """Tokens of every row, for static shapes: what is missing is segments of their own, not trained."""

    max_length: int | None = None
    """With `pad_to`: what max_length_q says of every row, and so the most tokens that a segment may have; padding is
    cut into pieces of so many. By default `pad_to`. Kernels launch blocks for it in every segment, needed or not."""

    max_segments: int | None = None
    """With `pad_to`: segments of every row at most, padding included; boundaries are filled up by repeating the last.
    By default `pad_to`."""

    shapes: Sequence[Shape] = ()
    """With `pad_to`, instead of `max_length` and `max_segments`: several, see `choose_shapes`. A row takes the first
    whose `max_length` is not exceeded; a model is compiled once for each."""

    max_targets: int | None = None
    """With `pad_to`: targets of every row at most; adds targets as above, filled up to so many with 0, where nothing
    can be a target. A compiled model then computes logits of targets alone."""

    pad_token_id: int = 0
    """Any valid id: padding is not trained, and nothing sees it."""

    seq_idx: bool = False
    """Add seq_idx (int32, shape (1, num_tokens)): the number of each token's segment, which some hybrid models need."""

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention must be isolated or joint, not {self.attention!r}")
        for name in ("pad_to", "max_length", "max_segments", "max_targets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("max_length", "max_segments", "shapes", "max_targets"):
            if self.pad_to is None and getattr(self, name):
                raise ValueError(f"{name} has no effect without pad_to")
        if self.pad_to is not None and self.max_targets is not None and self.max_targets >= self.pad_to:
            raise ValueError(
                f"max_targets={self.max_targets} is no less than pad_to: the first token is never a target"
            )
        if self.shapes and (self.max_length or self.max_segments):
            raise ValueError("shapes stand instead of max_length and max_segments, not beside them")

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
        sample_starts = packs.segment_starts(pack_offsets)
        starts = pack_offsets[:-1] if self.attention == "joint" else sample_starts
        longest = int(np.diff(starts, append=num_tokens).max(initial=1))
        shape = self._shape(longest)
        padding = np.arange(num_tokens, size, size if shape is None else shape.max_length)
        boundaries = np.concatenate([starts, padding, [size]]).astype(np.int64)
        segments = np.diff(boundaries)
        labels = _row(packs.values("labels"), size, num_tokens, IGNORE)
        labels[0, sample_starts] = IGNORE
        batch: dict[str, Any] = {
            "input_ids": _row(packs.values("input_ids"), size, num_tokens, self.pad_token_id),
            "labels": labels,
            "position_ids": self._positions(packs, starts, size, num_tokens),
        }
        # Models may have no more positions than the longest segment.
        batch["position_ids"][0, num_tokens:] = torch.arange(size - num_tokens) % longest
        if self.sample_mean:
            batch["loss_weights"] = torch.from_numpy(_weights(labels.numpy()[0], sample_starts))[None]
        if self.targets or self.max_targets is not None:
            batch["targets"] = self._targets(targets_of(batch))
        if self.seq_idx:
            batch["seq_idx"] = torch.from_numpy(np.repeat(np.arange(len(segments), dtype=np.int32), segments))[None]
        if shape is not None:
            if len(segments) > shape.max_segments:
                raise ValueError(
                    f"{len(segments)} segments, padding included, are more than max_segments={shape.max_segments}"
                )
            boundaries = np.pad(boundaries, (0, shape.max_segments + 1 - len(boundaries)), mode="edge")
        cu_seq_lens = torch.from_numpy(boundaries.astype(np.int32))
        for side in ("q", "k"):
            batch[f"cu_seq_lens_{side}"] = cu_seq_lens
            batch[f"max_length_{side}"] = longest if shape is None else shape.max_length
        return batch

    def _shape(self, longest: int) -> Shape | None:
        """The shape of a row; None where shapes are not static. Raises `ValueError` for a segment that fits none."""
        if self.pad_to is None:
            return None
        shapes = self.shapes or [Shape(self.max_length or self.pad_to, self.max_segments or self.pad_to)]
        for shape in shapes:
            if longest <= shape.max_length:
                return shape
        raise ValueError(f"a segment of {longest} tokens is longer than max_length={shapes[-1].max_length}")

    def _positions(self, packs: _Packs, starts: npt.NDArray[np.int64], size: int, num_tokens: int) -> torch.Tensor:
        if self.attention == "isolated":
            return _row(packs.values("position_ids"), size, num_tokens, 0)
        positions = np.arange(num_tokens) - np.repeat(starts, np.diff(starts, append=num_tokens))
        return _row([positions], size, num_tokens, 0)

    def _targets(self, found: torch.Tensor) -> torch.Tensor:
        if self.max_targets is None:
            return found
        if len(found) > self.max_targets:
            raise ValueError(f"{len(found)} targets are more than max_targets={self.max_targets}")
        return torch.nn.functional.pad(found, (0, self.max_targets - len(found)))


class _Packs:
    """The columns of some packs, pack after pack, whatever they came as."""

    def __init__(self, rows: Rows) -> None:
        self._slice = rows if isinstance(rows, Mapping) else None
        self._rows: Sequence[Any] = [rows] if _is_arrow(rows) else rows  # type: ignore[assignment]
        strange = next((each for each in self._rows if not (_is_arrow(each) or isinstance(each, Mapping))), None)
        if self._slice is None and strange is not None:
            raise ValueError(
                "packs are rows (mappings of columns), a slice of a dataset or an Arrow table, not"
                f" {type(rows).__name__} of {type(strange).__name__}"
            )
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
                columns = [row[name] for row in self._rows] if self._slice is None else self._of_slice(name)
            except KeyError:
                raise ValueError(
                    f"packs need a column {name!r}; was it removed? (Trainer: remove_unused_columns=False)"
                ) from None
            if len(columns) and _is_arrow(columns[0]):
                chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
                values = [chunk.flatten().to_numpy() for chunk in chunks]
                lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks])
            else:
                values = [np.asarray(column) for column in columns]
                lengths = np.array([len(each) for each in values])
            self._read[name] = values, lengths.astype(np.int64)
        return self._read[name]

    def _of_slice(self, name: str) -> Sequence[Any]:
        assert self._slice is not None
        column: Sequence[Any] = self._slice[name]
        return [column] if len(column) and np.ndim(column[0]) == 0 else column  # one pack, as `packs[0]` gives it


def _is_arrow(value: Any) -> bool:
    """Told without importing pyarrow, which training on rows of other kinds does not need."""
    return type(value).__module__.partition(".")[0] == "pyarrow"


def _row(pieces: list[npt.NDArray[Any]], size: int, num_tokens: int, filling: int) -> torch.Tensor:
    """Values end to end as one row of int64, filled up.  # shape: (1, size)"""
    row = np.empty((1, size), np.int64)
    np.concatenate(pieces, out=row[0, :num_tokens])
    row[0, num_tokens:] = filling
    return torch.from_numpy(row)


def _weights(labels: npt.NDArray[np.int64], sample_starts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """1 / targets of its segment, for each target; 0 elsewhere.  # shape: (num_tokens,)"""
    is_target = labels != IGNORE
    counts = np.add.reduceat(is_target, sample_starts, dtype=np.int64)
    each = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    weights: npt.NDArray[np.float32] = np.repeat(each, np.diff(sample_starts, append=len(labels))).astype(np.float32)
    weights[~is_target] = 0
    return weights
