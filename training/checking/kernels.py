"""Does a kernel compute what the reference does, where a model calls it? Forward and backward, call by call.

Both are given the same queries, keys, values and gradients, so that nothing adds up and no router chooses otherwise:
what is left is the kernel's own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.attention.interface import attention, set_attention
from training.checking.exact import exact_float32

MOST_KERNEL = 0.05
"""Norm of a kernel's error, relative to the result, that is rounding: bfloat16 has 8 bits."""


@contextmanager
def compared_with_reference(model: PreTrainedModel, backend: str) -> Iterator[dict[str, float]]:
    """Let a model compute attention by a backend, and compare every call that is differentiated with the reference.

    Yields, for each type of layer, the largest error of its calls: the norm of the difference to the reference in
    float32, relative to the reference's, of the outputs or of all gradients together. A backward pass fills it.
    """
    own = model.config._attn_implementation
    errors: dict[str, float] = {}

    def compared(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        given = [each.view_as(each) for each in (query, key, value)]  # their gradients are those of this call alone
        attended, _ = attention(module, given[0], given[1], given[2], *rest, **named, backend=backend)
        differentiated = [each for each in given if each.requires_grad]
        if not torch.is_grad_enabled() or not differentiated:
            return attended, None
        outer: list[Tensor] = []
        gradients: dict[int, Tensor] = {}
        found = attended.detach()

        def keep(number: int, gradient: Tensor) -> None:
            gradients[number] = gradient
            if len(gradients) == len(differentiated):
                exact, *others = _by_reference(module, given, outer.pop(), found.dtype, *rest, **named)
                own_gradients = [gradients.get(place, torch.zeros_like(each)) for place, each in enumerate(given)]
                error = max(_error([found], [exact]), _error(own_gradients, others))
                gradients.clear()  # it may be differentiated again
                where = type(module).__name__
                errors[where] = max(error, errors.get(where, 0.0))

        attended.register_hook(outer.append)
        for number, each in enumerate(given):
            if each.requires_grad:
                each.register_hook(lambda gradient, number=number: keep(number, gradient))
        return attended, None

    set_attention(model, "packed_compared", compared)
    try:
        yield errors
    finally:
        model.set_attn_implementation(own)


def _by_reference(
    module: nn.Module, given: list[Tensor], outer: Tensor, dtype: torch.dtype, *rest: Any, **named: Any
) -> list[Tensor]:
    """Output and gradients of a call, in float32, of inputs as they are in a precision; zeros for what has none."""
    needed = [each.requires_grad for each in given]
    with torch.enable_grad(), torch.autocast(outer.device.type, enabled=False), exact_float32():
        inputs = [
            each.detach().to(dtype).float().requires_grad_(need) for each, need in zip(given, needed, strict=True)
        ]
        exact, _ = attention(module, inputs[0], inputs[1], inputs[2], *rest, **named, backend="sdpa")
        found = iter(torch.autograd.grad(exact, [each for each in inputs if each.requires_grad], outer.float()))
    return [
        exact.detach(),
        *(next(found) if need else torch.zeros_like(each) for each, need in zip(inputs, needed, strict=True)),
    ]


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    difference = sum(
        float((one.float() - other).double().square().sum()) for one, other in zip(found, exact, strict=True)
    )
    size = sum(float(each.double().square().sum()) for each in exact)
    return float((difference / size) ** 0.5) if size else 0.0
