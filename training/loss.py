"""The loss of packed tokens: summed over targets, each with its weight, and divided once, by all their weights.

Averaging per pack, per micro-batch or per rank would weight samples by the company they are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from training.collator import IGNORE


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each token that is a target, given what stands before it; 0 elsewhere.  # shape: (num_tokens,)

    logits: # shape: (1, num_tokens, vocabulary)
    labels: at the place of the token they name, not shifted.  # shape: (1, num_tokens)
    """
    # Labels are shifted, not logits: the gradient of a slice of those would fill as much memory once more.
    following = functional.pad(labels[0, 1:], (0, 1), value=IGNORE)
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), following, ignore_index=IGNORE, reduction="none")
    return functional.pad(losses[:-1], (1, 0))


def target_weights(batch: Mapping[str, Any]) -> Tensor:
    """What each token's loss counts.  # shape: (num_tokens,)

    `loss_weights` where the collator gave them: 1 / targets of its segment, for the mean over samples. Otherwise 1 for
    targets, for the mean over tokens.
    """
    weights: Tensor = batch["loss_weights"][0] if "loss_weights" in batch else (batch["labels"][0] != IGNORE).float()
    return functional.pad(weights[1:], (1, 0))  # nothing predicts the first token
