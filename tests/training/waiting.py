"""Finds what would wait for a device, where everything is on the CPU and nothing has to."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

_ATEN = torch.ops.aten
_WAITING = {
    _ATEN._local_scalar_dense.default,  # item(), float(), bool()
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN.equal.default,
}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}
_COPYING = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
"""What reads a tensor on the CPU without an operation."""


class WouldWait(AssertionError):
    """A host would wait for a device here."""

    def __init__(self, what: Any) -> None:
        super().__init__(f"{what} in\n{''.join(traceback.format_stack(limit=12))}")


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        masks = (torch.bool, torch.uint8)
        by_mask = func in _INDEXING and any(each is not None and each.dtype in masks for each in args[1])
        if func in _WAITING or by_mask:
            raise WouldWait(func)
        return func(*args, **kwargs or {})


class _Copies(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _COPYING:
            raise WouldWait(func)
        return func(*args, **kwargs or {})


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raise `WouldWait` for each operation whose result the host, or a shape, depends on."""
    with _Copies(), _Operations():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def exempt() -> Iterator[None]:
    """What is no operation of a model may do as it likes: a kernel inside, and what stays on the host."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """What computes on batches before they go to the device may wait for itself."""

    def called(*arguments: Any, **named: Any) -> Any:
        with exempt():
            return function(*arguments, **named)

    return called
