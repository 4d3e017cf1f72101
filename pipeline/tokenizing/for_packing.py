"""Raw inputs as rows that `pack` can address: tokenised once, into a folder beside the output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.reading.input_rows import InputRows
from pipeline.reading.inputs import Input
from pipeline.reading.mapped import map_file
from pipeline.reading.windows import SplitRows
from pipeline.reading.workspace import Workspace
from pipeline.tokenizing.shards import ShardLayout, gives_several, open_raw_inputs, packing_schema, write_shards
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
    """Tokenise every input into staging. A row that is left out is one sample without tokens.

    Raises as `open_raw_inputs` and `write_shards`.
    """
    tallies: list[RowTally] = []
    dropped: list[Path] = []
    splits: dict[str, SplitRows] = {}
    rows = [0] * len(inputs)
    options = tokenization.options
    raw = open_raw_inputs(inputs, tokenization, work.cache)
    schema, tells_sources = packing_schema(raw, options), gives_several(raw, options)
    with work.stage("tokenising", sum(file.file.size() for split in raw for file in split.files), "B") as advance:
        for split in raw:
            layout = ShardLayout(
                folder=work.staging.work, prefix=f"tokens-{split.name}-", schema=schema, for_packing=True
            )
            mapped = []
            rows_before = 0
            for shard in write_shards(split, layout, tokenization, work, advance):
                tallies.append(shard.tally)
                dropped.append(shard.dropped)
                if not shard.tally.rows:
                    continue
                rows[split.owners[shard.begin[0]]] += shard.tally.rows
                number, first_row = shard.begin
                base = rows_before - first_row if tells_sources else None
                one = map_file(str(shard.path), {}, split.files[number].where, first_row, base)
                rows_before += shard.tally.rows
                assert one is not None, "what we write can be mapped"
                mapped.append(one)
            splits[split.name] = SplitRows(mapped)
    return TokenizedInputs(
        rows=InputRows(splits=splits, rows_of_inputs=rows, tells_sources=tells_sources),
        tally=RowTally.total(tallies),
        dropped=dropped,
    )
