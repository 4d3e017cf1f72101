"""Strategies: pure functions from segment lengths to packs. Nothing here touches a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strategies.contract import ContractError, NoOptions, Plan, Request, Strategy
    from strategies.draws import Draws
    from strategies.planning import pack
    from strategies.registry import BrokenStrategy, all_strategies, find

__all__ = [
    "BrokenStrategy",
    "ContractError",
    "Draws",
    "NoOptions",
    "Plan",
    "Request",
    "Strategy",
    "all_strategies",
    "find",
    "pack",
]

_MODULE_OF = {
    "BrokenStrategy": "registry",
    "ContractError": "contract",
    "Draws": "draws",
    "NoOptions": "contract",
    "Plan": "contract",
    "Request": "contract",
    "Strategy": "contract",
    "all_strategies": "registry",
    "find": "registry",
    "pack": "planning",
}


def __getattr__(name: str) -> Any:
    """Numba takes half a second to import: not for whoever needs an array type."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'strategies' has no attribute {name!r}")
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(f"strategies.{_MODULE_OF[name]}"), name)
