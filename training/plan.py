"""The parts of a step, for loops that keep backward, clipping and the optimizer to themselves (FSDP2, DeepSpeed, TP).

    plan = plan_step(batches, device, group=data_parallel_group)
    for micro_batch in accumulate(model, plan):
        loss = loss_sum(model, micro_batch, autocast=torch.bfloat16)
        scale(loss, plan).backward()

`train_step` is their sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from training.attention.interface import model_inputs, unwrapped
from training.loss import (
    LossOfHidden,
    head_of,
    linear_loss,
    linear_losses,
    loss_in,
    target_losses,
    target_weights,
    targets_of,
)

Batch: TypeAlias = Mapping[str, Any]
"""What `PackedCollator` returns."""

Group: TypeAlias = "distributed.ProcessGroup | DeviceMesh"

_OF_CONTEXT = ("cp", "context", "sp", "sequence", "seq")
"""How dimensions of a mesh are called that divide a row over ranks."""


@dataclass(frozen=True)
class MicroBatch:
    """A batch on the device, and what is to be learned from it."""

    inputs: Batch
    targets: Tensor
    """Where in the row they stand; 0 fills up.  # shape: (num_targets,)"""

    weights: Tensor
    """What each target's loss counts.  # shape: (num_targets,)"""


@dataclass(frozen=True)
class StepPlan:
    """The micro-batches of one rank's step, and what the loss of all ranks is divided by."""

    micro_batches: list[MicroBatch]
    weight: Tensor
    """Targets, or samples that have any, of all micro-batches on all ranks (float64).  # shape: ()"""

    group: distributed.ProcessGroup | None
    num_ranks: int

    @property
    def divisor(self) -> Tensor:
        """The weight, and 1 where there is none: weights add up to a whole number.  # shape: ()"""
        return self.weight.clamp(min=1)

    def mean(self, total: Tensor) -> Tensor:
        """The loss of the step on all ranks, from the sum of this rank's `loss_sum`.  # shape: ()"""
        total = total.detach().double()
        if self.num_ranks > 1:
            distributed.all_reduce(total, group=self.group)
        return total / self.divisor


def plan_step(batches: Sequence[Batch], device: torch.device, group: Group | None = None) -> StepPlan:
    """Find targets and weights of a step's micro-batches, and sum the weights over the ranks that share the step.

    batches: from `PackedCollator`, on any device; of those on the CPU no device is waited for.
    group: ranks with packs of their own, the data-parallel group; all ranks by default, if there are several. Ranks
        that compute the same packs together (tensor parallelism) have to be left out.

    Raises `ValueError` for no batch, for batches of which some have weights for the mean over samples, and for rows
    that are divided over ranks (context parallelism).
    """
    if len({"loss_weights" in each for each in batches}) != 1:
        raise ValueError("a step takes batches of one kind: all with sample_mean, or none" if batches else "no batch")
    process_group, num_ranks = _data_parallel(group)
    for each in batches:
        _refuse_divided(each)
    micro_batches = [micro_batch_of(each, device) for each in batches]
    weight = torch.stack([each.weights.double().sum() for each in micro_batches]).sum()
    if num_ranks > 1:
        distributed.all_reduce(weight, group=process_group)
    return StepPlan(micro_batches, weight, process_group, num_ranks)


def micro_batch_of(batch: Batch, device: torch.device) -> MicroBatch:
    """A batch from `PackedCollator` on a device, and its targets."""
    targets = _sent(targets_of(batch), device)
    inputs = to_device(batch, device)
    return MicroBatch(inputs, targets, target_weights(inputs, targets))


def loss_sum(model: nn.Module, micro_batch: MicroBatch, *, autocast: torch.dtype | None = None) -> Tensor:
    """Weighted sum of the losses of a micro-batch's targets, on this rank; not divided by anything.  # shape: ()

    autocast: precision of the forward pass where it is not that of the parameters. The embeddings of the tokens are
    then of that precision, too, as they would be with parameters in it.

    Logits are computed for targets alone, if the model can do that, and some at a time, if they are what its head
    computes (see `head_of`). A model that is compiled as a whole computes those of all tokens, unless the list of
    targets has a constant length (`max_targets`).
    """
    labels, weights = _labels(micro_batch), micro_batch.weights
    return _loss(
        model,
        micro_batch,
        autocast,
        of_hidden=lambda hidden, weight, bias: linear_loss(hidden, weight, bias, labels, weights),
        of_each=lambda losses: torch.dot(losses, weights),
    )


def losses_of(model: nn.Module, micro_batch: MicroBatch, *, autocast: torch.dtype | None = None) -> Tensor:
    """The losses that `loss_sum` weights and sums, without their gradient.  # shape: (num_targets,)"""
    labels = _labels(micro_batch)
    with torch.no_grad():
        return _loss(
            model,
            micro_batch,
            autocast,
            of_hidden=lambda hidden, weight, bias: linear_losses(hidden, weight, bias, labels),
            of_each=lambda losses: losses,
        )


def _labels(micro_batch: MicroBatch) -> Tensor:
    labels: Tensor = micro_batch.inputs["labels"][0, micro_batch.targets]
    return labels


def _loss(
    model: nn.Module,
    micro_batch: MicroBatch,
    autocast: torch.dtype | None,
    of_hidden: LossOfHidden,
    of_each: Callable[[Tensor], Tensor],
) -> Tensor:
    """A loss in one of two ways: of hidden states by the head, or of each target's loss where there are logits."""
    inputs, targets = micro_batch.inputs, micro_batch.targets
    bare, is_compiled = unwrapped(model)
    if not is_compiled or "targets" in inputs:
        inputs = {**inputs, "logits_to_keep": targets.sub(1).clamp(min=0)}
    given = model_inputs(model, inputs)
    device = inputs["input_ids"].device
    with precision(device, autocast):
        if is_compiled:
            return of_each(target_losses(_logits(model, given), inputs, targets))
        with _embedding_in(bare, autocast):
            head = head_of(bare, given)
            if head is None:
                return of_each(target_losses(_logits(model, given), inputs, targets))
            before = None if "logits_to_keep" in given else targets.sub(1).clamp(min=0)
            with loss_in(head, of_hidden, before):
                loss: Tensor = model(**given).logits
                return loss


def _logits(model: nn.Module, given: Batch) -> Tensor:
    """Logits of the whole vocabulary. Raises `ValueError` where a rank has some of them alone."""
    logits: Tensor = model(**given).logits
    if isinstance(logits, DTensor):
        return logits.full_tensor()
    bare: Any = unwrapped(model)[0]
    weight = getattr(bare.get_output_embeddings(), "weight", None) if hasattr(bare, "get_output_embeddings") else None
    if isinstance(weight, DTensor) and logits.shape[-1] == len(weight.to_local()) < len(weight):
        raise ValueError(
            f"each rank has the logits of {logits.shape[-1]} of {len(weight)} ids: let the head return all of them"
            " (ColwiseParallel(output_layouts=Replicate()))"
        )
    return logits


def scale(loss: Tensor, plan: StepPlan) -> Tensor:
    """What to take the gradient of: the loss over the weight of all ranks, times the ranks, because what divides a
    model over ranks (DistributedDataParallel, FSDP2, DeepSpeed) takes the mean of their gradients.  # shape: ()"""
    return loss * (plan.num_ranks / plan.divisor)


def accumulate(model: nn.Module, plan: StepPlan) -> Iterator[MicroBatch]:
    """The micro-batches one by one; in DistributedDataParallel ranks exchange gradients with the last alone.

    In FSDP2 they do with each, so that no rank ever holds the gradient of the whole model.
    """
    for number, micro_batch in enumerate(plan.micro_batches, 1):
        with _exchanging(model, number == len(plan.micro_batches)):
            yield micro_batch


def precision(device: torch.device, autocast: torch.dtype | None) -> AbstractContextManager[Any]:
    """Compute in a precision, or in that of the parameters."""
    # Without its cache, which would hold all weights in that precision until the last layer has computed.
    return nullcontext() if autocast is None else torch.autocast(device.type, autocast, cache_enabled=False)


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on a device, without waiting for them; lengths stay Python ints.

    Queries and keys are the same tokens, so that their boundaries are one tensor, sent once.
    """
    moved = {
        name: _sent(value, device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name != "cu_seq_lens_k"
    }
    return moved | ({"cu_seq_lens_k": moved["cu_seq_lens_q"]} if "cu_seq_lens_k" in batch else {})


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; out of pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # itself, where it is pinned
    return tensor.to(device, non_blocking=True)


def _data_parallel(group: Group | None) -> tuple[distributed.ProcessGroup | None, int]:
    """(the group, its number of ranks). Raises `ValueError` for a mesh that is not one of packs."""
    if isinstance(group, DeviceMesh):
        names = group.mesh_dim_names or ()
        divided = [name for name in names if name in _OF_CONTEXT]
        if divided:
            raise ValueError(
                f"the mesh divides rows over ranks ({', '.join(divided)}): packs are not made for context parallelism"
            )
        if group.ndim != 1:
            raise ValueError(f"give the data-parallel dimension alone, of {', '.join(names) or group.ndim}: mesh[name]")
        group = group.get_group()
    if group is None and not (distributed.is_available() and distributed.is_initialized()):
        return None, 1
    return group, distributed.get_world_size(group)


def _refuse_divided(batch: Batch) -> None:
    num_tokens, boundaries = batch["input_ids"].shape[1], batch["cu_seq_lens_q"]
    if boundaries.device.type == "cpu" and boundaries.numpy()[-1] != num_tokens:
        raise ValueError(
            f"a row of {num_tokens} tokens, whose segments end at {boundaries[-1]}: is it divided over ranks? Packs are"
            " not made for context parallelism"
        )


@contextmanager
def _embedding_in(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Embed tokens in a precision, and with them all that is added to them, layer after layer."""
    embedding = model.get_input_embeddings() if dtype and hasattr(model, "get_input_embeddings") else None
    if not isinstance(embedding, nn.Module):
        yield
        return
    hook = embedding.register_forward_hook(lambda _, __, output: output.to(dtype))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _exchanging(model: nn.Module, now: bool) -> Iterator[None]:
    inner: Any = getattr(model, "_orig_mod", model)
    if isinstance(inner, nn.parallel.DistributedDataParallel) and not now:
        with inner.no_sync():
            yield
        return
    yield
