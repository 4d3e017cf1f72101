"""A run of `tokenize`, from raw rows to a published dataset."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.engine import LocalEngine
from pipeline.base.progress import bar
from pipeline.base.storage import FileFacts
from pipeline.format import manifest as manifests
from pipeline.format.dataset_files import tokenized_card
from pipeline.format.folder import finish_folder, inside
from pipeline.packing.building import build
from pipeline.publishing.publication import Staging
from pipeline.reading.files import FileCache
from pipeline.reading.inputs import SINGLE, Input, resolve
from pipeline.tokenizing.report import SKIPPED, tell, write_skipped
from pipeline.tokenizing.shards import ShardWriter, Tally, TokenizedShard, tokenized_schema
from pipeline.tokenizing.tokenization import Tokenization


@dataclass(frozen=True, kw_only=True)
class TokenizeJob:
    """What to tokenise, and how to run it."""

    inputs: tuple[str, ...]
    tokenization: Tokenization
    num_workers: int
    cache_dir: Path
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    output: Path | None = None
    overwrite: bool = False

    def resolve(self) -> list[Input]:
        """The input's files. Raises `DataError`."""
        return resolve(self.inputs, split=self.split, subset=self.subset, revision=self.revision)


@dataclass(frozen=True, kw_only=True)
class TokenizeResult:
    """What a run has to tell."""

    status: str
    """tokenized or up to date."""

    manifest: dict[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TokenizedShardFacts(FileFacts):
    """A published shard."""

    samples: int
    tokens: int
    targets: int


def tokenize(job: TokenizeJob) -> TokenizeResult:
    """Tokenise and publish, or find that it has been done. Raises `PipelineError`; see `build`."""
    assert job.output is not None
    started = time.monotonic()
    inputs = job.resolve()
    recipe = _Recipe(job, inputs)
    manifest, is_new = build(
        recipe, inputs, job.output, cache_dir=job.cache_dir, num_workers=job.num_workers, overwrite=job.overwrite
    )
    if is_new:
        tell(recipe.tally, listed=True)
    return TokenizeResult(
        status="tokenized" if is_new else "up to date", manifest=manifest, seconds=time.monotonic() - started
    )


class _Recipe:
    """How a tokenised dataset is made."""

    def __init__(self, job: TokenizeJob, inputs: list[Input]) -> None:
        self._job, self._inputs = job, inputs
        self.tally = Tally()

    @property
    def identity(self) -> Mapping[str, Any]:
        job = self._job
        read = {"split": job.split, "subset": job.subset, "revision": job.revision}
        return {
            "kind": manifests.TOKENIZED,
            "format_version": manifests.FORMAT_VERSION,
            "algorithm_version": manifests.ALGORITHM_VERSION,
            "config": job.tokenization.config() | read,
            **job.tokenization.describe(),
        }

    def read(self, folder: Path) -> dict[str, Any]:
        return manifests.read_tokenized(folder)

    def write(
        self, cache: FileCache, engine: LocalEngine, staging: Staging, run_id: str, hashes: list[str]
    ) -> dict[str, Any]:
        staging.open()
        root = staging.dataset
        splits = self._write_shards(cache, engine, staging, run_id)
        cache.require_unchanged()
        self._job.tokenization.require_same_day()
        files: dict[str, FileFacts] = {}
        counts = {}
        rows = dict.fromkeys(range(len(self._inputs)), 0)
        for split, shards in splits.items():
            tally = Tally()
            for shard in shards:
                files[inside(split, shard.path.name)] = TokenizedShardFacts(
                    **vars(shard.facts),
                    samples=shard.tally.samples,
                    tokens=shard.tally.tokens,
                    targets=shard.tally.targets,
                )
                tally.add(shard.tally)
            self.tally.add(tally)
            owners = [number for number, entry in enumerate(self._inputs) for _ in entry.splits[split]]
            for file, num_rows in tally.file_rows.items():
                rows[owners[file]] += num_rows
            counts[split] = _counts(tally)
        if self._job.tokenization.options.on_error == "skip":
            files[SKIPPED] = write_skipped((shard.skipped for shards in splits.values() for shard in shards), root)
        manifest = {
            **self.identity,
            "run_id": run_id,
            "inputs": [
                {
                    "name": entry.name,
                    "rows": rows[number],
                    "bytes": sum(file.size() for file in entry.files()),
                    "xxh3_128": digest,
                }
                for number, (entry, digest) in enumerate(zip(self._inputs, hashes, strict=True))
            ],
            "counts": _counts(self.tally),
        }
        if SINGLE not in splits:
            manifest["splits"] = {split: {"counts": counted} for split, counted in counts.items()}
        names = {split: [shard.path.name for shard in shards] for split, shards in splits.items()}
        schema = tokenized_schema(self._job.tokenization.options)
        finish_folder(root, names, schema, manifest, tokenized_card(manifest), files, self._job.split)
        return manifests.read_tokenized(root)

    def _write_shards(
        self, cache: FileCache, engine: LocalEngine, staging: Staging, run_id: str
    ) -> dict[str, list[TokenizedShard]]:
        """The shards of each split."""
        splits = {}
        with bar("tokenising", sum(file.size() for entry in self._inputs for file in entry.files()), "B") as advance:
            for split in self._inputs[0].splits:
                folder = staging.dataset / split
                folder.mkdir(exist_ok=True)
                writer = ShardWriter(
                    self._job.tokenization,
                    cache,
                    engine,
                    staging,
                    split=split,
                    path=lambda n, folder=folder: folder / f"data-{run_id[:8]}-s{n:04d}.arrow",  # type: ignore[misc]
                    for_packing=False,
                )
                splits[split] = writer.write([f for entry in self._inputs for f in entry.splits[split]], advance)
        return splits


def _counts(tally: Tally) -> dict[str, Any]:
    return {
        "rows": tally.rows,
        "samples": tally.samples,
        "tokens": tally.tokens,
        "targets": tally.targets,
        "skipped": dict(sorted(tally.skipped.items())),
    }
