"""The source of a packed dataset, opened as it was when it was packed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import ConfigError, DataError
from pipeline.format.identity import CHAT_TEMPLATE, TOKENIZER, NamedHash
from pipeline.format.manifest import PackManifest
from pipeline.format.options import PackOptions
from pipeline.reading.columns import MissingColumn, Selection
from pipeline.reading.input_rows import InputRows, open_inputs
from pipeline.reading.inputs import Input, resolve
from pipeline.reading.workspace import Workspace
from pipeline.tokenizing.for_packing import tokenize_inputs
from pipeline.tokenizing.tokenization import Tokenization, load_tokenization
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer
from pipeline.verifying.account import Rules
from pipeline.verifying.splits import Source


@dataclass(frozen=True, kw_only=True)
class SourceNames:
    """What a dataset is compared with, as the user names it."""

    inputs: tuple[str, ...]
    tokenizer: str | TextTokenizer | None
    chat_template: Path | None

    @staticmethod
    def of(
        source: str | Path | Iterable[str | Path],
        tokenizer: str | Path | TextTokenizer | None,
        chat_template: str | Path | None,
    ) -> SourceNames:
        """The names as they were given. Raises `ConfigError` for those that have no effect."""
        inputs = (str(source),) if isinstance(source, str | Path) else tuple(map(str, source))
        for flag, value in (("tokenizer", tokenizer), ("chat-template", chat_template)):
            if value is not None and not inputs:
                raise ConfigError(f"--{flag} has no effect without --source")
        return SourceNames(
            inputs=inputs,
            tokenizer=str(tokenizer) if isinstance(tokenizer, Path) else tokenizer,
            chat_template=None if chat_template is None else Path(chat_template),
        )


def open_source(manifest: PackManifest, names: SourceNames, work: Workspace) -> Source:
    """Open the inputs, tokenised again if they were raw.

    Raises `ConfigError` if tokenizer or template are not those that were used, `DataError` for what cannot be read.
    """
    config = manifest.config
    tokenization = _tokenization(manifest, names)
    inputs = resolve(names.inputs, config)
    work.staging.open()
    if tokenization is None:
        rows, tally = _open_tokens(inputs, config, work), None
    else:
        tokenized = tokenize_inputs(inputs, tokenization, work)
        rows, tally = tokenized.rows, tokenized.tally.entry
    rules = Rules(
        max_length=config.max_length,
        overlong=config.overlong,
        cuts_stream=manifest.cuts_stream,
        keep_untrainable=config.keep_untrainable,
    )
    return Source(splits=rows.splits, tells_sources=rows.tells_sources, rules=rules, tally=tally)


def _open_tokens(inputs: list[Input], config: PackOptions, work: Workspace) -> InputRows:
    """Open inputs of tokens. Raises `DataError`, which says that tokens are needed."""
    try:
        return open_inputs(inputs, Selection(names=config.column, unpack=config.unpack), work)
    except MissingColumn as error:
        raise DataError(f"{error.fault}; the dataset was packed from tokens: give those as --source") from None


def _tokenization(manifest: PackManifest, names: SourceNames) -> Tokenization | None:
    """How raw inputs were tokenised; None if the dataset was packed from tokens."""
    options = manifest.config.tokenize
    if options is None:
        flag = "tokenizer" if names.tokenizer else "chat-template" if names.chat_template else None
        if flag is not None:
            raise ConfigError(f"the dataset was packed from tokens: give those as --source, without --{flag}")
        return None
    if names.tokenizer is None:
        known = manifest.tokenizer
        name = f" ({known.name})" if isinstance(known, NamedHash) else ""
        raise ConfigError(
            f"the dataset was packed from raw rows: to compare them, give --tokenizer{name}"
            " and, if one was used, --chat-template"
        )
    tokenization = load_tokenization(names.tokenizer, names.chat_template, options)
    for key in (TOKENIZER, CHAT_TEMPLATE):
        entries = [tokenization.origin.get(key), manifest.identity({}).origin.get(key)]
        if len({entry and entry.xxh3_128 for entry in entries}) > 1:
            now, then = (f"{entry.name} ({entry.xxh3_128[:8]})" if entry else "none" for entry in entries)
            raise ConfigError(f"--source: the {key.replace('_', ' ')} is {now}, but it was packed with {then}")
    return tokenization
