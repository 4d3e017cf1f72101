"""What inputs are by content: their hashes, and the tokenizer that made their tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.base.engine import LocalEngine
from pipeline.base.errors import DataError
from pipeline.base.progress import ProgressCallback, stage
from pipeline.format.identity import CHAT_TEMPLATE, TOKENIZER, NamedHash, Origin, combine
from pipeline.format.manifest import InputEntry
from pipeline.reading.cache import FileCache
from pipeline.reading.decoding.foreign import refuse_foreign
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import Input

log = logging.getLogger(__name__)


def content_hashes(
    inputs: list[Input], cache: FileCache, engine: LocalEngine, progress: ProgressCallback | None
) -> list[NamedHash]:
    """One hash for each input, over its files in order, split by split.

    Raises `DataError` for a tokenised dataset that is not what its manifest says.
    """
    files = list(dict.fromkeys(file for entry in inputs for file in entry.files()))
    digests: dict[InputFile, str] = {}
    with stage(progress, "hashing inputs", len(files), "file") as advance:
        for file, digest in zip(files, engine.map(cache.content_hash, files), strict=True):
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
    return [
        NamedHash(
            name=entry.name,
            xxh3_128=combine({split: [digests[file] for file in group] for split, group in entry.splits.items()}),
        )
        for entry in inputs
    ]


def input_entries(inputs: Sequence[Input], rows: Sequence[int], hashes: Sequence[NamedHash]) -> list[InputEntry]:
    """What the manifest says of the inputs. rows, hashes: of each."""
    return [
        InputEntry(
            name=entry.name,
            rows=num_rows,
            bytes=sum(file.size() for file in entry.files()),
            xxh3_128=content.xxh3_128,
        )
        for entry, num_rows, content in zip(inputs, rows, hashes, strict=True)
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
