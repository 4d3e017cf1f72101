"""The loss of packed tokens: summed over targets, each with its weight, and divided once, by all their weights.

Averaging per pack, per micro-batch or per rank would weight samples by the company they are in. Logits are computed
some targets at a time, with their gradient, so that they are never all there: 5,300 targets at a vocabulary of 152,000
would take 12 GB, three times 3.2 GB for logits, their softmax and its gradient, and half precision besides.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from pipeline.format.labels import IGNORE

LOGITS_AT_ONCE = 1 << 27
"""Logits that are computed at once: 0.5 GB in float32."""

LossOfHidden: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A loss of hidden states, and of the weight and the bias of the head that would make logits of them."""

_ENDS_IN_HEAD: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()
"""Of models that were asked: whether their logits are what their head computes."""


def targets_of(batch: Mapping[str, Any]) -> Tensor:
    """Where in the row the targets stand, 0 for none; waits for the device of a batch that does not say.

    The first token is none, whatever its label: nothing predicts it.  # shape: (num_targets,)
    """
    if "targets" in batch:
        said: Tensor = batch["targets"]
        return said
    following: Tensor = batch["labels"][0, 1:] != IGNORE
    return following.nonzero()[:, 0] + 1


def target_losses(logits: Tensor, batch: Mapping[str, Any], targets: Tensor) -> Tensor:
    """Cross-entropy of each target, given what stands before it.  # shape: (num_targets,)

    logits: of the tokens before the targets, or of all.  # shape: (1, num_targets or num_tokens, vocabulary)
    """
    logits, labels = logits.flatten(0, 1).float(), batch["labels"][0]
    if len(logits) == len(targets):
        return functional.cross_entropy(logits, labels[targets], ignore_index=IGNORE, reduction="none")
    # Labels are shifted, not logits: the gradient of a slice of those would fill as much memory once more.
    following = functional.pad(labels[1:], (0, 1), value=IGNORE)
    return functional.cross_entropy(logits, following, ignore_index=IGNORE, reduction="none")[targets - 1]


def target_weights(batch: Mapping[str, Any], targets: Tensor) -> Tensor:
    """What each target's loss counts.  # shape: (num_targets,)

    `loss_weights` where the collator gave them: 1 / targets of its segment, for the mean over samples. Otherwise 1, for
    the mean over tokens. What fills up a list of targets counts 0.
    """
    if "loss_weights" not in batch:
        return targets.gt(0).float()
    weights: Tensor = batch["loss_weights"][0, targets]
    return weights


def head_of(model: nn.Module, inputs: Mapping[str, Any]) -> nn.Linear | None:
    """The matrix product that ends a model, if what it computes are the logits; None where `linear_loss` will not do.

    model: of transformers, not compiled as a whole. inputs: what its forward takes of any batch.

    Some models scale their logits or cap them (granite, cohere, gemma2), and heads may be quantised, or divided over
    ranks. So the model is asked, once: it computes one token, what leaves its head is replaced, and has to arrive.
    """
    asked: Any = model
    head = asked.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if (
        not isinstance(head, nn.Linear)
        or type(head).forward is not nn.Linear.forward
        or "forward" in vars(head)
        or hasattr(head.weight, "ds_id")  # DeepSpeed's ZeRO 3 takes the weight away when the head has computed
    ):
        return None
    if model not in _ENDS_IN_HEAD:
        _ENDS_IN_HEAD[model] = _ends_in(head, model, inputs)
    return head if _ENDS_IN_HEAD[model] else None


@contextmanager
def loss_in(head: nn.Linear, loss: LossOfHidden, before: Tensor | None) -> Iterator[None]:
    """Let a model's head return a loss where it would return logits.

    The head itself computes it: where a model is divided over ranks, it has its whole weight there, and nowhere else.

    loss: of what stands before the targets, and the head's weight and bias.
    before: which tokens these are, for a model whose head is given all.  # shape: (num_targets,)
    """

    def forward(hidden: Tensor) -> Tensor:
        hidden = hidden.flatten(0, -2)
        return loss(hidden if before is None else hidden[before], head.weight, head.bias)

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def linear_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted cross-entropies of `hidden @ weight.T + bias`, without ever holding all logits.  # shape: ()

    hidden: # shape: (num_targets, width)
    weight, bias: of the head.  # shapes: (vocabulary, width), (vocabulary,)
    labels, weights: a label of -100 has no loss.  # shapes: (num_targets,)

    Under autocast the products are in its precision, and sums over targets in that of the weight. Differentiable once,
    in hidden, weight and bias. (Gradients are computed with the logits, as Liger kernels do: Hsu et al., 2024.)
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss: Tensor = _LinearLoss.apply(hidden, weight, bias, labels, weights, dtype, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


def linear_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The cross-entropies that `linear_loss` sums, without their gradient.  # shape: (num_targets,)"""
    at_once = max(LOGITS_AT_ONCE // len(weight), 1)
    with torch.no_grad():
        parts = [
            functional.cross_entropy(
                functional.linear(inputs, weight, bias).float(), following, ignore_index=IGNORE, reduction="none"
            )
            for inputs, following in zip(hidden.split(at_once), labels.split(at_once), strict=True)
        ]
    return torch.cat(parts)


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor,
        dtype: torch.dtype,
        is_grad_enabled: bool,
    ) -> Tensor:
        wanted = [each and is_grad_enabled for each in context.needs_input_grad[:3]]
        of_hidden, of_weight, of_bias = (
            torch.zeros_like(each) if each is not None and is_wanted else None
            for each, is_wanted in zip((hidden, weight, bias), wanted, strict=True)
        )
        total = torch.zeros((), device=hidden.device)
        matrix, added = weight.to(dtype), None if bias is None else bias.to(dtype)
        at_once = max(LOGITS_AT_ONCE // len(weight), 1)
        for part in (slice(begin, begin + at_once) for begin in range(0, len(hidden), at_once)):
            inputs = hidden[part].to(dtype)
            logits = functional.linear(inputs, matrix, added).float()
            total += _loss_in_place(logits, labels[part], weights[part])
            if of_bias is not None:
                of_bias += logits.sum(0)
            gradient = logits.to(dtype)
            if of_hidden is not None:
                of_hidden[part] = gradient @ matrix
            if of_weight is not None:
                of_weight += gradient.T @ inputs
            del logits, gradient  # before the next are there
        context.gradients = of_hidden, of_weight, of_bias
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        if context.gradients is None:
            raise RuntimeError("the gradient of this loss was taken already, and is not kept")
        # In place: that of the weight is as large as the weight.
        gradients = [None if each is None else each.mul_(outer) for each in context.gradients]
        context.gradients = None
        return (*gradients, None, None, None, None)


def _loss_in_place(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted cross-entropies, whose gradient takes the place of the logits.  # shape: ()"""
    at, counted = labels.clamp(min=0)[:, None], torch.where(labels == IGNORE, 0, weights)
    logits -= logits.amax(1, keepdim=True)
    of_label = logits.gather(1, at)[:, 0]
    of_all = logits.exp_().sum(1)
    logits *= (counted / of_all)[:, None]
    logits.scatter_add_(1, at, -counted[:, None])
    return torch.dot(of_all.log() - of_label, counted)


def _ends_in(head: nn.Linear, model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a model's logits of one token are what its head computes, as one tensor in this process."""
    device = inputs["input_ids"].device
    one = torch.zeros(1, 1, dtype=torch.int64, device=device)
    ends = torch.tensor([0, 1], dtype=torch.int32, device=device)
    same = {"input_ids": one, "position_ids": one, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    same |= {"logits_to_keep": one[0], "seq_idx": one.int()}
    lengths = {"max_length_q": 1, "max_length_k": 1}
    given = {name: same.get(name, lengths.get(name, value)) for name, value in inputs.items()}
    computed: list[Any] = []

    def replace(_: nn.Module, taken: tuple[Any, ...], output: Any) -> Any:
        """Logits of which every scale and cap would make others, whatever the weights."""
        if any(isinstance(each, DTensor) for each in taken):  # every rank computes some of them
            output = None
        if type(output) is Tensor:
            output = torch.linspace(-1000, 1000, output.shape[-1], device=device).to(output.dtype).expand_as(output)
        computed.append(output)
        return output

    hook = head.register_forward_hook(replace)
    trained = [each for each in model.modules() if each.training]
    model.eval()
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            logits = model(**given).logits
    finally:
        hook.remove()
        for each in trained:
            each.training = True
    if len(computed) != 1 or not all(type(each) is Tensor for each in (logits, *computed)):
        return False
    return logits.shape == computed[0].shape and bool((logits.float() == computed[0].float()).all())
