"""One optimizer step on packs: micro-batches, ranks and precisions, and a loss that does not depend on them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from training.attention.backends import HALVES
from training.plan import Batch, Group, accumulate, loss_sum, plan_step, scale

_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models of whose precision was warned."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did. Tensors, so that nobody waits for the device who does not look."""

    loss: Tensor
    """Mean over the targets, or over the samples, of all micro-batches on all ranks.  # shape: ()"""

    weight: Tensor
    """What the loss was divided by: targets, or samples that have any, on all ranks.  # shape: ()"""

    grad_norm: Tensor
    """Norm of the gradient before clipping.  # shape: ()"""

    skipped: Tensor
    """Whether the step was not taken, because the gradient is infinite or no number (bool).  # shape: ()"""


def train_step(
    model: nn.Module,
    batch: Batch | Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    max_grad_norm: float | None = 1.0,
    autocast: torch.dtype | None = None,
    group: Group | None = None,
) -> StepResult:
    """Accumulate the gradients of one or several micro-batches, and step.

    model: of transformers, perhaps compiled, or in DistributedDataParallel or FSDP2; attention set by `use_backend`.
    batch: from `PackedCollator`, on any device. With its `sample_mean` the loss is the mean over samples.
    autocast: precision of the forward pass where it is not that of the parameters.
    group: the ranks that share the step, all by default, see `plan_step`.

    The loss and its gradient are the same for every split of the packs over micro-batches and ranks: losses are summed
    and divided once by the global weight. A step without any target has a loss of 0; it changes no weights, nor does
    one whose gradient is not finite. A fused optimizer (`AdamW(…, fused=True)`) learns that on the device, any other
    has to wait for it. A batch that comes on the CPU spares all other waiting. How logits are computed: see `loss_sum`.

    Warns once if parameters that are trained are in half precision. Raises `ValueError` as `plan_step`.
    """
    _warn_of_half(model)
    device = next(model.parameters()).device
    plan = plan_step([batch] if isinstance(batch, Mapping) else list(batch), device, group)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for micro_batch in accumulate(model, plan):
        loss = loss_sum(model, micro_batch, autocast=autocast)
        scale(loss, plan).backward()
        total += loss.detach()
    grad_norm = _clip(model, max_grad_norm or float("inf"))
    skipped = ~grad_norm.isfinite()
    _step_unless(skipped | (plan.weight == 0), optimizer)
    if scheduler is not None:
        scheduler.step()
    return StepResult(loss=plan.mean(total), weight=plan.weight, grad_norm=grad_norm, skipped=skipped)


def autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Precision of the forward pass: float32, bfloat16, or auto, which is bfloat16 on a GPU; None for float32."""
    return torch.bfloat16 if name == "bfloat16" or (name == "auto" and device.type == "cuda") else None


def _clip(model: nn.Module, most: float) -> Tensor:
    """Clip the gradient to a norm, and return that which it had.  # shape: ()

    Where ranks divide some of a model (tensor parallelism) torch's norm does not take all of its gradients together.
    """
    of_mesh: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for each in model.parameters():
        if each.grad is not None:
            of_mesh.setdefault(each.grad.device_mesh if isinstance(each.grad, DTensor) else None, []).append(each)
    norms = [nn.utils.get_total_norm([each.grad for each in some]) for some in of_mesh.values()]  # type: ignore[misc]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)
    for some in of_mesh.values():
        nn.utils.clip_grads_with_norm_(some, most, norm)
    return norm


def _step_unless(idle: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step, or not.  # shape of idle: ()"""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    # The word between a gradient scaler and fused optimizers, whose kernels read it on the device.
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not any(isinstance(p, DTensor) for p in parameters):
        optimizer.found_inf = idle.float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif not bool(idle):
        optimizer.step()


def _warn_of_half(model: nn.Module) -> None:
    if model in _WARNED:
        return
    _WARNED.add(model)
    found = next((each.dtype for each in model.parameters() if each.requires_grad and each.dtype in HALVES), None)
    if found is not None:
        warnings.warn(
            f"parameters are trained in {str(found).removeprefix('torch.')}, where small steps round to none: load the"
            " model with dtype=torch.float32 and give train_step autocast=torch.bfloat16 (unless the optimizer keeps"
            " float32 copies)",
            stacklevel=3,
        )
