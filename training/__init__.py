"""Training on packs: from shards to the tensors of a step, and checks that what is trained is what was packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.attention.interface import use_backend
    from training.collator import PackedCollator
    from training.step import StepResult, train_step

__all__ = ["PackedCollator", "StepResult", "train_step", "use_backend"]

_FROM = {
    "PackedCollator": "collator",
    "StepResult": "step",
    "train_step": "step",
    "use_backend": "attention.interface",
}


def __getattr__(name: str) -> Any:
    """Torch takes seconds to import: not for a command's help."""
    if name not in _FROM:
        raise AttributeError(f"module 'training' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(f"training.{_FROM[name]}"), name)
