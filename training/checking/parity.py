"""Is training on packs the same as training on the samples one by one? Measured on the user's shards and model.

Each segment runs alone, with the model's own attention, and the packs run as they are trained. The losses of all
targets and the gradient of their mean are compared. In float32 they have to agree but for rounding. In the precision of
training both are compared with float32, and packs may be off by about as much as samples that run alone are. A router
that chooses another expert for a last bit changes a few losses a lot, and the gradient several times as much as
rounding does; so losses are judged by their upper quartile there, the gradient's bound is wide, and what trains besides
the reference, the kernels, is compared with it call by call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from training.attention.interface import attention_alone, model_inputs, use_backend
from training.checking.exact import exact_float32
from training.checking.kernels import MOST_KERNEL, compared_with_reference
from training.checking.refusals import refusals_told
from training.collator import PackedCollator
from training.loss import target_losses, targets_of
from training.plan import precision, to_device

MOST_LOSS = 1e-5
"""Difference of a token's loss in float32, for losses up to 1; relative to larger ones."""

MOST_GRADIENT = 1e-4
"""Norm of the difference of gradients in float32, relative to the gradient."""

MOST_TIMES_ROUNDING = 3.0
MOST_TIMES_ROUNDING_OF_GRADIENT = 10.0
"""In lower precision: difference to float32 relative to that of samples that run alone. Over 64 tiny models of all
kinds, with three seeds, it is 1.9 at most, and 4.6; a leak's is 50 and more."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Packs against samples one by one, in one precision."""

    dtype: str
    backend: str
    targets: int
    loss: float
    """Mean over targets, of the packs."""

    max_difference: float
    """Largest difference of a target's loss to that of its sample alone, in nats."""

    loss_difference: float
    """What is judged: that, in float32; the upper quartile of differences to float32, in lower precision."""

    gradient_difference: float
    """Norm of the difference, as a part of the gradient's norm; to float32, in lower precision."""

    kernel_difference: float | None
    """Largest error of the backend's kernel, forward or backward, relative to the result; None of the reference."""

    most_loss: float
    most_gradient: float
    """What loss_difference and gradient_difference may be."""

    agrees: bool


@dataclass(frozen=True)
class _Pass:
    losses: Tensor
    """The loss of every target.  # shape: (num_targets,)"""

    gradients: list[Tensor]
    """The gradients of the mean loss, on the CPU."""

    kernel: float | None = None


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
    with exact_float32():
        alone = _alone(model, packs, None)
        comparisons = [_compared(alone, _packed(model, packs, "sdpa", None), "float32", "sdpa", None)]
    if dtype is not None and dtype != torch.float32:
        rounded = _alone(model, packs, dtype)
        name = str(dtype).removeprefix("torch.")
        comparisons.append(_compared(rounded, _packed(model, packs, backend, dtype), name, backend, alone))
    return comparisons


def _compared(alone: _Pass, packed: _Pass, dtype: str, backend: str, exact: _Pass | None) -> Parity:
    most = float((packed.losses - alone.losses).abs().max())
    if exact is None:
        loss, most_loss = most, MOST_LOSS * max(1.0, float(alone.losses.max()))
        gradient, most_gradient = _distance(packed.gradients, alone.gradients), MOST_GRADIENT
    else:
        loss, rounding = (_quartile(each.losses - exact.losses) for each in (packed, alone))
        gradient, of_gradient = (_distance(each.gradients, exact.gradients) for each in (packed, alone))
        most_loss, most_gradient = MOST_TIMES_ROUNDING * rounding, MOST_TIMES_ROUNDING_OF_GRADIENT * of_gradient
    kernel_agrees = packed.kernel is None or packed.kernel <= MOST_KERNEL
    return Parity(
        dtype=dtype,
        backend=backend,
        targets=len(packed.losses),
        loss=float(packed.losses.mean()),
        max_difference=most,
        loss_difference=loss,
        gradient_difference=gradient,
        kernel_difference=packed.kernel,
        most_loss=most_loss,
        most_gradient=most_gradient,
        agrees=loss <= most_loss and gradient <= most_gradient and kernel_agrees,
    )


def _quartile(differences: Tensor) -> float:
    """Three of four are smaller. A copy is sorted: `quantile` takes 16 million values at most."""
    return float(differences.abs().sort().values[3 * (len(differences) - 1) // 4])


def _distance(gradients: list[Tensor], others: list[Tensor]) -> float:
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(gradients, others, strict=True))
    size = sum(float(each.double().square().sum()) for each in others)
    return float((difference / size) ** 0.5) if size else 0.0


def _packed(
    model: PreTrainedModel, packs: Sequence[Mapping[str, Any]], backend: str, dtype: torch.dtype | None
) -> _Pass:
    own = model.config._attn_implementation
    collate = PackedCollator(seq_idx=True)
    batches = [collate([pack]) for pack in packs]
    if backend != "sdpa":
        with compared_with_reference(model, backend) as errors:
            found = _run(model, batches, dtype, as_trained=True)
        return replace(found, kernel=max(errors.values(), default=None))
    use_backend(model, backend)
    try:
        return _run(model, batches, dtype, as_trained=True)
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
        with refusals_told(model), precision(device, dtype):
            logits = model(
                **model_inputs(model, {**batch, "logits_to_keep": targets - 1} if as_trained else plain)
            ).logits
        each = target_losses(logits, batch, targets)
        (each.sum() / num_targets).backward()
        losses.append(each.detach().cpu())
    gradients = [each.grad.cpu() for each in model.parameters() if each.grad is not None]
    model.zero_grad(set_to_none=True)
    return _Pass(torch.cat(losses), gradients)
