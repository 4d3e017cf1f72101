"""Is training on packs the same as training on the samples one by one? Measured on the user's shards and model.

Each segment runs alone, with the model's own attention, and the packs run as they are trained. The losses of all
targets and the gradient of their mean are compared. In float32 they have to agree but for rounding; in the precision of
training they may differ as much as that precision itself changes the samples that run alone, which is measured too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.attention.interface import attention_alone, model_inputs, use_backend
from training.collator import PackedCollator
from training.loss import target_losses, targets_of
from training.step import precision, to_device

MOST_LOSS = 1e-5
"""Difference of a token's loss in float32, for losses up to 1; relative to larger ones."""

MOST_GRADIENT = 1e-4
"""Norm of the difference of gradients in float32, relative to the gradient."""

MOST_TIMES_ROUNDING = 2.0
"""In lower precision: difference relative to what that precision changes in samples that run alone."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Packs against samples one by one, in one precision."""

    dtype: str
    backend: str
    targets: int
    loss: float
    """Mean over targets, of the packs."""

    max_difference: float
    mean_difference: float
    """Largest and mean difference of a target's loss, in nats."""

    gradient_difference: float
    """Norm of the difference, as a part of the gradient's norm."""

    most_loss: float
    most_gradient: float
    """What max_difference and gradient_difference may be."""

    agrees: bool


@dataclass(frozen=True)
class _Pass:
    losses: Tensor
    """The loss of every target.  # shape: (num_targets,)"""

    gradients: list[Tensor]
    """The gradients of the mean loss, on the CPU."""


def parity(
    model: PreTrainedModel,
    packs: Sequence[Mapping[str, Any]],
    backend: str,
    *,
    dtype: torch.dtype | None = None,
) -> list[Parity]:
    """Compare in float32 and, by autocast, in `dtype`; the model has float32 parameters and is in eval mode.

    packs: rows of packed shards; memory is that of one pack's forward and backward, and two gradients.
    backend: for `dtype`; in float32, which kernels do not have, the reference computes.
    """
    alone = _alone(model, packs, None)
    comparisons = [_compared(alone, _packed(model, packs, "sdpa", None), "float32", "sdpa", None)]
    if dtype is not None and dtype != torch.float32:
        rounded = _alone(model, packs, dtype)
        name = str(dtype).removeprefix("torch.")
        comparisons.append(_compared(rounded, _packed(model, packs, backend, dtype), name, backend, alone))
    return comparisons


def _compared(alone: _Pass, packed: _Pass, dtype: str, backend: str, exact: _Pass | None) -> Parity:
    difference = (packed.losses - alone.losses).abs()
    gradient_difference = _distance(packed.gradients, alone.gradients)
    if exact is None:
        most_loss = MOST_LOSS * max(1.0, float(alone.losses.max()))
        most_gradient = MOST_GRADIENT
    else:
        most_loss = MOST_TIMES_ROUNDING * float((alone.losses - exact.losses).abs().max())
        most_gradient = MOST_TIMES_ROUNDING * _distance(alone.gradients, exact.gradients)
    most = float(difference.max())
    return Parity(
        dtype=dtype,
        backend=backend,
        targets=len(difference),
        loss=float(packed.losses.mean()),
        max_difference=most,
        mean_difference=float(difference.mean()),
        gradient_difference=gradient_difference,
        most_loss=most_loss,
        most_gradient=most_gradient,
        agrees=most <= most_loss and gradient_difference <= most_gradient,
    )


def _distance(gradients: list[Tensor], others: list[Tensor]) -> float:
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(gradients, others, strict=True))
    size = sum(float(each.double().square().sum()) for each in others)
    return float((difference / size) ** 0.5) if size else 0.0


def _packed(
    model: PreTrainedModel, packs: Sequence[Mapping[str, Any]], backend: str, dtype: torch.dtype | None
) -> _Pass:
    own = model.config._attn_implementation
    collate = PackedCollator(seq_idx=True)
    use_backend(model, backend)
    try:
        return _run(model, [collate([pack]) for pack in packs], dtype, as_trained=True)
    finally:
        model.set_attn_implementation(own)


def _alone(model: PreTrainedModel, packs: Sequence[Mapping[str, Any]], dtype: torch.dtype | None) -> _Pass:
    collate = PackedCollator()
    batches = []
    for pack in packs:
        for begin, end in pairwise(pack["boundaries"]):
            columns = {name: pack[name][begin:end] for name in ("input_ids", "labels", "position_ids")}
            batches.append(collate([{**columns, "boundaries": [0, end - begin]}]))
    with attention_alone(model):
        return _run(model, batches, dtype, as_trained=False)


def _run(
    model: PreTrainedModel, batches: list[dict[str, Any]], dtype: torch.dtype | None, *, as_trained: bool
) -> _Pass:
    """as_trained: with all that `train_step` gives the model, else with tokens and positions alone."""
    device = next(model.parameters()).device
    num_targets = sum(len(targets_of(batch)) for batch in batches)
    losses: list[Tensor] = []
    model.zero_grad(set_to_none=True)
    for cpu_batch in batches:
        batch, targets = to_device(cpu_batch, device), targets_of(cpu_batch).to(device)
        plain = {name: batch[name] for name in ("input_ids", "position_ids")}
        with precision(device, dtype):
            logits = model(
                **model_inputs(model, {**batch, "logits_to_keep": targets - 1} if as_trained else plain)
            ).logits
        each = target_losses(logits, batch, targets)
        (each.sum() / num_targets).backward()
        losses.append(each.detach().cpu())
    gradients = [each.grad.cpu() for each in model.parameters() if each.grad is not None]
    model.zero_grad(set_to_none=True)
    return _Pass(torch.cat(losses), gradients)
