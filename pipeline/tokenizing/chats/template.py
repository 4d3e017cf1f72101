"""A chat template: rendering as transformers renders, with the spans of its generation marks where it has them."""

from __future__ import annotations

import codecs
import copy
import datetime
import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.digests import hash_bytes
from pipeline.base.errors import ConfigError
from pipeline.base.words import in_one_line
from pipeline.tokenizing.chats import bounds
from pipeline.tokenizing.chats.syntax import prompt_reads_words
from pipeline.tokenizing.chats.turn_keys import keys_of_turns
from pipeline.tokenizing.rows.messages import Message, RowFault
from pipeline.tokenizing.tokens.places import Span
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

Marked = tuple[str, list[Span]]
"""The text of a chat, and what stands in it inside generation marks."""

_TRACKER = threading.Lock()
"""Generation marks are noted in the compiled template, which all threads share."""

_UNTRACKED = "{# without marks #}\n"  # another source is compiled apart, so its renderings are not noted with others'
_CLOCK = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_CLOCK_IS_READ = "the clock is read"
_WITHOUT_CLOCK = (  # the line break after it is taken away by Jinja, as its environment here is set
    "{%- macro strftime_now(format) %}{{ raise_exception('" + _CLOCK_IS_READ + "') }}{% endmacro %}\n"
)
EXCEEDS = "template_exceeds"
"""What rows are counted under over which a template would run on; they end a run, whatever becomes of others."""

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateRefusal(RowFault):
    """The template raised over a chat: by intent, or because it expects another shape of message."""

    def __init__(self, name: str, error: Exception, bare: tuple[int, Message] | None = None) -> None:
        """name: of the template; error: what it raised; bare: a turn without content, and its number."""
        kind, said = type(error).__name__, in_one_line(error)
        told = f"cannot render it: {said}; {name} raises {kind}, so it may expect turns of another form"
        if kind == "TemplateError":  # which raise_exception raises
            told = f"refuses it: {said}; {name} says so itself"
        way = "change the chat, or give a template that takes it with --chat-template FILE"
        if bare is not None and "'content'" in said:
            way = f'turn {bare[0]} ({bare[1]["role"]}) has none, or null: where it says nothing, give it the content ""'
        super().__init__("template_refused", f"the template {told}: {way}")


class TemplateExceeds(TemplateRefusal):
    """The template took too long, or too much memory, over a chat; it is not run again."""

    def __init__(self, name: str) -> None:
        """name: of the template."""
        what = f"more than {bounds.SECONDS:g} s or {bounds.MOST_BYTES >> 30} GiB of memory"
        told = f"{name} takes {what} over a chat and was stopped; give another with --chat-template FILE"
        RowFault.__init__(self, EXCEEDS, told)


class ChatTemplate:
    """The tokenizer's template, or one from a file, with the special tokens that it may name."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        path: Path | None,
        kwargs: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> None:
        """path: of a Jinja file, None for the tokenizer's own; kwargs: what it is told besides; date: the day it reads.

        Raises `ConfigError` if there is none, it cannot be read, or is not valid Jinja.
        """
        from transformers.utils import chat_template_utils  # noqa: PLC0415 - heavy

        chat_template_utils.ImmutableSandboxedEnvironment = bounds.BoundedEnvironment  # type: ignore[attr-defined]
        self._render = chat_template_utils.render_jinja_template
        self._has_exceeded: list[str] = []  # its name, once it has; copies share it
        self._variables: dict[str, Any] = dict(tokenizer.whole.special_tokens_map) | dict(kwargs or {})
        self.name = f"--chat-template {path}" if path else f"the chat template of {tokenizer.name}"
        plain, with_tools = _sources(tokenizer, path)
        self.content_hash = hash_bytes("\0".join(dict.fromkeys((plain, with_tools))).encode())
        self.has_marks = bool(_MARK.search(plain))
        self.may_read_clock = "strftime_now" in plain + with_tools
        """Whether what it renders may depend on the day."""

        self._source, self._source_with_tools = (
            source if date is None else _as_of(date, source, self.name) for source in (plain, with_tools)
        )
        self._names: dict[str, bool] = {}  # whether each that was asked for is read
        self._needs_day = date is None and self.may_read_clock
        self._check_syntax()
        self._wants_parts = False
        undated = self.of_any_day()
        self._wants_parts = not undated._writes_content() and undated._writes_content(in_parts=True)

    def told(self, kwargs: Mapping[str, Any]) -> ChatTemplate:
        """The same template, which is told more; `kwargs` win over what it was told before."""
        other = copy.copy(self)
        other._variables = self._variables | dict(kwargs)
        return other

    def of_any_day(self) -> ChatTemplate:
        """The same template, for renderings that nobody keeps: it may read the clock where no day is given."""
        other = copy.copy(self)
        other._needs_day = False
        return other

    def render(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None,
        *,
        generation_prompt: bool = False,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a chat; with `generation_prompt`, opened for the assistant.

        kwargs: what the template is told in place of its own for the same names. Raises `TemplateRefusal`, and
        `ConfigError` where the template reads the clock and no day is given, as all that renders does.
        """
        return self._run([messages], tools, generation_prompt, marks=False, kwargs=kwargs)[0][0]

    def reads(self, name: str) -> bool:
        """Whether the name of a variable stands in the template."""
        if name not in self._names:
            whole = self._source + self._source_with_tools
            self._names[name] = re.search(rf"\b{re.escape(name)}\b", whole) is not None
        return self._names[name]

    def asks_for(self, role: str) -> bool:
        """Whether the role of a turn is compared with this one."""
        whole = self._source + self._source_with_tools
        return re.search(rf"""role['"\]]*\s*(?:==|in\b)[^%]*?['"]{re.escape(role)}['"]""", whole) is not None

    def reads_of_turns(self, key: str) -> bool:
        """Whether the template may read a key of turns, by its syntax."""
        keys = [keys_of_turns(source) for source in (self._source, self._source_with_tools)]
        return any(self.reads(key) if own is None else key in own for own in keys)

    @property
    def prompt_reads_words(self) -> bool:
        """Whether its generation prompt may depend on the words of a chat, by its syntax."""
        return prompt_reads_words(self._source) or prompt_reads_words(self._source_with_tools)

    def render_all(self, chats: Sequence[Sequence[Message]]) -> list[Marked]:
        """The texts of chats without tools. Raises `TemplateRefusal`, not saying which chat it was."""
        return [(text, []) for text in self._run(chats, None, False, marks=False)[0]]

    def render_all_marked(self, chats: Sequence[Sequence[Message]], tools: list[Any] | None = None) -> list[Marked]:
        """The texts of chats with the same tools, and what stands inside generation marks. Raises as `render_all`."""
        with _TRACKER:
            texts, spans = self._run(chats, tools, False, marks=True)
        marks = [[mark for mark in own if mark[0] < mark[1]] for own in spans]
        return list(zip(texts, marks, strict=True))

    def _run(
        self,
        chats: Sequence[Sequence[Message]],
        tools: list[Any] | None,
        generation_prompt: bool,
        *,
        marks: bool,
        kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[list[str], list[list[Span]]]:
        source = self._source if tools is None else self._source_with_tools
        if self._has_exceeded:
            raise TemplateExceeds(self.name)
        try:
            return bounds.within_bounds(
                lambda: self._render(
                    conversations=[_in_parts(chat) for chat in chats] if self._wants_parts else chats,  # type: ignore[arg-type]
                    tools=tools,
                    chat_template=("" if marks else _UNTRACKED) + (_WITHOUT_CLOCK if self._needs_day else "") + source,
                    return_assistant_tokens_mask=marks,
                    add_generation_prompt=generation_prompt,
                    **(self._variables | dict(kwargs or {})),
                ),
                bounds.SECONDS,
            )  # type: ignore[return-value]
        except bounds.Exceeded:
            if len(chats) == 1:  # of several, each is rendered alone next, which tells the one
                self._has_exceeded.append(self.name)
            raise TemplateExceeds(self.name) from None
        except Exception as error:  # a template is a program: anything can come out of it
            if self._needs_day and str(error) == _CLOCK_IS_READ:
                today = datetime.date.today().isoformat()
                raise ConfigError(
                    f"{self.name} reads the clock, so tomorrow the same command would give other tokens; say which day"
                    f" it is, as in --template-date {today}"
                ) from None
            turns = [(number, turn) for chat in chats for number, turn in enumerate(chat)]
            bare = next((one for one in turns if one[1].get("content") is None), None)
            raise TemplateRefusal(self.name, error, bare) from None

    def _writes_content(self, *, in_parts: bool = False) -> bool:
        """Whether what a user says is written; templates of models that see write only contents in parts."""
        told: list[Message] = [{"role": "user", "content": "Is it?"}]
        try:
            return "Is it?" in self.render(_in_parts(told) if in_parts else told, None)
        except TemplateRefusal:
            return False

    def _check_syntax(self) -> None:
        from jinja2 import TemplateSyntaxError  # noqa: PLC0415 - comes with transformers' templates

        for source in (self._source, self._source_with_tools):
            try:
                self._render(conversations=[], chat_template=source)
            except TemplateSyntaxError as error:
                raise ConfigError(f"{self.name}, line {error.lineno}: not valid Jinja ({error.message})") from None


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    """Turns whose contents are each a list of one part of text."""
    return [
        turn | {"content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn.get("content"), str)
        else turn
        for turn in messages
    ]


def _sources(tokenizer: TextTokenizer, path: Path | None) -> tuple[str, str]:
    """The template for chats without and with tools."""
    if path is not None:
        source = _read(path)
        return _of_json(source, path) if source.lstrip().startswith(("{", '"')) else (source, source)
    own = tokenizer.whole.chat_template
    if not own:
        raise ConfigError(f"{tokenizer.name} has no chat template; give one with --chat-template FILE")
    return _by_purpose(own, tokenizer.name)


def _read(path: Path) -> str:
    """The text of a template's file. Raises `ConfigError` for a file that is something else."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"--chat-template {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content[:2]
        what = "it is UTF-16; save it as UTF-8" if is_wide else "not UTF-8"
        raise ConfigError(f"--chat-template {path}: {what}") from None
    start = text.lstrip()[:100].lower()
    what = ""
    if not start:
        what = "it is empty; a Jinja template is needed"
    elif "\0" in text[:2]:
        what = "it is UTF-16; save it as UTF-8"
    elif start.startswith("version https://git-lfs"):
        what = "it is a pointer of Git LFS, not the file itself; git lfs pull fetches that"
    elif start.startswith(("<!doctype html", "<html")):
        what = "it is an HTML page, not a Jinja template; a site's raw link gives the file itself"
    if what:
        raise ConfigError(f"--chat-template {path}: {what}")
    return text


def _as_of(date: str, source: str, name: str) -> str:
    """A template that reads a given day for the clock. Raises `ConfigError` where it asks in a way not understood."""
    day = datetime.datetime.fromisoformat(date)
    fixed = _CLOCK.sub(lambda match: json.dumps(day.strftime(match[2])), source)
    if "strftime_now(" in fixed.replace(" ", ""):
        raise ConfigError(f"--template-date: {name} asks for the time by a format that is no plain text")
    return fixed


def _of_json(text: str, path: Path) -> tuple[str, str]:
    """The templates of a chat_template.json, or a tokenizer_config.json; a template as JSON text is one itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text, text  # a template begins with a brace, too
    if isinstance(value, str):
        return value, value
    own = value.get("chat_template") if isinstance(value, dict) else None
    if isinstance(own, list) and all(isinstance(one, dict) for one in own):
        own = {str(one.get("name")): one.get("template") for one in own}
    if not isinstance(own, str | dict) or not own:
        raise ConfigError(f"--chat-template {path}: it is JSON without a chat_template; a Jinja template is needed")
    return _by_purpose(own, f"--chat-template {path}")


def _by_purpose(own: str | dict[str, Any], where: str) -> tuple[str, str]:
    if isinstance(own, str):
        return own, own
    plain = own.get("default")
    if plain is None:
        raise ConfigError(
            f"{where} has chat templates for {', '.join(sorted(own))} and no default;"
            " choose one with --chat-template FILE"
        )
    return str(plain), str(own.get("tool_use", plain))
