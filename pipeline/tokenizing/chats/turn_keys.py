"""Which keys of turns a chat template reads, told by its syntax alone.

What holds the turns of a chat, or one of them, is followed through loops, variables, slices, filters and macros, by
name; what is read of anything else (a tool, a call, a part of a content) is no key of a turn.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import TemplateSyntaxError, nodes

from pipeline.tokenizing.chats.syntax import BY_ATTRIBUTE, WHOLE, name_of, parsed, text_of

_TURN, _TURNS = "turn", "turns"

_PICKS = frozenset(("first", "last", "random"))
"""Filters that give one of several."""

_KEEPS = frozenset(
    ("default", "d", "list", "reverse", "select", "reject", "selectattr", "rejectattr", "sort", "unique")
)
"""Filters that give what they are given, or some of it."""

_OF_NONE = frozenset(("get", "keys"))
"""Methods of a turn that by themselves give nothing of its content."""


@functools.lru_cache(maxsize=256)
def keys_of_turns(source: str) -> frozenset[str] | None:
    """The keys that a template may read of turns; None where that may be any, or its syntax cannot be told."""
    try:
        tree = parsed(source)
    except TemplateSyntaxError:
        return None
    return _Reads(tree).keys


class _Reads:
    """What is read of the turns of a chat in a template."""

    def __init__(self, tree: nodes.Template) -> None:
        self._held: dict[str, set[str]] = {"messages": {_TURNS}, "loop.previtem": {_TURN}, "loop.nextitem": {_TURN}}
        """What names hold, those of a namespace as `name.attribute`."""

        steps = list(_steps(tree))
        is_more = True
        while is_more:
            is_more = any([self._holds(*step) for step in steps])  # noqa: C419 - all of them
        found = [key for node in tree.find_all(nodes.Expr) for key in self._read(node)]
        self.keys = None if None in found else frozenset(key for key in found if key is not None)

    def _holds(self, name: str, value: nodes.Node, is_each: bool) -> bool:
        """Note what a name holds, which is a value or each of one; whether that is more than was known."""
        kinds = self._kinds(value)
        if is_each:
            kinds = {_TURN} if _TURNS in kinds else set()
        known = self._held.setdefault(name, set())
        is_more = not kinds <= known
        known |= kinds
        return is_more

    def _kinds(self, node: Any) -> set[str]:
        """Whether a value may be a turn, or several."""
        if isinstance(node, nodes.Name):
            return self._held.get(node.name, set())
        if isinstance(node, nodes.Getattr) and (held := self._held.get(f"{name_of(node.node)}.{node.attr}")):
            return held
        if isinstance(node, nodes.Getitem):
            whole = _TURNS in self._kinds(node.node)
            return ({_TURNS} if isinstance(node.arg, nodes.Slice) else {_TURN}) if whole else set()
        if isinstance(node, nodes.Filter):
            kinds = self._kinds(node.node)
            if node.name in _PICKS:
                return {_TURN} if _TURNS in kinds else set()
            return kinds if node.name in _KEEPS else set()
        if isinstance(node, nodes.CondExpr | nodes.Or | nodes.And | nodes.Add):
            return {kind for child in node.iter_child_nodes() for kind in self._kinds(child)}
        if isinstance(node, nodes.List | nodes.Tuple):
            return {_TURNS} if any(self._kinds(item) for item in node.items) else set()
        return set()

    def _read(self, node: Any) -> Iterator[str | None]:
        """The keys that an expression itself reads of a turn; None for any."""
        if isinstance(node, nodes.Getattr) and _TURN in self._kinds(node.node):
            yield from () if node.attr in _OF_NONE else (None if node.attr in WHOLE else node.attr,)
        elif isinstance(node, nodes.Getitem) and _TURN in self._kinds(node.node):
            if text_of(node.arg) is not None or _TURNS not in self._kinds(node.node):  # else one of several is taken
                yield text_of(node.arg)
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get":
            if node.args and _TURN in self._kinds(node.node.node):
                yield text_of(node.args[0])
        elif isinstance(node, nodes.Filter) and self._kinds(node.node):
            if node.name in WHOLE:
                yield None
            elif node.name in BY_ATTRIBUTE:
                yield from filter(None, map(text_of, (*node.args, *(told.value for told in node.kwargs))))
        elif isinstance(node, nodes.Compare) and (key := text_of(node.expr)) is not None:
            if any(each.op in ("in", "notin") and _TURN in self._kinds(each.expr) for each in node.ops):
                yield key
        elif isinstance(node, nodes.Concat):
            yield from (None for child in node.nodes if _TURN in self._kinds(child))


def _steps(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node, bool]]:
    """Names, what they are set to, and whether to each of it."""
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    for node in tree.find_all((nodes.For, nodes.Assign, nodes.With, nodes.Call)):
        if isinstance(node, nodes.For):
            yield from ((name, node.iter, True) for name in _names(node.target))
        elif isinstance(node, nodes.With):
            for target, value in zip(node.targets, node.values, strict=True):
                yield from ((name, value, False) for name in _names(target))
        elif isinstance(node, nodes.Assign):
            yield from ((name, node.node, False) for name in _names(node.target))
            if isinstance(node.node, nodes.Call) and name_of(node.node.node) == "namespace":
                space = name_of(node.target)
                yield from ((f"{space}.{told.key}", told.value, False) for told in node.node.kwargs)
        elif isinstance(node, nodes.Call) and name_of(node.node) in macros:
            params = [param.name for param in macros[name_of(node.node)].args]
            yield from ((name, value, False) for name, value in zip(params, node.args, strict=False))
            yield from ((told.key, told.value, False) for told in node.kwargs)


def _names(target: nodes.Node) -> Iterable[str]:
    if isinstance(target, nodes.NSRef):
        return [f"{target.name}.{target.attr}"]
    if isinstance(target, nodes.Tuple):
        return [name for item in target.items for name in _names(item)]
    return [name_of(target)]
