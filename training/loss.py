"""The loss of packed tokens: summed over targets, each with its weight, and divided once, by all their weights.

Averaging per pack, per micro-batch or per rank would weight samples by the company they are in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.format.labels import IGNORE


def targets_of(batch: Mapping[str, Any]) -> Tensor:
    """Where in the row the targets stand; waits for the device that the batch is on.  # shape: (num_targets,)

    The first token is none, whatever its label: nothing predicts it.
    """
    following: Tensor = batch["labels"][0, 1:] != IGNORE
    return following.nonzero()[:, 0] + 1


def target_losses(logits: Tensor, batch: Mapping[str, Any], targets: Tensor) -> Tensor:
    """Cross-entropy of each target, given what stands before it.  # shape: (num_targets,)

    logits: of the tokens before the targets, or of all.  # shape: (1, num_targets or num_tokens, vocabulary)
    """
    logits, labels = logits.flatten(0, 1).float(), batch["labels"][0]
    if len(logits) == len(targets):
        return functional.cross_entropy(logits, labels[targets], reduction="none")
    # Labels are shifted, not logits: the gradient of a slice of those would fill as much memory once more.
    following = functional.pad(labels[1:], (0, 1), value=IGNORE)
    return functional.cross_entropy(logits, following, ignore_index=IGNORE, reduction="none")[targets - 1]


def target_weights(batch: Mapping[str, Any], targets: Tensor) -> Tensor:
    """What each target's loss counts.  # shape: (num_targets,)

    `loss_weights` where the collator gave them: 1 / targets of its segment, for the mean over samples. Otherwise 1, for
    the mean over tokens.
    """
    if "loss_weights" not in batch:
        return torch.ones(len(targets), device=targets.device)
    weights: Tensor = batch["loss_weights"][0, targets]
    return weights
