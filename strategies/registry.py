"""The strategies by name: ours, and those that others install."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points

from strategies.by_length import (
    best_fit_decreasing,
    first_fit,
    first_fit_decreasing,
    minibatch,
    next_fit,
    padding,
    wrapped,
)
from strategies.contract import Strategy
from strategies.related import threshold_filtering

ENTRY_POINT_GROUP = "pipeline.strategies"

BUILT_IN: dict[str, Strategy] = {
    "best-fit-decreasing": best_fit_decreasing.STRATEGY,
    "first-fit-decreasing": first_fit_decreasing.STRATEGY,
    "first-fit": first_fit.STRATEGY,
    "next-fit": next_fit.STRATEGY,
    "wrapped": wrapped.STRATEGY,
    "minibatch": minibatch.STRATEGY,
    "padding": padding.STRATEGY,
    "threshold-filtering": threshold_filtering.STRATEGY,
}


def find(name: str) -> Strategy:
    """The strategy called `name`, or with that alias.

    Ours come first: an entry point cannot take one of our names. Raises `ValueError` if there is none, suggesting
    the nearest name, or if an entry point cannot be loaded.
    """
    for strategy in BUILT_IN.values():
        if name in (strategy.name, *strategy.aliases):
            return strategy
    installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name in installed:
        try:
            strategy = installed[name].load()
        except Exception as error:
            told = f"strategy {name!r} cannot be loaded from {installed[name].value}"
            raise ValueError(f"{told} ({type(error).__name__}: {error})") from error
        if not isinstance(strategy, Strategy):
            raise ValueError(f"the entry point {installed[name].value!r} of strategy {name!r} is no Strategy")
        return strategy
    known = [n for s in BUILT_IN.values() for n in (s.name, *s.aliases)] + sorted(installed)
    near = [n for n in known if n.startswith(name)] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown strategy {name!r}{hint} (known: {', '.join(known)})")


def all_names() -> list[str]:
    """Ours, then the installed ones in alphabetical order."""
    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)} - set(BUILT_IN))]
