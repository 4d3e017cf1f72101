"""Is a dataset what its manifest says, and does a packed one hold every token of its source?"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from msgspec import UNSET

from pipeline.base.digests import canonical_json
from pipeline.base.errors import ConfigError, DataError
from pipeline.base.objects.copies import passing_copy
from pipeline.base.objects.store import is_url
from pipeline.base.options import RunOptions
from pipeline.base.progress import ProgressCallback, stage
from pipeline.base.staging import Staging
from pipeline.base.storage import read_bytes
from pipeline.format.appends import shards_of
from pipeline.format.identity import ALGORITHM_VERSION, FORMAT_VERSION, SINGLE
from pipeline.format.manifest import (
    MANIFEST,
    Manifest,
    ManifestError,
    OldFormatError,
    PackManifest,
    TokenizeManifest,
    read_manifest,
    to_bytes,
)
from pipeline.reading.workspace import Workspace, cache_of, engine_of
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer
from pipeline.verifying.files import Problems, check_files
from pipeline.verifying.source import SourceNames, open_source
from pipeline.verifying.splits import Content, check_splits
from pipeline.verifying.tokenized import check_tokenized
from strategies import find

log = logging.getLogger(__name__)

_MOST_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was looked at, and what is wrong with it."""

    directory: str | Path
    problems: Problems
    """What is wrong, in words; the first 20."""

    files: int
    bytes: int
    samples: int
    packs: int
    """0 of a tokenised dataset."""

    segments: int
    """0 of a tokenised dataset."""

    tokens: int
    source: bool
    """Whether the tokens were compared with their source."""

    seconds: float

    @property
    def status(self) -> Literal["verified", "failed"]:
        """Whether everything is as it has to be."""
        return "failed" if self.problems else "verified"


def verify(
    directory: str | Path,
    *,
    source: str | Path | Iterable[str | Path] = (),
    tokenizer: str | Path | TextTokenizer | None = None,
    chat_template: str | Path | None = None,
    run: RunOptions = RunOptions(),
    progress: ProgressCallback | None = None,
) -> VerifyResult:
    """Check files and their checksums, every invariant of the format, the counts, and with a source every token.

    directory: also an s3:// URL, of which a copy is made for the time of this call; of versions, that of `latest`;
    source: the inputs that it was packed from, in their order, and none for a tokenised dataset; tokenizer,
    chat_template: for raw inputs that were tokenised as they were packed.

    What is wrong with the dataset is returned as problems. Raises `ConfigError` for a directory or a source of another
    kind, `DataError` for a source that cannot be read and for a dataset of an older release, and as `passing_copy`.
    """
    if is_url(directory):
        with passing_copy(directory, "verify", run) as folder:
            result = verify(
                folder, source=source, tokenizer=tokenizer, chat_template=chat_template, run=run, progress=progress
            )
        problems = [problem.replace(str(folder), str(directory)) for problem in result.problems]
        return replace(result, directory=str(directory), problems=problems)
    started = time.monotonic()
    directory = Path(directory)
    source_names = SourceNames.of(source, tokenizer, chat_template)
    problems, manifest = _check_manifest(directory)
    content = Content()
    if isinstance(manifest, TokenizeManifest):
        if source_names.inputs:
            way_out = "it is compared with its manifest alone: leave out --source"
            raise ConfigError(f"{directory} is a tokenised dataset; {way_out}")
        problems += check_files(directory, manifest, _shards(manifest))
        with engine_of(run) as engine, stage(progress, "verifying", _tokens_of(manifest)) as advance:
            wrong, content = check_tokenized(directory, manifest, _shards(manifest), engine, engine.monitor(advance))
        problems += wrong
    elif manifest is not None:
        problems += check_files(directory, manifest, _shards(manifest)) + _check_tally(manifest)
        wrong, content = _check_content(directory, manifest, source_names, run, progress)
        problems += wrong
    return VerifyResult(
        directory=directory,
        problems=problems[:_MOST_PROBLEMS],
        files=len(manifest.files) + 1 if manifest else 0,
        bytes=sum(entry.bytes for entry in manifest.files.values()) if manifest else 0,
        samples=content.samples,
        packs=content.packs,
        segments=content.segments,
        tokens=content.tokens,
        source=bool(source_names.inputs),
        seconds=time.monotonic() - started,
    )


def _check_content(
    directory: Path,
    manifest: PackManifest,
    source_names: SourceNames,
    run: RunOptions,
    progress: ProgressCallback | None,
) -> tuple[Problems, Content]:
    """Check the shards."""
    problems: Problems = []
    with (
        cache_of(run) as cache,
        tempfile.TemporaryDirectory(prefix="verify-") as folder,
        engine_of(run) as engine,
    ):
        work = Workspace(engine, cache, Staging(Path(folder)), progress)
        source = open_source(manifest, source_names, work) if source_names.inputs else None
        if isinstance(source, str):
            problems.append(source)
            source = None
        if source is not None and set(source.splits) != set(manifest.parts):
            packed = _listed(manifest.parts)
            problems.append(f"source: it has {_listed(source.splits)}, the packed dataset {packed}")
            source = None
        if source is not None and manifest.tokenized not in (UNSET, source.tally):
            problems.append(f"{MANIFEST}: what is said of raw rows (tokenized) is not so of the source")
        with stage(progress, "verifying", _tokens_of(manifest)) as advance:
            wrong, content = check_splits(directory, manifest, source, engine, engine.monitor(advance))
    return problems + wrong, content


def _shards(manifest: Manifest) -> dict[str, list[str]]:
    """The paths of each split's shards, in their order."""
    splits = manifest.splits if isinstance(manifest.splits, dict) else [SINGLE]
    return {split: [path for _, _, path in shards_of(manifest, split)] for split in splits}


def _tokens_of(manifest: Manifest) -> int:
    return sum(entry.tokens for entry in manifest.files.values() if isinstance(entry.tokens, int))


def _listed(splits: Iterable[str]) -> str:
    return "no splits" if list(splits) == [SINGLE] else f"the splits {', '.join(splits)}"


def _check_manifest(directory: Path) -> tuple[Problems, Manifest | None]:
    """The manifest, if it is whole and in its canonical form. Raises `DataError` for packs of an older format."""
    if not directory.is_dir():
        return [f"{directory}: no such directory"], None
    try:
        manifest = read_manifest(directory)
        content = read_bytes(directory / MANIFEST)
    except OldFormatError as error:
        raise DataError(str(error)) from None
    except (ManifestError, OSError) as error:
        return [str(error)], None
    if isinstance(manifest, TokenizeManifest) and manifest.format_version < FORMAT_VERSION:
        log.warning("of format version %d, which tells less: run_id is not compared", manifest.format_version)
        is_canonical = canonical_json(json.loads(content)) == content
        return [] if is_canonical else [f"{MANIFEST}: it is not in its canonical form"], manifest
    if manifest.format_version != FORMAT_VERSION:
        return [f"{MANIFEST}: format version {manifest.format_version} is not known to this release"], None
    if to_bytes(manifest) != content:
        return [f"{MANIFEST}: it is not in its canonical form, or says what no release of ours writes"], None
    problem = _other_run_id(manifest)
    return [problem] if problem else [], None if problem else manifest


def _other_run_id(manifest: Manifest) -> str | None:
    """Whether `run_id` is that of what decided the bytes."""
    if manifest.algorithm_version != ALGORITHM_VERSION:
        log.warning(
            "written by algorithm version %d, not %d: run_id is not compared",
            manifest.algorithm_version,
            ALGORITHM_VERSION,
        )
        return None
    if isinstance(manifest, PackManifest):
        try:
            strategy = find(manifest.config.strategy)
        except ValueError:
            log.warning("strategy %s is not installed here: run_id is not compared", manifest.config.strategy)
            return None
        identity = manifest.identity(strategy.changed(manifest.config.set))
    else:
        identity = manifest.identity()
    return None if identity.run_id == manifest.run_id else f"{MANIFEST}: run_id is not that of its config and inputs"


def _check_tally(manifest: PackManifest) -> Problems:
    """Does what is said of raw rows agree with what came in to be packed? A row left out is an empty sample."""
    tally, counts = manifest.tokenized, manifest.counts
    if tally is UNSET:
        return []
    problems = []
    for what, stated, other in (
        ("samples", tally.samples + sum(tally.dropped.values()), counts.samples_in),
        ("tokens", tally.tokens, counts.tokens_in),
        ("targets", tally.targets, counts.targets_in),
        ("targets by kind", sum(tally.targets_by_kind.values()), counts.targets_in),
        ("dropped", tally.dropped, manifest.dropped_rows),
    ):
        if stated != other:
            problems.append(f"{MANIFEST}: {what} of raw rows (tokenized) are {stated}, by what came in {other}")
    return problems
