"""A run of `pack`, from what was asked to a published dataset."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import DataError
from pipeline.base.words import counted
from pipeline.embedding.embedders import Embedder, make_embedder
from pipeline.embedding.vectors import Embedded, embed_rows
from pipeline.format import manifest as manifests
from pipeline.packing.building import build, content_hashes
from pipeline.packing.config import Chosen, PackConfig
from pipeline.packing.tasks import Planned, Run
from pipeline.publishing.publication import Staging
from pipeline.reading.files import FileCache
from pipeline.reading.input_rows import open_inputs
from pipeline.reading.inputs import Input, resolve
from pipeline.reading.windows import SplitRows, Window
from pipeline.tokenizing.for_packing import Tokenized, tokenize_inputs
from pipeline.tokenizing.report import SKIPPED, write_skipped
from pipeline.tokenizing.report import tell as tell_tokenized

if TYPE_CHECKING:
    from pipeline.tokenizing.tokenization import Tokenization

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to pack, and how to run it. Only `config` and `tokenization` decide the bytes."""

    inputs: tuple[str, ...]
    config: PackConfig
    chosen: Chosen
    num_workers: int
    cache_dir: Path
    tokenization: Tokenization | None = None
    """How to tokenise raw inputs; None for inputs that are tokenised."""

    output: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run has to tell."""

    status: str
    """packed, up to date, or planned."""

    manifest: dict[str, Any]
    seconds: float
    too_long: int = 0
    longest: int = 0


def plan_only(job: Job) -> Result:
    """What packing would give. Nothing is written but temporary files, which are removed again.

    Samples that are too long are reported, not refused.
    """
    started = time.monotonic()
    recipe = _Recipe(job)
    with (
        FileCache(job.cache_dir) as cache,
        tempfile.TemporaryDirectory(prefix="pack-dry-run-") as folder,
        LocalEngine(job.num_workers) as engine,
    ):
        run, planned = recipe.plan(cache, engine, Staging(Path(folder) / "plan", "dry-run"))
        recipe.tell(run)
        return _result("planned", run.describe(planned), planned, started)


def pack(job: Job) -> Result:
    """Pack and publish, or find that it has been done. Raises `PipelineError`; see `build`."""
    assert job.output is not None
    started = time.monotonic()
    recipe = _Recipe(job)
    manifest, is_new = build(
        recipe, recipe.inputs, job.output, cache_dir=job.cache_dir, num_workers=job.num_workers, overwrite=job.overwrite
    )
    if not is_new:
        return Result(status="up to date", manifest=manifest, seconds=time.monotonic() - started)
    assert recipe.written is not None
    run, planned = recipe.written
    recipe.tell(run)
    _tell_losses(manifest)
    return _result("packed", manifest, planned, started)


class _Recipe:
    """How a packed dataset is made."""

    def __init__(self, job: Job) -> None:
        config = job.config
        self._job = job
        self.inputs = resolve(job.inputs, split=config.split, subset=config.subset, revision=config.revision)
        self._origin = job.tokenization.describe() if job.tokenization else origin_of(self.inputs)
        wanted = job.chosen.strategy.embedding
        self._embedder = make_embedder(wanted(job.chosen.options)) if wanted else None
        if self._embedder is not None and self._embedder.model is not None:
            self._origin[manifests.EMBEDDING_MODEL] = self._embedder.model
        self._tokenized: Tokenized | None = None
        self.written: tuple[Run, Planned] | None = None
        """What was written, if it was."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "format_version": manifests.FORMAT_VERSION,
            "algorithm_version": manifests.ALGORITHM_VERSION,
            "config": self._job.config.to_json(),
            **self._origin,
        }

    def read(self, folder: Path) -> dict[str, Any]:
        return manifests.read(folder)

    def plan(
        self, cache: FileCache, engine: LocalEngine, staging: Staging, hashes: list[str] | None = None
    ) -> tuple[Run, Planned]:
        """Open the inputs, tokenised first if they are raw, and plan every window.

        hashes: of each input, where they are known.
        """
        job, origin = self._job, dict(self._origin)
        staging.open()
        if job.tokenization is None:
            beside = self._embedder.column if self._embedder else None
            opened = open_inputs(self.inputs, job.config.column, cache, engine, staging, beside)
        else:
            self._tokenized = tokenize_inputs(self.inputs, job.tokenization, cache, engine, staging)
            opened = self._tokenized.opened
            origin["skipped_rows"] = dict(sorted(self._tokenized.tally.skipped.items()))
        embed = None
        if self._embedder is not None:
            embed = partial(
                self._embed, self._embedder, hashes or content_hashes(self.inputs, cache, engine), engine, staging
            )
        run = Run(job.config, job.chosen, self.inputs, opened, origin, cache, engine, staging, embed)
        return run, run.plan()

    def _embed(
        self,
        embedder: Embedder,
        hashes: list[str],
        engine: LocalEngine,
        staging: Staging,
        splits: Mapping[str, SplitRows],
        windows: Mapping[str, Sequence[Window]],
    ) -> Embedded:
        config = self._job.config
        origin = {
            "inputs": hashes,
            "columns": dict(config.column),
            "split": config.split,
            "tokenize": config.tokenize,
            **{key: told and told["xxh3_128"] for key, told in self._origin.items()},
        }
        return embed_rows(
            embedder,
            splits,
            windows,
            origin,
            self._job.chosen.strategy,
            self._job.chosen.options,
            config.seed,
            engine,
            self._job.cache_dir,
            staging.work,
        )

    def write(
        self, cache: FileCache, engine: LocalEngine, staging: Staging, run_id: str, hashes: list[str]
    ) -> dict[str, Any]:
        run, planned = self.written = self.plan(cache, engine, staging, hashes)
        _refuse_too_long(self._job.config, planned, run)
        beside = {}
        if self._tokenized is not None and self._job.tokenization is not None:
            self._job.tokenization.require_same_day()
            if self._job.tokenization.options.on_error == "skip":
                beside[SKIPPED] = write_skipped(self._tokenized.skipped, staging.dataset)
        return run.write(planned, run_id, hashes, beside)

    def tell(self, run: Run) -> None:
        """Say what the user may not expect of the input."""
        if self._tokenized is None:
            run.tell_targets()
        else:
            tell_tokenized(self._tokenized.tally, listed=self.written is not None)


def origin_of(inputs: list[Input]) -> dict[str, Any]:
    """Tokenizer and chat template of inputs that were tokenised here, where all of them agree.

    Raises `DataError` if they were tokenised by different tokenizers.
    """
    known = [(entry.name, entry.manifest) for entry in inputs if entry.manifest is not None]
    for name, manifest in known[1:]:
        first_name, first = known[0]
        if manifest["tokenizer"]["xxh3_128"] != first["tokenizer"]["xxh3_128"]:
            raise DataError(
                f"inputs of different tokenizers cannot be packed together ({first_name}: {first['tokenizer']['name']},"
                f" {name}: {manifest['tokenizer']['name']}); tokenise them with one"
            )
    if len(known) < len(inputs):
        if known:
            unknown = next(entry.name for entry in inputs if entry.manifest is None)
            log.warning("%s does not tell its tokenizer; %s was tokenised by ours", unknown, known[0][0])
        return {}
    origin = {}
    for key in manifests.ORIGIN:
        told = [manifest[key] for _, manifest in known]
        if len({one and one["xxh3_128"] for one in told}) > 1:
            log.warning("the inputs have different chat templates, so the packed dataset names none")
        elif told and told[0]:
            origin[key] = told[0]
    return origin


def _tell_losses(manifest: dict[str, Any]) -> None:
    """Say loudly what was left out unasked."""
    losses = manifest["counts"]["dropped"]
    no_tokens = losses["empty"]["samples"] - sum(manifest.get("skipped_rows", {}).values())
    if no_tokens:
        log.warning("%s without tokens left out (empty)", counted(no_tokens, "sample"))
    if losses["no_targets"]["samples"]:
        log.warning(
            "%s (%s) without anything to train left out (no_targets); --keep-untrainable keeps them",
            counted(losses["no_targets"]["samples"], "sample"),
            counted(losses["no_targets"]["tokens"], "token"),
        )
    if not manifest["packs"]:
        log.warning("there was nothing to pack; the output is a valid, empty dataset")


def _refuse_too_long(config: PackConfig, planned: Planned, run: Run) -> None:
    if config.overlong != "error":
        return
    found = [
        (summary.too_long, split, window)
        for split, windows in planned.items()
        for window, summary in windows
        if summary.too_long.samples
    ]
    if found:
        worst, split, window = max(found, key=lambda entry: entry[0].longest)
        where = run.splits[split].locate(window.first_row + worst.longest_row)
        total = sum(entry.samples for entry, _, _ in found)
        raise DataError(
            f"longer than --max-length {config.max_length}: {counted(total, 'sample')};"
            f" the longest has {worst.longest:,} tokens ({where}). Choose --overlong drop (leave them out),"
            " truncate (keep their beginning) or split (cut them into several), or a larger --max-length"
        )


def _result(status: str, manifest: dict[str, Any], planned: Planned, started: float) -> Result:
    long = [summary.too_long for windows in planned.values() for _, summary in windows]
    return Result(
        status=status,
        manifest=manifest,
        seconds=time.monotonic() - started,
        too_long=sum(entry.samples for entry in long),
        longest=max((entry.longest for entry in long), default=0),
    )
