"""Raw inputs as rows that `pack` can address: tokenised once, into a folder beside the output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.base.engine import LocalEngine
from pipeline.base.progress import bar
from pipeline.publishing.publication import Staging
from pipeline.reading.files import FileCache
from pipeline.reading.input_rows import Opened
from pipeline.reading.inputs import Input
from pipeline.reading.mapped import map_file
from pipeline.reading.windows import SplitRows
from pipeline.tokenizing.shards import ShardWriter, Tally
from pipeline.tokenizing.tokenization import Tokenization


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """Tokenised inputs."""

    opened: Opened
    tally: Tally
    skipped: list[Path]
    """JSON lines of the rows left out, in order."""


def tokenize_inputs(
    inputs: list[Input], tokenization: Tokenization, cache: FileCache, engine: LocalEngine, staging: Staging
) -> Tokenized:
    """Tokenise every input into staging. A row that is left out is a sample without tokens.

    Raises as `ShardWriter.write`.
    """
    tally, skipped, splits = Tally(), [], {}
    rows = dict.fromkeys(range(len(inputs)), 0)
    with bar("tokenising", sum(file.size() for entry in inputs for file in entry.files()), "B") as advance:
        for split in inputs[0].splits:
            owned = [(number, file) for number, entry in enumerate(inputs) for file in entry.splits[split]]
            writer = ShardWriter(
                tokenization,
                cache,
                engine,
                staging,
                split=split,
                path=lambda shard, split=split: staging.work / f"tokens-{split}-{shard:04d}.arrow",  # type: ignore[misc]
                for_packing=True,
            )
            mapped = []
            for shard in writer.write([file for _, file in owned], advance):
                tally.add(shard.tally)
                skipped.append(shard.skipped)
                if not shard.tally.rows:
                    continue
                number, file = owned[shard.begin[0]]
                rows[number] += shard.tally.rows
                one = map_file(str(shard.path), {}, file.shown, shard.begin[1])
                assert one is not None
                mapped.append(one)
            splits[split] = SplitRows(mapped)
    return Tokenized(opened=Opened(splits=splits, rows=list(rows.values())), tally=tally, skipped=skipped)
