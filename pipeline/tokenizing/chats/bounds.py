"""What bounds a chat template, which is a program of somebody else: time, memory, and texts made by one operation.

Jinja's sandbox keeps it from files and from the interpreter, but neither from loops in loops nor from texts that double
until memory is full. So every rendering has a time and a share of memory, and is ended where it runs once it exceeds
one of them; and the few operations that can make any length at once are refused before they do.
"""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 60.0
"""What one rendering may take; chats of a megabyte take less than one."""

MOST_BYTES = 2 << 30
"""How much memory the process may gain while one rendering runs."""

MOST_CHARACTERS = 1 << 27
"""How long a text or list may become by one operation."""

_POLL_SECONDS, _SLOW_SECONDS = 0.02, 0.1
_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)|\{[^{}]*(?:\d{4}|\{)")  # widths of four digits, or from elsewhere

Done = TypeVar("Done")


class Exceeded(BaseException):
    """A rendering took too long, or too much memory. No `Exception`, so that nothing in between swallows it."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no operation makes a text of any length at once."""

    intercepted_binops = frozenset(["*", "%", "**"])

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name, length in _LENGTHS.items():
            self.filters[name] = _bounded(self.filters[name], length)
        for extension in self.extensions.values():
            if all(hasattr(extension, name) for name in _OF_TRACKER):
                vars(extension)[_OF_TRACKER[0]] = _counting(extension)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """As of the sandbox. Raises `SecurityError` for what would become too long."""
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(times, int):
                    _require(len(one) * times)
        elif operator == "%" and isinstance(left, str):
            _require(_of_format(left))
        elif operator == "**" and isinstance(right, int):
            _require(abs(right) * len(str(left)))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As of the sandbox. What it gives raises `SecurityError` for what would become too long."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        act, text = wrapped, value.__self__

        def bounded(*arguments: Any, **keywords: Any) -> str:
            _require(_of_format(text))
            return act(*arguments, **keywords)

        return bounded

    def call(self, context: Context, obj: Any, /, *arguments: Any, **keywords: Any) -> Any:
        """As of the sandbox. Raises `SecurityError` for what would become too long."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = obj.__name__
            if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
                _require(
                    sum(one for one in (*arguments, *keywords.values()) if isinstance(one, int)) * max(1, len(owner))
                )
            elif name == "replace" and len(arguments) > 1:
                _require(_of_replace(owner, *arguments[:2]))
            elif name == "join" and arguments:
                _require(_of_join(arguments[0], owner))
        return super().call(context, obj, *arguments, **keywords)


def _counting(tracker: Any) -> Callable[[Callable[[], str]], str]:
    """What notes where a text inside generation marks stands, as transformers' extension does.

    That joins for each of them all that was written before, which is the square of a long chat.
    """
    counted: list[str] = []
    num_counted = length = 0

    def note(caller: Callable[[], str]) -> str:
        nonlocal counted, num_counted, length
        text = caller()
        if tracker.is_active():
            written = tracker._rendered_blocks
            if written is not counted:
                counted, num_counted, length = written, 0, 0
            length += sum(map(len, written[num_counted:]))
            num_counted = len(written)
            tracker._generation_indices.append((length, length + len(text)))
        return text

    return note


def _of_format(text: Any) -> int:
    return MOST_CHARACTERS + 1 if _WIDE.search(str(text)) else 0


def _of_replace(text: Any, old: Any, new: Any) -> int:
    whole = str(text)
    return len(whole) + whole.count(str(old)) * len(str(new))


def _of_join(parts: Any, between: Any = "", *_: Any) -> int:
    if not isinstance(parts, list | tuple):
        return 0  # made one by one
    return sum(len(part) for part in parts if isinstance(part, str)) + len(parts) * len(str(between))


def _of_indent(text: Any, width: Any = 4, *_: Any) -> int:
    lines: int = str(text).count("\n") + 1
    return lines * (int(width) if isinstance(width, int) else len(str(width)))


_OF_TRACKER = ("_generation_support", "_rendered_blocks", "_generation_indices", "is_active")
"""What transformers' extension for generation marks has, as far as it is known here."""

_LENGTHS: dict[str, Callable[..., int]] = {
    "center": lambda text, width=80: int(width),
    "indent": _of_indent,
    "format": lambda text, *_, **__: _of_format(text),
    "join": _of_join,
    "replace": lambda text, old, new, *_: _of_replace(text, old, new),
}
"""How long what filters make is, at the least."""


def _bounded(act: Callable[..., Any], length: Callable[..., int]) -> Callable[..., Any]:
    """A filter that is not called where its result would become too long."""

    def bounded(*arguments: Any, **keywords: Any) -> Any:
        own = arguments[1:] if passes else arguments
        _require(length(*own, **keywords))
        return act(*arguments, **keywords)

    passes = getattr(act, "jinja_pass_arg", None)
    if passes is not None:
        bounded.jinja_pass_arg = passes  # type: ignore[attr-defined]
    return bounded


def _require(length: int) -> None:
    if length > MOST_CHARACTERS:
        raise SecurityError(f"a text would become longer than the {MOST_CHARACTERS:,} characters that are allowed")


@dataclass(slots=True)
class _Running:
    """A rendering."""

    begun: float
    seconds: float
    bytes: int = 0
    """What the process had when it was first looked at; 0 before."""


class _Watch:
    """Ends renderings that exceed their time or memory, whatever thread they run in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}
        self._thread: threading.Thread | None = None

    def run(self, act: Callable[[], Done], seconds: float) -> Done:
        """Do something in this thread. Raises `Exceeded` once its time is over, or its memory used."""
        own = threading.get_ident()
        with self._lock:
            self._running[own] = _Running(time.monotonic(), seconds)
            if self._thread is None or not self._thread.is_alive():  # none is after a fork
                self._thread = threading.Thread(target=self._look, daemon=True, name="template watch")
                self._thread.start()
        try:
            return act()
        finally:
            with self._lock:
                self._running.pop(own, None)

    def _look(self) -> None:
        while True:
            is_slow = False
            with self._lock:
                now = time.monotonic()
                for thread, running in list(self._running.items()):
                    if now - running.begun < _SLOW_SECONDS:
                        continue
                    is_slow, held = True, _resident_bytes()
                    running.bytes = running.bytes or held
                    if now - running.begun > running.seconds or held - running.bytes > MOST_BYTES:
                        del self._running[thread]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Exceeded))
            time.sleep(_POLL_SECONDS if is_slow else _SLOW_SECONDS)


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096


within_bounds = _Watch().run
"""Render in this thread, within so many seconds. Raises `Exceeded`."""
