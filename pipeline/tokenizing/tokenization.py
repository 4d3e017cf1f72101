"""What all files of a run share when they are tokenised: tokenizer, template, options."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import BusyError, ConfigError
from pipeline.reading.decoding.raw import RawFile
from pipeline.tokenizing.chats.formats import Format, choose_format
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.encoding import Encoder
from pipeline.tokenizing.options import TokenizeOptions
from pipeline.tokenizing.tokenizer import TextTokenizer, load_tokenizer

log = logging.getLogger(__name__)


class Tokenization:
    """A tokenizer and a chat template, loaded, with the options that say how they are used."""

    def __init__(self, tokenizer: str, template: Path | None, options: TokenizeOptions) -> None:
        """tokenizer: path or Hub id; template: of a Jinja file, None for the tokenizer's own.

        Raises `ConfigError` or `BusyError` for what cannot be loaded.
        """
        self.tokenizer: TextTokenizer = load_tokenizer(tokenizer)
        self.options = options
        self._template_was_given = template is not None
        has_template = template is not None or self.tokenizer.whole.chat_template
        self.template = ChatTemplate(self.tokenizer, template) if has_template else None
        self._template_file = template.name if template else None
        if options.append_eos and self.tokenizer.eos_id is None:
            raise ConfigError(
                f"--append-eos: {self.tokenizer.name} names no end token; use a tokenizer directory whose"
                " tokenizer_config.json has an eos_token"
            )
        self._day = today() if self.template is not None and self.template.is_dated else None
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._told: set[tuple[str, ...]] = set()
        self._tell_guesses()

    def describe(self) -> dict[str, Any]:
        """Names and content hashes, as they stand in manifests."""
        template = self.template and {
            "name": self._template_file or self.tokenizer.name,
            "xxh3_128": self.template.content_hash,
        }
        return {
            "tokenizer": {"name": self.tokenizer.name, "xxh3_128": self.tokenizer.content_hash},
            "chat_template": template,
        }

    def config(self) -> dict[str, Any]:
        """The options that decide tokens and targets; with the day, if the template writes it."""
        return self.options.to_json() | ({"rendered_on": self._day} if self._day else {})

    def format_of(self, file: RawFile) -> Format:
        """How the rows of a file are read.

        Raises `DataError` where its columns do not say, `ConfigError` for targets that its format cannot have.
        """
        options = self.options
        format_ = choose_format(file.columns, options.format, options.map, file.where, more_later=file.more_later)
        template = self._template_for(format_)
        if format_.name == "messages" and template is None:
            raise ConfigError(
                f"{file.where} holds chats, and {self.tokenizer.name} has no chat template;"
                " give one with --chat-template FILE"
            )
        self.encoder(format_)
        self._tell(file, format_, template)
        return format_

    def encoder(self, format_: Format) -> Encoder:
        """What encodes rows of a format."""
        key = (format_.name, *format_.columns.items())
        if key not in self._encoders:
            template = self._template_for(format_)
            self._encoders[key] = Encoder(self.tokenizer, template, format_, self.options)
        return self._encoders[key]

    def _template_for(self, format_: Format) -> ChatTemplate | None:
        return None if format_.name == "text" else self.template

    def _tell(self, file: RawFile, format_: Format, template: ChatTemplate | None) -> None:
        """Say once for each schema how it is read."""
        if file.columns in self._told:
            return
        self._told.add(file.columns)
        read = [
            name if name == column else f"{name} from {column}"
            for name, column in format_.columns.items()
            if column in file.columns
        ]
        unread = [name for name in file.columns if name not in format_.columns.values()]
        log.info(
            "%s: format %s (%s), %s, trained on %s%s",
            file.where,
            format_.name,
            ", ".join(read),
            f"rendered by {template.name}" if template else "without a chat template",
            self.options.train_on or format_.default_train_on,
            f"; not read: {', '.join(unread)}" if unread else "",
        )
        if template is None and self._template_was_given:
            log.warning("--chat-template has no effect on %s, which holds plain text", file.where)

    def _tell_guesses(self) -> None:
        """Say what the user may want otherwise."""
        own = self.tokenizer
        if self.options.append_eos and own.eos_is_inferred:
            log.info("%s names no end token; its only special token, %s, is taken", own.name, own.eos_text)
        if self._day and self.template:
            log.warning("%s writes the day: rendered as of %s, tomorrow otherwise", self.template.name, self._day)

    def require_same_day(self) -> None:
        """Raise `BusyError` if midnight passed while a template wrote the day."""
        if self._day and self._day != today():
            raise BusyError("the chat template writes the day, and midnight has passed since it began; run again")


def today() -> str:
    """The day that templates write, as 2026-11-20."""
    return datetime.date.today().isoformat()


def from_manifest(config: Mapping[str, Any], tokenizer: str, template: Path | None) -> Tokenization:
    """The tokenization that a manifest's config tells of."""
    stored = {key: value for key, value in config.items() if key != "rendered_on"}
    return Tokenization(tokenizer, template, TokenizeOptions(**stored))
