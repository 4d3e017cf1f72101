"""The strategies by name: ours, and plug-ins, which other packages install.

A plug-in is an entry point of the group "pipeline.strategies" that leads to a `Strategy` of the same name. Built-in
strategies come first, and a name or alias belongs to one strategy alone. Plug-ins that break these rules are refused
when they are asked for; they harm nothing else, and a built-in strategy is found without loading any.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from strategies.by_length import (
    best_fit_decreasing,
    first_fit,
    first_fit_decreasing,
    minibatch,
    next_fit,
    padding,
    wrapped,
)
from strategies.contract import Strategy, check_strategy
from strategies.related import threshold_filtering

ENTRY_POINT_GROUP = "pipeline.strategies"

BUILT_IN = (
    best_fit_decreasing.STRATEGY,
    first_fit_decreasing.STRATEGY,
    first_fit.STRATEGY,
    next_fit.STRATEGY,
    wrapped.STRATEGY,
    minibatch.STRATEGY,
    padding.STRATEGY,
    threshold_filtering.STRATEGY,
)


@dataclass(frozen=True, kw_only=True)
class BrokenStrategy:
    """A plug-in that cannot be used."""

    name: str
    """The name of its entry point."""

    entry_point: str
    """Where its entry point leads, such as "package.module:STRATEGY"."""

    reason: str
    """Why it is refused, as one sentence for a user."""

    names: tuple[str, ...]
    """The names by which a user may ask for it, as far as they are known."""


def find(name: str) -> Strategy:
    """Return the strategy that has `name` as its name or alias.

    Raises `ValueError` if there is none, suggesting the nearest name, or if the plug-in of that name is broken. Loads
    plug-ins only where no built-in strategy has that name.
    """
    if name in _BUILT_IN_BY_NAME:
        return _BUILT_IN_BY_NAME[name]
    plug_ins, broken = _load_plug_ins()
    for strategy in plug_ins:
        if name in strategy.names:
            return strategy
    for plug_in in broken:
        if name in plug_in.names:
            raise ValueError(plug_in.reason)
    known = [*_BUILT_IN_BY_NAME, *(each for strategy in plug_ins for each in strategy.names)]
    near = [each for each in known if each.startswith(name)] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    others = f"; broken: {', '.join(plug_in.name for plug_in in broken)}" if broken else ""
    raise ValueError(f"unknown strategy {name!r}{hint} (known: {', '.join(known)}{others})")


def all_strategies() -> tuple[list[Strategy], list[BrokenStrategy]]:
    """Return the strategies that can be used, ours first, and the plug-ins that cannot. Loads every plug-in."""
    plug_ins, broken = _load_plug_ins()
    return [*BUILT_IN, *plug_ins], broken


_BUILT_IN_BY_NAME = {name: strategy for strategy in BUILT_IN for name in strategy.names}


def _load_plug_ins() -> tuple[list[Strategy], list[BrokenStrategy]]:
    """Load every plug-in: those that can be used and those that cannot, in alphabetical order.

    Where plug-ins clash with each other none of them can be used, because nothing says which one is meant.
    """
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value))
    loaded: list[tuple[EntryPoint, Strategy]] = []
    broken: list[BrokenStrategy] = []
    for point in points:
        namesakes = [other for other in points if other.name == point.name and other is not point]
        plug_in = _clash(point, point.name, namesakes, (point.name,)) if namesakes else _load(point)
        if isinstance(plug_in, Strategy):
            loaded.append((point, plug_in))
        else:
            broken.append(plug_in)
    usable: list[Strategy] = []
    for point, strategy in loaded:
        for name in strategy.names:
            rivals = [other for other, rival in loaded if other is not point and name in rival.names]
            if rivals:
                broken.append(_clash(point, name, rivals, strategy.names))
                break
        else:
            usable.append(strategy)
    return usable, sorted(broken, key=lambda plug_in: (plug_in.name, plug_in.entry_point))


def _load(point: EntryPoint) -> Strategy | BrokenStrategy:
    """Load one plug-in and hold it against its entry point and the built-in strategies."""
    try:
        strategy = point.load()
        if not isinstance(strategy, Strategy):
            raise TypeError(f"it is no Strategy but of type {type(strategy).__name__}")
        check_strategy(strategy)
    except (Exception, SystemExit) as error:
        reason = f"strategy {point.name!r} cannot be loaded from {point.value} ({type(error).__name__}: {error})"
        return _broken(point, reason, (point.name,))
    if strategy.name != point.name:
        reason = f"entry point {_quote(point)} leads to strategy {strategy.name!r}; the two must have the same name"
        return _broken(point, reason, (point.name, *strategy.names))
    for name in strategy.names:
        if name in _BUILT_IN_BY_NAME:
            owner = _BUILT_IN_BY_NAME[name].name
            reason = f"strategy {_quote(point)} claims the name {name!r}, which belongs to our {owner!r}"
            return _broken(point, reason, strategy.names)
    return strategy


def _clash(point: EntryPoint, name: str, rivals: list[EntryPoint], names: tuple[str, ...]) -> BrokenStrategy:
    """Refuse a plug-in because it shares `name` with others."""
    claimants = " and ".join(_quote(each) for each in (point, *rivals))
    return _broken(point, f"strategies {claimants} claim the same name {name!r}; only one may be installed", names)


def _broken(point: EntryPoint, reason: str, names: tuple[str, ...]) -> BrokenStrategy:
    return BrokenStrategy(name=point.name, entry_point=point.value, reason=reason, names=names)


def _quote(point: EntryPoint) -> str:
    return f"{point.name!r} ({point.value})"
