"""What a chat template can do at all, told by its syntax alone.

A slice backwards: from what is written where a generation prompt is asked for to whatever decides about it, through
variables, loops, conditions and macros, wherever they stand and in whatever order. Too much may come in, nothing may be
left out. Values never change: templates are rendered in a sandbox without `append` and the like.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jinja2 import Environment, TemplateSyntaxError, nodes

from pipeline.tokenizing.rows.messages import REASONING

PROMPT = "add_generation_prompt"
"""What a template is told so that it opens a turn for the assistant."""

_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")
_WORDS = frozenset(
    (
        "content",
        "text",
        *REASONING,
        "function_calls",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "tool_call_id",
    )
)
"""Keys whose values are not in the shape of a chat; see `layout.with_stand_ins`."""

WHOLE = frozenset(("items", "values", "dictsort", "string", "tojson", "pprint", "join", "format", "xmlattr"))
"""Methods and filters that give all that is in a value."""

BY_ATTRIBUTE = frozenset(("selectattr", "rejectattr", "map", "groupby", "sort", "unique", "sum", "min", "max", "attr"))
"""Filters that are told a key of the values."""

_KINDS = frozenset(("defined", "undefined", "none", "string", "mapping", "sequence", "iterable", "boolean", "number"))
"""Tests of what a value is, whatever it says."""


class _Decider(NamedTuple):
    """A part of a template that decides about something."""

    node: nodes.Node
    is_test: bool
    """Whether only its truth matters."""


_Deciders = tuple[_Decider, ...]


@functools.lru_cache(maxsize=256)
def prompt_reads_words(source: str) -> bool:
    """Whether the generation prompt of a template may depend on the words of a chat, not only on its shape.

    Whether a key is there, or blank, is its shape.
    """
    try:
        tree = parsed(source)
    except TemplateSyntaxError:
        return True
    return any(_Flow(tree).prompt_words())


def parsed(source: str) -> nodes.Template:
    """The syntax of a template, without its generation marks. Raises jinja2's `TemplateSyntaxError`."""
    return Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(_GENERATION.sub("", source))


def text_of(node: nodes.Node) -> str | None:
    """The text that a node is; None if it is another."""
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def name_of(node: nodes.Node) -> str:
    """The name of the variable that a node is; empty if it is another."""
    return node.name if isinstance(node, nodes.Name) else ""


class _Flow:
    """Which expressions decide about which names, and which write a generation prompt."""

    def __init__(self, tree: nodes.Template) -> None:
        self._sources: dict[str, list[_Decider]] = {}
        self._known: dict[nodes.Node, frozenset[str]] = {}
        self._spaces = {"loop"}
        """Names of which an attribute is a variable, too."""

        self._written: list[tuple[nodes.Node, _Deciders]] = []
        """What asks, or may ask, for a prompt, and all that then decides about what is written."""

        for macro in tree.find_all(nodes.Macro):
            self._make_local(macro)
        self._walk(tree, ())
        params = [(macro.name, param.name) for macro in tree.find_all(nodes.Macro) for param in macro.args]
        for call in tree.find_all(nodes.Call):
            for param in (param for macro, param in params if macro == name_of(call.node)):
                self._add(param, _values([*call.args, *(told.value for told in call.kwargs)]))

    def prompt_words(self) -> Iterator[bool]:
        """Of each part of the template that decides about a generation prompt, whether it reads words of a chat."""
        asking: set[str] = set()
        more = {PROMPT}
        while more:
            asking |= more
            more = {
                name
                for name, sources in self._sources.items()
                if name not in asking and any(self._names(each.node) & asking for each in sources)
            }
        wanted = [each for asked, decided in self._written if self._names(asked) & asking for each in decided]
        seen: set[str] = set()
        while wanted:
            node, is_test = wanted.pop()
            yield self._reads_words(node, is_test=is_test)
            for name in self._names(node) - seen:
                seen.add(name)
                wanted += self._sources.get(name, ())

    def _make_local(self, macro: nodes.Macro) -> None:
        """Give the variables of a macro names of their own, which may have the values of those outside it."""
        own = {each.name for each in macro.find_all(nodes.Name) if each.ctx != "load"}
        each: Any
        for each in macro.find_all((nodes.Name, nodes.NSRef)):
            if each.name in own:
                each.name = f"{macro.name}:{each.name}"
        for name in own:
            self._add(f"{macro.name}:{name}", _values([nodes.Name(name, "load")]))

    def _walk(self, node: nodes.Node, control: _Deciders) -> None:
        """Note what a statement and those inside it do. control: what decides whether it is run."""
        if isinstance(node, nodes.If):
            branches = [node, *node.elif_]
            tests = [_but_for_prompt(each.test) for each in branches]
            for number, test in enumerate(tests):
                if test is branches[number].test:
                    bodies = [part for each in branches[number:] for part in each.body]
                    decided = (*_tests(tests[number:]), *_values([*bodies, *node.else_]), *control)
                    self._written.append((test, decided))
            control = (*control, *_tests(tests))
        elif isinstance(node, nodes.For):
            can_jump = next(node.find_all((nodes.Break, nodes.Continue)), None) is not None
            ends = [each.test for each in node.find_all(nodes.If)] if can_jump else []
            times = _Decider(node.iter, is_test=self._key(node.iter) == "tool_calls")  # shapes know how many there are
            control = (*control, times, *_tests([*([node.test] if node.test else []), *ends]))
            self._set(node.target, control)
        elif isinstance(node, nodes.Assign):
            self._assign(node.target, node.node, control)
        elif isinstance(node, nodes.AssignBlock):
            self._set(node.target, (*_values(node.body), *control))
        elif isinstance(node, nodes.With):
            for target, value in zip(node.targets, node.values, strict=True):
                self._assign(target, value, control)
        elif isinstance(node, nodes.Macro):
            self._add(node.name, (*_values([*node.body, *node.defaults]), *control))
        elif isinstance(node, nodes.Output | nodes.CallBlock | nodes.ExprStmt):
            self._written += [(each, (*_values([each]), *control)) for each in node.iter_child_nodes()]
        children = [*node.body, *node.else_] if isinstance(node, nodes.If) else node.iter_child_nodes()
        for child in (*children, *(part for each in getattr(node, "elif_", ()) for part in each.body)):
            if isinstance(child, nodes.Stmt):
                self._walk(child, control)

    def _assign(self, target: nodes.Node, value: nodes.Node, control: _Deciders) -> None:
        if isinstance(value, nodes.Call) and name_of(value.node) == "namespace":
            self._spaces.add(name_of(target))
            for told in value.kwargs:
                self._add(f"{name_of(target)}.{told.key}", (*_values([told.value]), *control))
            self._set(target, (*_values(value.args), *control))
        else:
            self._set(target, (*_values([value]), *control))

    def _set(self, target: nodes.Node, decided: _Deciders) -> None:
        for each in target.items if isinstance(target, nodes.Tuple) else [target]:
            self._add(f"{each.name}.{each.attr}" if isinstance(each, nodes.NSRef) else name_of(each), decided)

    def _add(self, name: str, decided: _Deciders) -> None:
        self._sources.setdefault(name, []).extend(decided)

    def _names(self, node: nodes.Node) -> frozenset[str]:
        """The variables that are read in some part of a template, those of a namespace as `name.attribute`."""
        names = self._known.get(node)
        if names is None:
            found = {name for child in node.iter_child_nodes() for name in self._names(child)}
            if isinstance(node, nodes.Name) and node.ctx == "load":
                found.add(node.name)
            elif isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
                found.add(f"{node.node.name}.{node.attr}")
            names = self._known[node] = frozenset(found)
        return names

    def _reads_words(self, node: Any, *, is_test: bool = False) -> bool:
        """Whether the value of an expression, or its truth, may depend on words."""
        if isinstance(node, nodes.If | nodes.CondExpr):
            others = [child for child in node.iter_child_nodes() if child is not node.test]
            return self._reads_words(node.test, is_test=True) or any(map(self._reads_words, others))
        if isinstance(node, nodes.Not | nodes.And | nodes.Or):
            return any(self._reads_words(child, is_test=is_test) for child in node.iter_child_nodes())
        key = self._key(node)
        if key is not None:
            return ((not key or key in _WORDS) and not is_test) or self._reads_words(node.node)
        asked = _asked_what_it_is(node)
        if asked is not None and self._key(asked) is not None:
            return self._reads_words(asked, is_test=True)
        if isinstance(node, nodes.Filter):
            by = {text_of(each) for each in (*node.args[:1], *(told.value for told in node.kwargs))}
            if node.name in WHOLE or (node.name in BY_ATTRIBUTE and by & _WORDS):
                return True
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):  # of a method
            children = [node.node.node, *node.args, *(told.value for told in node.kwargs)]
            return node.node.attr in WHOLE or any(map(self._reads_words, children))
        return any(map(self._reads_words, node.iter_child_nodes()))

    def _key(self, node: Any) -> str | None:
        """The key by which something of a value is read, "" where only a rendering tells it; None if by none."""
        if isinstance(node, nodes.Getattr):
            return None if name_of(node.node) in self._spaces else str(node.attr)
        if isinstance(node, nodes.Getitem) and (text := text_of(node.arg)) is not None:
            return text
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Name):
            return None if "messages" in name_of(node.node) else ""
        is_get = isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "get"
        return (text_of(node.args[0]) or "") if is_get and node.args else None


def _but_for_prompt(test: nodes.Node) -> nodes.Node:
    """A condition without that no prompt is asked for: with one, all is as where the rest of it does not hold."""
    if isinstance(test, nodes.And):
        for this, other in ((test.left, test.right), (test.right, test.left)):
            if isinstance(this, nodes.Not) and name_of(this.node) == PROMPT:
                return other
    return test


def _asked_what_it_is(node: nodes.Node) -> nodes.Node | None:
    """The value of which an expression only asks what kind it is, whether it is blank, or how many calls it has."""
    if isinstance(node, nodes.Test) and node.name in _KINDS:
        return node.node
    if isinstance(node, nodes.Compare) and all(
        each.op in ("eq", "ne") and isinstance(each.expr, nodes.Const) and each.expr.value in ("", None)
        for each in node.ops
    ):
        return node.expr
    if isinstance(node, nodes.Filter) and node.name in ("length", "count"):
        calls = getattr(node.node, "attr", None) or getattr(getattr(node.node, "arg", None), "value", None)
        return node.node if calls == "tool_calls" else None
    return None


def _values(found: Iterable[nodes.Node]) -> _Deciders:
    return tuple(_Decider(node, is_test=False) for node in found)


def _tests(found: Iterable[nodes.Node]) -> _Deciders:
    return tuple(_Decider(node, is_test=True) for node in found)
