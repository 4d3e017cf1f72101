"""The source of a packed dataset, opened as it was when it was packed."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base.errors import ConfigError, DataError
from pipeline.base.staging import Staging
from pipeline.format.identity import CHAT_TEMPLATE, SINGLE, TOKENIZER, NamedHash, content_of
from pipeline.format.manifest import PackManifest, batches_of
from pipeline.format.options import PackOptions
from pipeline.format.records import Tally
from pipeline.reading.columns import MissingColumn, Selection
from pipeline.reading.content import content_hashes
from pipeline.reading.files import InputFile
from pipeline.reading.input_rows import InputRows, open_inputs
from pipeline.reading.inputs import Input, resolve
from pipeline.reading.windows import SplitRows
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


def open_source(manifest: PackManifest, names: SourceNames, work: Workspace) -> Source | str:
    """Open the inputs, tokenised again if they were raw; or say how they are others than those that were packed.

    Raises `ConfigError` if tokenizer or template are not those that were used, `DataError` for what cannot be read.
    """
    config = manifest.config
    tokenization = _tokenization(manifest, names)
    inputs = resolve(names.inputs, config)
    batches = [inputs]
    if isinstance(manifest.appends, list):
        found = _in_order(inputs, manifest, work)
        if isinstance(found, str):
            return found
        batches = found
    opened: list[InputRows] = []
    tallies: list[Tally] = []
    rows_before: Counter[str] = Counter()
    for number, batch in enumerate(batches):
        own = replace(work, staging=Staging(work.staging.folder / str(number)))
        own.staging.open()
        if tokenization is None:
            opened.append(_open_tokens(batch, config, own))
        else:
            tokenized = tokenize_inputs(batch, tokenization, own, rows_before)
            opened.append(tokenized.rows)
            tallies.append(tokenized.tally.entry)
            rows_before.update({split: sum(rows) for split, rows in tokenized.rows.rows_of_files.items()})
    splits = {split: [one.splits[split] for one in opened] for split in opened[0].splits}
    rules = Rules(
        max_length=config.max_length,
        overlong=config.overlong,
        cuts_stream=manifest.cuts_stream,
        keep_untrainable=config.keep_untrainable,
    )
    return Source(
        splits={split: SplitRows([file for part in parts for file in part.files]) for split, parts in splits.items()},
        batches=splits,
        tells_sources=all(one.tells_sources for one in opened),
        rules=rules,
        tally=functools.reduce(operator.add, tallies) if tallies else None,
    )


def _in_order(inputs: list[Input], manifest: PackManifest, work: Workspace) -> list[list[Input]] | str:
    """The files of inputs, known by their content, in the order in which they were packed, run by run.

    Or, in words, how they are others.
    """
    digests = content_hashes(inputs, work.cache, work.engine, work.progress)
    left: dict[tuple[str, ...], list[InputFile]] = {}
    for entry in inputs:
        for split, files in entry.splits.items():
            for file in files:
                left.setdefault(content_of(digests[file], split), []).append(file)
    batches = []
    for batch in batches_of(manifest):
        splits: dict[str, list[InputFile]] = {split: [] for split in inputs[0].splits}
        for wanted in batch:
            if not left.get(wanted.content):
                return f"source: {wanted.name} ({wanted.xxh3_128[:8]}), which was packed, is not among its files"
            splits[wanted.split or SINGLE].append(left[wanted.content].pop(0))
        batches.append([replace(inputs[0], manifest=None, splits={s: tuple(files) for s, files in splits.items()})])
    more = [file for files in left.values() for file in files]
    return f"source: {more[0].shown} was not packed" if more else batches


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
