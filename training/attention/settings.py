"""What a model may want of attention, and what is said where a backend cannot do it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipeline.base.errors import CheckError

UNLIMITED = (-1, -1)
"""A window without ends: all tokens to the left and right are seen."""


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """What attention is besides queries, keys, values and segments."""

    dropout: float = 0.0
    """Probability that a weight is dropped."""

    scale: float | None = None
    """What scores are multiplied by; 1 / sqrt(head_dim) by default."""

    causal: bool = True
    """Whether tokens see only themselves and what stands before them in their segment."""

    window_size: tuple[int, int] = UNLIMITED
    """Tokens to the left and right that are seen, -1 for all."""

    softcap: float = 0.0
    """Scores become softcap * tanh(score / softcap); 0 leaves them."""

    sinks: Tensor | None = None
    """A score of each head that takes part in the softmax without a value.  # shape: (num_heads,)"""


class UnsupportedAttentionError(CheckError, ValueError):
    """Something that a model wants of attention and that the backend cannot do. It is never left out silently."""
