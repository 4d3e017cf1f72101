"""Which layer is the first whose outputs change where its inputs do not?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerPass:
    """A layer's part in a forward pass."""

    layer: str
    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def recorded(model: nn.Module, num_tokens: int) -> Iterator[list[LayerPass]]:
    """What goes through the layers, in the order in which they finish: inner ones before those around them."""
    passed: list[LayerPass] = []

    def keep(layer: nn.Module, arguments: Any, named: dict[str, Any], returned: Any) -> None:
        entered, left = _by_token([*arguments, *named.values()], num_tokens), _by_token([returned], num_tokens)
        passed.append(LayerPass(type(layer).__name__, entered, left))

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in model.modules()]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def first_to_leak(before: list[LayerPass], after: list[LayerPass], changed: slice, most: float) -> str | None:
    """The first layer that what is outside of the changed tokens enters as it did before, and leaves otherwise."""

    def same(tensors: list[Tensor], others: list[Tensor]) -> bool:
        for tensor, other in zip(tensors, others, strict=True):
            difference = (tensor - other).float().abs()
            difference[changed] = 0
            if float(difference.max()) > most * float(tensor.float().std()):
                return False
        return True

    for one, other in zip(before, after, strict=True):
        if same(one.inputs, other.inputs) and not same(one.outputs, other.outputs):
            return one.layer
    return None


def _by_token(values: Sequence[Any], num_tokens: int) -> list[Tensor]:
    """Copies of the tensors that have a row for each token.  # shapes: (num_tokens, …)"""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, tuple | list):
            tensors += _by_token(value, num_tokens)
        elif isinstance(value, Tensor) and value.is_floating_point():
            if value.ndim > 1 and value.shape[:2] == (1, num_tokens):
                tensors.append(value.detach()[0].clone())
            elif value.ndim > 1 and value.shape[0] == num_tokens:
                tensors.append(value.detach().clone())
    return tensors
