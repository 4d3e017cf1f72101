"""Raw inputs as rows that `pack` can address: tokenised once, into a folder beside the output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.reading.input_rows import InputRows
from pipeline.reading.inputs import Input
from pipeline.reading.mapped import map_file
from pipeline.reading.windows import SplitRows
from pipeline.reading.workspace import Workspace
from pipeline.tokenizing.shards import ShardLayout, open_raw_inputs, write_shards
from pipeline.tokenizing.tally import RowTally
from pipeline.tokenizing.tokenization import Tokenization


@dataclass(frozen=True, kw_only=True)
class TokenizedInputs:
    """Raw inputs, tokenised."""

    rows: InputRows
    tally: RowTally
    dropped: list[Path]
    """JSON lines of the rows left out, in order."""


def tokenize_inputs(inputs: list[Input], tokenization: Tokenization, work: Workspace) -> TokenizedInputs:
    """Tokenise every input into staging. A row that is left out is a sample without tokens.

    Raises as `open_raw_inputs` and `write_shards`.
    """
    tallies: list[RowTally] = []
    dropped: list[Path] = []
    splits: dict[str, SplitRows] = {}
    rows = [0] * len(inputs)
    raw = open_raw_inputs(inputs, tokenization, work.cache)
    with work.stage("tokenising", sum(file.file.size() for split in raw for file in split.files), "B") as advance:
        for split in raw:
            layout = ShardLayout(folder=work.staging.work, prefix=f"tokens-{split.name}-", for_packing=True)
            mapped = []
            for shard in write_shards(split, layout, tokenization, work, advance):
                tallies.append(shard.tally)
                dropped.append(shard.dropped)
                if not shard.tally.rows:
                    continue
                rows[split.owners[shard.begin[0]]] += shard.tally.rows
                one = map_file(str(shard.path), {}, split.files[shard.begin[0]].where, shard.begin[1])
                assert one is not None, "what we write can be mapped"
                mapped.append(one)
            splits[split.name] = SplitRows(mapped)
    return TokenizedInputs(
        rows=InputRows(splits=splits, rows_of_inputs=rows), tally=RowTally.total(tallies), dropped=dropped
    )
