"""A sample → its text, with the characters that are to be trained; each chat by the template as its row tells it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pipeline.base.errors import ConfigError
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.rendered import Rendering
from pipeline.tokenizing.chats.rendering import ChatRenderer
from pipeline.tokenizing.chats.tags import OwnTags
from pipeline.tokenizing.chats.template import ChatTemplate, Marked
from pipeline.tokenizing.chats.turns.shapes import Targets
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.messages import EMPTY, REASONING, RowFault, is_blank
from pipeline.tokenizing.rows.samples import Chat, Sample, Text
from pipeline.tokenizing.tokens.own_words import OwnWords
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

_MOST_TOLD = 256

_READ = frozenset(
    ("role", "content", *REASONING, "tool_calls", "function_calls", "functions", "tools", "name", "tool_call_id")
)
"""The keys of turns that are read, or missed, whatever the template."""


class Renderer:
    """Renders the samples of one format."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate | None, format_: Format, options: TokenizeOptions
    ) -> None:
        """template: None lays pairs end to end. Raises `ConfigError` for targets that the format cannot have."""
        train_on = options.train_on or format_.default_train_on
        if format_.name == "text" and train_on != "all":
            raise ConfigError(f"--train-on {train_on}: plain text has no {train_on}; it is trained as a whole")
        if format_.name == "tree" and train_on == "all" and options.paths == "all":
            raise ConfigError(
                "--train-on all: the paths of a tree share messages, which would be trained once for each; take"
                " --train-on assistant, which trains an answer once, or --paths best"
            )
        self._trains_all = train_on == "all"
        self._allows_unsaid = options.unsaid == "allow"
        self.words = OwnWords(tokenizer, options.special_in_text)
        self._chats = None
        if template is not None:
            make = partial(ChatRenderer, tokenizer=tokenizer, train_on=train_on, options=options, words=self.words)
            self._chats = _ToldRenderers(template, make)
            self._tags = OwnTags(template, options)

    @property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools of a chat."""
        return self._chats is not None and self._chats.untold.writes_tools

    def unread_keys(self, sample: Sample) -> list[str]:
        """The keys of a chat's turns that have content, and that neither the template nor anything else reads."""
        if self._chats is None or not isinstance(sample, Chat) or sample.plain_roles is not None:
            return []
        return [
            key
            for turn in sample.messages[sample.num_shared :]
            for key, value in turn.items()
            if key not in _READ and value not in EMPTY and not self._chats.template.reads_of_turns(key)
        ]

    def together(self, samples: Sequence[Sample]) -> dict[int, Marked]:
        """What a template writes for plain chats, by their identity; nothing if it refuses one of them."""
        if self._chats is None:
            return {}
        groups: dict[ChatRenderer, list[Chat]] = {}
        for sample in samples:
            if isinstance(sample, Chat) and sample.plain_roles is not None:
                groups.setdefault(self._chats.of(sample), []).append(sample)
        return {key: text for renderer, chats in groups.items() for key, text in renderer.together(chats).items()}

    def render(self, sample: Sample, chat_text: Marked | None) -> list[Rendering]:
        """Render one sample, which may give several; chat_text: what `together` gave for it. Raises `RowFault`."""
        if isinstance(sample, Chat):
            if self._chats is None:
                raise ConfigError("a prompt of turns needs a chat template; give one with --chat-template FILE")
            if self._trains_all and sample.withholds:
                raise RowFault(
                    "contradictory_marks",
                    "the data marks turns, or parts of them, as not trained, and --train-on all trains everything;"
                    " --train-on assistant does as the marks say",
                )
            told = self._tags.settled(self._with_functions(sample, self._chats))
            chat_text = chat_text if told.messages is sample.messages else None
            sample = told
            if sample.kwargs and not self._chats.reads_all(sample):
                sample = replace(sample, notes=[*sample.notes, "kwargs_unread"])
            return self._chats.of(sample).render(sample, chat_text)
        if isinstance(sample, Text):
            notes: list[str] = []
            text = self.words.look(sample.text, notes)
            return [Rendering(text=text, targets=None, prompt=sample.text, notes=notes)]
        notes = list(sample.notes)
        text = self.words.look(sample.prompt + sample.completion, notes)
        begin, end = len(sample.prompt), len(text)
        targets: Targets | None = None if self._trains_all else [("answer", (begin, end))]
        rendering = Rendering(text=text, targets=targets, prompt=sample.prompt, notes=notes)
        rendering.parts = lambda: [("prompt", (0, begin)), ("answer", (begin, end))]
        return [rendering]

    def _with_functions(self, chat: Chat, chats: _ToldRenderers) -> Chat:
        """A chat, noting tools in a turn, under a key that the template does not read. Raises `RowFault`."""
        if chat.plain_roles is not None:
            return chat
        keys = [key for key in ("functions", "tools") if not chats.template.reads_of_turns(key)]
        for number, turn in enumerate(chat.messages):
            key = next((key for key in keys if not is_blank(turn.get(key))), None)
            if key is None:
                continue
            if self._allows_unsaid:
                return replace(chat, notes=[*chat.notes, "unsaid_tools"])
            raise RowFault(
                "template_mismatch",
                f"turn {number} ({turn['role']}): the template does not read its {key}; give them in a column of"
                " tools (--map tools=COLUMN), or allow it with --unsaid allow",
            )
        return chat


class _ToldRenderers:
    """A renderer for each thing that rows tell their template besides: it may do otherwise in everything."""

    def __init__(self, template: ChatTemplate, make: Callable[[ChatTemplate], ChatRenderer]) -> None:
        self.template, self._make = template, make
        self.untold = make(template)
        """For rows that tell nothing."""

        self._told: dict[str, ChatRenderer] = {}

    def of(self, chat: Chat) -> ChatRenderer:
        """The renderer for what the row of a chat tells."""
        if not chat.kwargs:
            return self.untold
        kwargs = {name: value for name, value in chat.kwargs.items() if self.template.reads(name)}
        if not kwargs:
            return self.untold
        key = json.dumps(kwargs, sort_keys=True)
        renderer = self._told.get(key)
        if renderer is None:
            renderer = self._make(self.template.told(kwargs))
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            self._told[key] = renderer
        return renderer

    def reads_all(self, chat: Chat) -> bool:
        """Whether the template reads all that the row of a chat tells."""
        return all(self.template.reads(name) for name in chat.kwargs)
