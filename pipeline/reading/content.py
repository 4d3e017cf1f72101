"""What inputs are by content: their hashes, the tokenizer that made their tokens, and which of their files are new."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from msgspec import UNSET

from pipeline.base.dealing.shares import Share
from pipeline.base.engine import LocalEngine
from pipeline.base.errors import ConfigError, DataError
from pipeline.base.progress import ProgressCallback, stage
from pipeline.format.identity import (
    CHAT_TEMPLATE,
    SINGLE,
    TOKENIZER,
    FileHash,
    Identity,
    Origin,
    content_of,
    differences,
)
from pipeline.format.manifest import Manifest, PackManifest, batches_of
from pipeline.format.records import InputEntry
from pipeline.reading.cache import FileCache
from pipeline.reading.decoding.foreign import refuse_foreign
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import Input

log = logging.getLogger(__name__)


def content_hashes(
    inputs: list[Input],
    cache: FileCache,
    engine: LocalEngine,
    progress: ProgressCallback | None,
    share: Share | None = None,
) -> dict[InputFile, str]:
    """The hash of each data file.

    share: which of several processes this is that share a run; where they share the cache too, one hashes a file.
    Raises `DataError` for a tokenised dataset that is not what its manifest says.
    """
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    digests: dict[InputFile, str] = {}
    with stage(progress, "hashing inputs", len(files), "file") as advance:
        for file, digest in _hashed(files, cache, engine, share):
            digests[file] = digest
            advance(1)
    for entry in inputs:
        for file in entry.files():
            if entry.manifest is None:
                continue
            known = entry.entry_of(file)
            if known is None or digests[file] != known.xxh3_128:
                refuse_foreign(file, cache.local_path(file))
                raise DataError(
                    f"{file.shown}: was changed after it was tokenised, says its manifest.json; tokenise again"
                )
    return digests


def _hashed(
    files: Sequence[InputFile], cache: FileCache, engine: LocalEngine, share: Share | None
) -> Iterator[tuple[InputFile, str]]:
    """Each file and its hash, in any order."""
    if share is None:
        yield from zip(files, engine.map(cache.content_hash, files), strict=True)
        return
    mine = share.of(files)
    order = [*mine, *(file for file in files if file not in set(mine))]
    for is_patient in (False, True):
        found = engine.map(partial(cache.shared_hash, is_patient=is_patient), order)
        left = []
        for file, digest in zip(order, found, strict=True):
            if digest is None:
                left.append(file)
            else:
                yield file, digest
        order = left


def data_files(inputs: Sequence[Input], digests: Mapping[InputFile, str]) -> list[FileHash]:
    """The data files as the manifest lists them: split by split, and input by input."""
    return [
        FileHash(name=_name_of(entry, file), xxh3_128=digests[file], split=UNSET if split == SINGLE else split)
        for split in inputs[0].splits
        for entry in inputs
        for file in entry.splits[split]
    ]


def _name_of(entry: Input, file: InputFile) -> str:
    """What a data file is called: by its base name, or inside the directory that was given."""
    return file.name if entry.name == file.name else f"{entry.name}/{file.name}"


def input_entries(
    inputs: Sequence[Input], rows: Mapping[str, Sequence[int]], files: Sequence[FileHash]
) -> list[InputEntry]:
    """What the manifest says of the data files. rows: of each, by split; files: as `data_files` gave them."""
    sizes = [file.size() for split in inputs[0].splits for entry in inputs for file in entry.splits[split]]
    numbers = [number for split in inputs[0].splits for number in rows[split]]
    return [
        InputEntry(name=file.name, xxh3_128=file.xxh3_128, split=file.split, rows=num_rows, bytes=size)
        for file, num_rows, size in zip(files, numbers, sizes, strict=True)
    ]


def origin_of(inputs: list[Input]) -> Origin:
    """Tokenizer and chat template of inputs that were tokenised here, where all of them agree.

    Raises `DataError` if they were tokenised by different tokenizers.
    """
    known = [(entry.name, entry.manifest) for entry in inputs if entry.manifest is not None]
    for name, manifest in known[1:]:
        first_name, first = known[0]
        if manifest.tokenizer.xxh3_128 != first.tokenizer.xxh3_128:
            raise DataError(
                f"inputs of different tokenizers cannot be packed together ({first_name}: {first.tokenizer.name},"
                f" {name}: {manifest.tokenizer.name}); tokenise them with one"
            )
    if len(known) < len(inputs):
        if known:
            unknown = next(entry.name for entry in inputs if entry.manifest is None)
            log.warning("%s does not tell its tokenizer; %s was tokenised by ours", unknown, known[0][0])
        return {}
    if not known:
        return {}
    origin = {TOKENIZER: known[0][1].tokenizer}
    templates = [manifest.chat_template for _, manifest in known]
    if len({template and template.xxh3_128 for template in templates}) > 1:
        log.warning("the inputs have different chat templates, so the packed dataset names none")
    elif templates[0] is not None:
        origin[CHAT_TEMPLATE] = templates[0]
    return origin


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What there is, and what is to come."""

    there: Manifest | None
    """What is said of the dataset that is appended to; None for a first run."""

    new: Sequence[Input]
    """The inputs with their new files alone."""

    batches: Sequence[Sequence[FileHash]]
    """The data files of the first run, then those of each append, the last of which are new."""

    @property
    def samples(self) -> dict[str, int] | None:
        """The samples that each split of packs came from so far; None for a first run."""
        if self.there is None:
            return None
        assert isinstance(self.there, PackManifest), "packs are asked for"
        return {split: sum(window.rows for window in part.windows) for split, part in self.there.parts.items()}

    @property
    def rows(self) -> dict[str, int]:
        """The rows of the input that each split came from so far."""
        rows: Counter[str] = Counter()
        for file in self.there.inputs if self.there else ():
            rows[file.split or SINGLE] += file.rows
        return rows


def growth_of(
    inputs: Sequence[Input], digests: Mapping[InputFile, str], there: Manifest | None, output: str | Path
) -> Growth:
    """What is new among inputs: all of them, but where something is there to be appended to.

    Known files are known by their content, wherever they stand. Raises `ConfigError` where one is not among the inputs.
    """
    if there is None:
        return Growth(there=None, new=inputs, batches=[data_files(inputs, digests)])
    splits = list(there.splits) if isinstance(there.splits, dict) else [SINGLE]
    if set(splits) != set(inputs[0].splits):
        now, then = (", ".join(names).strip() or "no splits" for names in (inputs[0].splits, splits))
        raise ConfigError(f"--append: {output} has {then}, the inputs have {now}")
    batches = batches_of(there)
    new = _new_files(inputs, digests, [file for batch in batches for file in batch], output)
    return Growth(there=there, new=new, batches=[*batches, data_files(new, digests)] if new else batches)


def _new_files(
    inputs: Sequence[Input], digests: Mapping[InputFile, str], known: Sequence[FileHash], output: str | Path
) -> list[Input]:
    """The inputs with those of their files alone that are not known. Raises `ConfigError` for one that is missing."""
    left = Counter(file.content for file in known)
    found = []
    for entry in inputs:
        splits: dict[str, tuple[InputFile, ...]] = {}
        for split, files in entry.splits.items():
            new = []
            for file in files:
                content = content_of(digests[file], split)
                if left[content]:
                    left[content] -= 1
                else:
                    new.append(file)
            splits[split] = tuple(new)
        found.append(replace(entry, splits=splits))
    missing = [file for file in known if left[file.content]]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise ConfigError(
            f"--append: {missing[0].name} ({missing[0].xxh3_128[:8]}){more} in {output} and not among the inputs:"
            " changed, gone, or not named; name all inputs again as they were, or make it anew with --overwrite"
        )
    return [entry for entry in found if entry.files()]


def refuse_other_options(growth: Growth, identity: Identity, output: str | Path) -> None:
    """Raise `ConfigError`, naming what differs, if what is there was made otherwise than what is to come.

    So it is for a manifest whose run is not that of the inputs and options that it tells of.
    """
    if growth.there is None:
        return
    there = growth.there.identity({}) if isinstance(growth.there, PackManifest) else growth.there.identity()
    lines = differences(replace(there, batches=identity.batches), identity)
    if lines:
        told = "".join(f"\n  {line}" for line in lines)
        raise ConfigError(f"--append: {output} was made otherwise, and all of it has to be made alike:{told}")
    if not growth.new and growth.there.run_id != identity.run_id:
        raise ConfigError(
            f"--append: {output} is no run over the inputs that its manifest lists; make it anew with --overwrite"
        )
