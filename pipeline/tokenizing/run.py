"""A run of `tokenize`, from raw rows to a published dataset."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from msgspec import UNSET

from pipeline.base.options import RunOptions
from pipeline.base.progress import ProgressCallback
from pipeline.base.storage import FileFacts, make_folder
from pipeline.format.dataset_files import path_in_dataset
from pipeline.format.identity import CHAT_TEMPLATE, SINGLE, TOKENIZED, TOKENIZER, Identity
from pipeline.format.manifest import TokenizeConfig, TokenizeManifest
from pipeline.format.options import InputOptions, TokenizeOptions
from pipeline.format.records import TokenizedSplit
from pipeline.publishing.finishing import finish
from pipeline.publishing.target import check_place, place_of, publication_at
from pipeline.reading.content import Growth, content_hashes, growth_of, input_entries, refuse_other_options
from pipeline.reading.inputs import Input, local_folders, resolve, shown_files
from pipeline.reading.workspace import Workspace, cache_of, engine_of
from pipeline.tokenizing.shard import TokenizedShard
from pipeline.tokenizing.shards import RawSplit, ShardLayout, dataset_schema, open_raw_inputs, write_shards
from pipeline.tokenizing.tally import DROPPED, RowTally, warn_of_rows, write_dropped
from pipeline.tokenizing.tokenization import Tokenization, load_tokenization
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizeResult:
    """What a run of `tokenize` gave."""

    status: Literal["tokenized", "up_to_date"]
    output: str | Path
    manifest: TokenizeManifest
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _ShardFacts(FileFacts):
    """What is known of a published shard."""

    samples: int
    tokens: int
    targets: int


@dataclass(frozen=True, kw_only=True)
class _WrittenSplit:
    """A split of the input, tokenised."""

    name: str
    shards: Sequence[TokenizedShard]
    tally: RowTally
    rows_of_files: Sequence[int]


def tokenize(
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    tokenizer: str | Path | TextTokenizer,
    options: TokenizeOptions = TokenizeOptions(),
    *,
    chat_template: str | Path | None = None,
    part: InputOptions = InputOptions(),
    overwrite: bool = False,
    append: bool = False,
    versioned: bool = False,
    keep: int | None = None,
    run: RunOptions = RunOptions(),
    progress: ProgressCallback | None = None,
) -> TokenizeResult:
    """Turn raw rows into a published dataset of tokens and targets, or find that it was done before.

    inputs: directories, files, quoted globs, URLs or Hub ids, one or several; output: the directory to be published, or
    an s3:// URL; tokenizer: a directory, a tokenizer.json, a Hub id, or what `load_tokenizer` gave; chat_template: a
    Jinja file, None for the tokenizer's own; part: which part of the inputs is read; overwrite, append, versioned,
    keep: as of `pack`; progress: is called as the run goes on.

    After a storage fault or an interruption finished work stays beside the output, and the same call takes it up; after
    any other error nothing is left. Raises `ConfigError`, `DataError`, `StorageError` and `BusyError`, each with one
    message for the user.
    """
    started = time.monotonic()
    tokenization = load_tokenization(tokenizer, chat_template, options)
    sources = resolve(inputs, part)
    place = place_of(output, run, overwrite=overwrite, append=append, versioned=versioned, keep=keep)
    check_place(place, shown_files(sources), local_folders(sources), overwrite=overwrite, append=append)
    with cache_of(run) as cache:
        with engine_of(run) as engine:
            digests = content_hashes(sources, cache, engine, progress)
        growth = growth_of(sources, digests, place.there(TOKENIZED) if append else None, place.name)
        config, origin = TokenizeConfig(**vars(options), **vars(part)), tokenization.origin
        identity = Identity(kind=TOKENIZED, config=config, settings={}, batches=growth.batches, origin=origin)
        refuse_other_options(growth, identity, place.name)
        with publication_at(place, identity, overwrite, growth.there, progress) as held, engine_of(run) as engine:
            if isinstance(held.existing, TokenizeManifest):
                return _result("up_to_date", place.folder(identity.run_id, output), held.existing, started)
            work = Workspace(engine, cache, held.staging, progress)
            raw = open_raw_inputs(list(growth.new), tokenization, cache)
            schema = dataset_schema(raw, options)
            splits = [_write_split(split, schema, identity.run_id, tokenization, work, growth) for split in raw]
            before = place.before(growth.there, held.staging) if options.on_error == "drop" else None
            files = _files(splits, work.staging.dataset, before, is_listed=options.on_error == "drop")
            cache.require_unchanged()
            manifest = finish(
                work.staging.dataset,
                _manifest(identity, growth.new, splits),
                schema,
                {split.name: [shard.path.name for shard in split.shards] for split in splits},
                files,
                part.split,
                place.base(growth.there),
            )
    warn_of_rows(RowTally.total(split.tally for split in splits), are_listed=options.on_error == "drop")
    return _result("tokenized", place.folder(identity.run_id, output), manifest, started)


def _write_split(
    split: RawSplit, schema: pa.Schema, run_id: str, tokenization: Tokenization, work: Workspace, growth: Growth
) -> _WrittenSplit:
    folder = work.staging.dataset / split.name
    make_folder(folder)
    prefix = f"data-{run_id[:8]}-s"
    first_row = growth.rows.get(split.name, 0)
    layout = ShardLayout(folder=folder, prefix=prefix, schema=schema, for_packing=False, first_row=first_row)
    name = f"tokenising {split.name}".rstrip()
    with work.stage(name, sum(file.file.size() for file in split.files), "B") as advance:
        shards = write_shards(split, layout, tokenization, work, advance)
    tally = RowTally.total(shard.tally for shard in shards)
    return _WrittenSplit(name=split.name, shards=shards, tally=tally, rows_of_files=split.rows_of_files(tally))


def _files(
    splits: Sequence[_WrittenSplit], folder: Path, before: Path | None, *, is_listed: bool
) -> dict[str, FileFacts]:
    """The files that are in the dataset's folder so far, but for shards that were there before.

    before: the folder of what is appended to; is_listed: whether rows left out are listed.
    """
    files: dict[str, FileFacts] = {
        path_in_dataset(split.name, shard.path.name): _facts(shard) for split in splits for shard in split.shards
    }
    if is_listed:
        lists = [before / DROPPED] if before else []
        dropped = [shard.dropped for split in splits for shard in split.shards]
        files[DROPPED] = write_dropped([*lists, *dropped], folder)
    return files


def _manifest(identity: Identity, sources: Sequence[Input], splits: Sequence[_WrittenSplit]) -> TokenizeManifest:
    """The manifest of a run over these inputs, but for its files and what seals it."""
    rows = {split.name: split.rows_of_files for split in splits}
    assert isinstance(identity.config, TokenizeConfig)
    has_splits = splits[0].name != SINGLE
    return TokenizeManifest(
        format_version=identity.format_version,
        algorithm_version=identity.algorithm_version,
        run_id=identity.run_id,
        config=identity.config,
        inputs=input_entries(sources, rows, identity.batches[-1]),
        tokenizer=identity.origin[TOKENIZER],
        chat_template=identity.origin.get(CHAT_TEMPLATE),
        counts=RowTally.total(split.tally for split in splits).entry,
        files={},
        own_hash="",
        splits={split.name: TokenizedSplit(counts=split.tally.entry) for split in splits} if has_splits else UNSET,
    )


def _facts(shard: TokenizedShard) -> _ShardFacts:
    tally = shard.tally
    return _ShardFacts(**asdict(shard.facts), samples=tally.samples, tokens=tally.tokens, targets=tally.targets)


def _result(
    status: Literal["tokenized", "up_to_date"], output: str | Path, manifest: TokenizeManifest, started: float
) -> TokenizeResult:
    return TokenizeResult(status=status, output=output, manifest=manifest, seconds=time.monotonic() - started)
