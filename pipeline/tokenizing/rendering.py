"""A sample → its text, with the characters that are to be trained, by kind."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.errors import ConfigError
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.rendering import ChatRenderer, Rendering
from pipeline.tokenizing.chats.shapes import Targets
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.own_words import OwnWords
from pipeline.tokenizing.rows.samples import Chat, Sample, Text
from pipeline.tokenizing.tokenizer import TextTokenizer


class Renderer:
    """Renders the samples of one format."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate | None, format_: Format, options: TokenizeOptions
    ) -> None:
        """template: None lays pairs end to end. Raises `ConfigError` for targets that the format cannot have."""
        train_on = options.train_on or format_.default_train_on
        if format_.name == "text" and train_on != "all":
            raise ConfigError(f"--train-on {train_on}: plain text has no {train_on}; it is trained as a whole")
        self._trains_all = train_on == "all"
        self.words = OwnWords(tokenizer, options.special_in_text)
        self._chats = ChatRenderer(tokenizer, template, train_on, options, self.words) if template else None

    @property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools of a chat."""
        return self._chats is not None and self._chats.writes_tools

    def together(self, samples: Sequence[Sample]) -> dict[int, str]:
        """What a template writes for plain chats, by their identity; nothing if it refuses one of them."""
        return {} if self._chats is None else self._chats.together(samples)

    def render(self, sample: Sample, chat_text: str | None) -> list[Rendering]:
        """Render one sample, which may give several; chat_text: what `together` gave for it. Raises `RowFault`."""
        if isinstance(sample, Chat):
            if self._chats is None:
                raise ConfigError("a prompt of turns needs a chat template; give one with --chat-template FILE")
            return self._chats.render(sample, chat_text)
        if isinstance(sample, Text):
            notes: list[str] = []
            text = self.words.look(sample.text, notes)
            return [Rendering(text=text, targets=None, prompt=sample.text, notes=notes)]
        notes = list(sample.notes)
        text = self.words.look(sample.prompt + sample.completion, notes)
        targets: Targets | None = None if self._trains_all else [("answer", (len(sample.prompt), len(text)))]
        return [Rendering(text=text, targets=targets, prompt=sample.prompt, notes=notes)]
