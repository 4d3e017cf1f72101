"""What all files of a run share when they are tokenised: tokenizer, template, options."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.format.identity import CHAT_TEMPLATE, TOKENIZER, NamedHash, Origin
from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import RawFile
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.encoding import Encoder
from pipeline.tokenizing.rows.choice import choose_format
from pipeline.tokenizing.rows.detection import FirstRows
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.messages import CALLERS, RESULTS
from pipeline.tokenizing.rows.tree_columns import tree_format
from pipeline.tokenizing.rows.turn_reader import TurnReader
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer, load_tokenizer

log = logging.getLogger(__name__)

_OF_TEMPLATES = (
    *("history", "reasoning", "reasoning_inline", "tool_calls", "inserted", "turn_end", "unsaid"),
    *("template_kwargs", "template_date"),
)
"""Options that have no effect where no chat template renders."""


class Tokenization:
    """A tokenizer and a chat template, loaded, with the options that say how they are used."""

    def __init__(
        self, tokenizer: TextTokenizer, template: Path | None, options: TokenizeOptions, *, tells: bool = True
    ) -> None:
        """template: a Jinja file, None for the tokenizer's own; tells: whether to log how files are read.

        Raises `ConfigError` for a template that cannot be used.
        """
        self.tokenizer = tokenizer
        self.options = options
        self._template_was_given = template is not None
        has_template = template is not None or self.tokenizer.whole.chat_template
        self.template = (
            ChatTemplate(self.tokenizer, template, options.template_kwargs, options.template_date)
            if has_template
            else None
        )
        self._reader = turn_reader(options, self.template)
        self._template_file = template.name if template else None
        if options.append_eos and self.tokenizer.eos_id is None:
            raise ConfigError(
                f"--append-eos: {self.tokenizer.name} names no end token; use a tokenizer directory whose"
                " tokenizer_config.json has an eos_token"
            )
        self._encoders: dict[tuple[object, ...], Encoder] = {}
        self._tells = tells
        self._known: set[tuple[object, ...]] = set()  # columns and formats of which it was said how they are read
        if tells:
            self._tell_guesses()

    @property
    def origin(self) -> Origin:
        """The tokenizer and the template, if there is one."""
        own = self.tokenizer
        origin = {TOKENIZER: NamedHash(name=own.name, xxh3_128=own.content_hash)}
        if self.template is not None:
            name = self._template_file or own.name
            origin[CHAT_TEMPLATE] = NamedHash(name=name, xxh3_128=self.template.content_hash)
        return origin

    def formats_of(self, files: Sequence[RawFile]) -> list[Format]:
        """How the rows of each file are read; says so once for each schema.

        Raises `DataError` where columns do not say, `ConfigError` for options that a format, or every file, has no use
        for.
        """
        formats = [self._format_of(file) for file in files]
        for file, format_ in zip(files, formats, strict=True):
            schema = (file.columns, format_.key)
            if self._tells and schema not in self._known:
                self._tell(file, format_)
            self._known.add(schema)
        if files and not any(map(self._template_for, formats)):
            self._refuse_without_template(files[0].where)
        if self.options.paths != "all" and files and all(format_.name != "tree" for format_ in formats):
            raise ConfigError(f"--paths has no effect: {files[0].where} holds no dialogue trees, and nor do all inputs")
        return formats

    def _refuse_without_template(self, where: str) -> None:
        """Raise `ConfigError` for options of rendering, where nothing is rendered."""
        given = [name for name in self.options.changed() if name in _OF_TEMPLATES]
        for name in (["chat_template"] if self._template_was_given else []) + given:
            what = "plain text" if self.template else "pairs or plain text, and there is no chat template"
            raise ConfigError(f"--{name.replace('_', '-')} has no effect: {where} holds {what}, and so do all inputs")

    def _format_of(self, file: RawFile) -> Format:
        options = self.options
        format_ = tree_format(file, options, self._reader) or choose_format(
            file.columns,
            options.format,
            options.map,
            file.where,
            more_later=file.is_open_ended,
            first=FirstRows(look=file.first_rows, reader=self._reader),
        )
        if format_.name in ("messages", "tree") and self._template_for(format_) is None:
            raise ConfigError(
                f"{file.where} holds chats, and {self.tokenizer.name} has no chat template;"
                " give one with --chat-template FILE"
            )
        if self._template_for(format_) is None:
            format_ = format_.without_template()
        self.encoder(format_)
        return format_

    def encoder(self, format_: Format) -> Encoder:
        """What encodes rows of a format. Raises `ConfigError` for targets that the format cannot have."""
        key = format_.key
        if key not in self._encoders:
            template = self._template_for(format_)
            self._encoders[key] = Encoder(self.tokenizer, template, format_, self.options)
        return self._encoders[key]

    def _template_for(self, format_: Format) -> ChatTemplate | None:
        return None if format_.name == "text" else self.template

    def _tell(self, file: RawFile, format_: Format) -> None:
        """Say how a file is read."""
        template = self._template_for(format_)
        read = [
            name if name == column else f"{name} from {column}"
            for name, column in format_.columns.items()
            if name not in format_.unseen
        ]
        if "tools" in {*format_.columns} - {*format_.unseen} and template and not self.encoder(format_).writes_tools:
            log.warning("%s: %s does not write the tools of chats (column tools)", file.where, template.name)
        log.info(
            "%s: format %s (%s), %s, trained on %s",
            file.where,
            format_.name,
            ", ".join(read) + (", the completion as tool calls" if format_.completes_with_calls else ""),
            f"rendered by {template.name}" if template else "without a chat template",
            self.options.train_on or format_.default_train_on,
        )

    def _tell_guesses(self) -> None:
        """Say what the user may want otherwise."""
        own = self.tokenizer
        if self.options.append_eos and own.eos_is_inferred:
            log.info("%s names no end token; its only special token, %s, is taken", own.name, own.eos_text)
        if self.template is not None:
            if self.options.template_date and not self.template.may_read_clock:
                log.warning("--template-date has no effect: %s does not read the clock", self.template.name)
            ends = ["--append-eos"] if self.options.append_eos else []
            ends += [] if self.options.turn_end == "error" else [f"--turn-end {self.options.turn_end}"]
            if ends and self.template.has_marks and self.options.train_on != "all":
                log.warning(
                    "%s has no effect on chats: what the {%% generation %%} marks of %s go round is trained alone, so"
                    " its ends, too, have to be inside them",
                    ends[0],
                    self.template.name,
                )
            for name in self.options.template_kwargs:
                if not self.template.reads(name):
                    log.warning("--template-kwargs %s has no effect: %s does not read it", name, self.template.name)


def turn_reader(options: TokenizeOptions, template: ChatTemplate | None) -> TurnReader:
    """How turns are written, by `--keys` and `--roles`. Raises `ConfigError` for a speaker with two roles.

    Where a template asks for the role `tool`, the other names of it that it does not ask for are read as `tool`.
    """
    speakers: dict[str, str] = {}
    for role, names in options.roles.items():
        for name in names.split("|"):
            if speakers.setdefault(name, role) != role:
                raise ConfigError(f"--roles: {name} cannot be {speakers[name]} and {role}")
    unknown: list[str] = []
    if template is not None and template.asks_for("tool"):
        unknown = [role for role in RESULTS if not template.asks_for(role)]
    opening, closing = options.reasoning_marks.split(",")
    return TurnReader(
        role_key=options.keys.get("role"),
        content_key=options.keys.get("content"),
        speakers=speakers,
        reasoning_marks=(opening, closing),
        read_otherwise=frozenset((*CALLERS, *unknown)),
    )


def load_tokenization(
    tokenizer: str | Path | TextTokenizer,
    template: str | Path | None,
    options: TokenizeOptions,
    *,
    tells: bool = True,
) -> Tokenization:
    """Load a tokenizer, unless it is loaded, and a chat template.

    tokenizer: a directory, a tokenizer.json or a Hub id; template and tells: see `Tokenization`.
    Raises `ConfigError` for what cannot be loaded, `BusyError` where the Hub is out of reach.
    """
    loaded = tokenizer if isinstance(tokenizer, TextTokenizer) else load_tokenizer(str(tokenizer))
    return Tokenization(loaded, None if template is None else Path(template), options, tells=tells)
