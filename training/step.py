"""One optimizer step on packs: micro-batches, ranks and precisions, and a loss that does not depend on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from training.attention.interface import model_inputs
from training.loss import target_losses, target_weights, targets_of

Batch = Mapping[str, Any]
"""What `PackedCollator` returns."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did. Tensors, so that nobody waits for the device who does not look."""

    loss: Tensor
    """Mean over the targets, or over the samples, of all micro-batches on all ranks.  # shape: ()"""

    weight: Tensor
    """What the loss was divided by: targets, or samples that have any, on all ranks.  # shape: ()"""

    grad_norm: Tensor
    """Norm of the gradient before clipping.  # shape: ()"""


def train_step(
    model: nn.Module,
    batch: Batch | Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    max_grad_norm: float | None = 1.0,
    autocast: torch.dtype | None = None,
) -> StepResult:
    """Accumulate the gradients of one or several micro-batches, and step.

    model: of transformers, perhaps compiled or in DistributedDataParallel; its attention set by `use_backend`.
    batch: from `PackedCollator`, on any device. With its `sample_mean` the loss is the mean over samples.
    autocast: precision of the forward pass where it is not that of the parameters.

    The loss and its gradient are the same for every split of the packs over micro-batches and ranks: losses are summed
    and divided once by the global weight. A step without any target has a loss of 0 and changes no weights. Logits are
    computed for targets alone, if the model can do that and is not compiled. A batch that comes on the CPU spares
    waiting for the device.

    Raises `ValueError` for no batch, or batches of which some have weights for the mean over samples.
    """
    batches = [batch] if isinstance(batch, Mapping) else list(batch)
    if len({"loss_weights" in each for each in batches}) != 1:
        raise ValueError("a step takes batches of one kind: all with sample_mean, or none" if batches else "no batch")
    device = next(model.parameters()).device
    targets = [targets_of(each).to(device, non_blocking=True) for each in batches]
    batches = [to_device(each, device) for each in batches]
    weights = [target_weights(each, at) for each, at in zip(batches, targets, strict=True)]
    weight = torch.stack([each.double().sum() for each in weights]).sum()
    num_ranks = 1
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(weight)
        num_ranks = distributed.get_world_size()
    divisor = weight.clamp(min=torch.finfo(torch.float32).tiny)

    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, (each, at) in enumerate(zip(batches, targets, strict=True)):
        with _synchronised(model, number == len(batches) - 1):
            with precision(device, autocast):
                logits = model(**model_inputs(model, {**each, "logits_to_keep": at - 1})).logits
            loss = torch.dot(target_losses(logits, each, at), weights[number])
            # DistributedDataParallel divides gradients by the number of ranks.
            (loss * (num_ranks / divisor)).backward()
        total += loss.detach()
    if num_ranks > 1:
        distributed.all_reduce(total)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or float("inf"))
    if any(len(at) for at in targets) or float(weight) > 0:
        optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return StepResult(loss=total / divisor, weight=weight, grad_norm=grad_norm)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Precision of the forward pass: float32, bfloat16, or auto, which is bfloat16 on a GPU; None for float32."""
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and device.type == "cuda") else None


def precision(device: torch.device, autocast: torch.dtype | None) -> AbstractContextManager[Any]:
    """Compute in a precision, or in that of the parameters."""
    return nullcontext() if autocast is None else torch.autocast(device.type, autocast)


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device, without waiting for them; lengths stay Python ints."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _synchronised(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients once a step, with the last micro-batch."""
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.parallel.DistributedDataParallel) and not is_last:
        exchanged_later: AbstractContextManager[None] = inner.no_sync()
        return exchanged_later
    return nullcontext()
