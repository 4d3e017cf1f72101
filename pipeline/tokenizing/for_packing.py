"""Raw inputs as rows that `pack` can address: tokenised once, into a folder beside the output."""

from __future__ import annotations

from collections.abc import Mapping
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


def tokenize_inputs(
    inputs: list[Input], tokenization: Tokenization, work: Workspace, rows_before: Mapping[str, int] | None = None
) -> TokenizedInputs:
    """Tokenise every input into staging. A row that is left out is one sample without tokens.

    rows_before: of each split, in what is appended to.
    Raises as `open_raw_inputs` and `write_shards`.
    """
    tallies: list[RowTally] = []
    dropped: list[Path] = []
    splits: dict[str, SplitRows] = {}
    rows: dict[str, list[int]] = {}
    options = tokenization.options
    raw = open_raw_inputs(inputs, tokenization, work.cache)
    schema, tells_sources = packing_schema(raw, options), gives_several(raw, options)
    with work.stage("tokenising", sum(file.file.size() for split in raw for file in split.files), "B") as advance:
        for split in raw:
            layout = ShardLayout(
                folder=work.staging.work,
                prefix=f"tokens-{split.name}-",
                schema=schema,
                for_packing=True,
                first_row=(rows_before or {}).get(split.name, 0),
            )
            mapped = []
            next_row = layout.first_row
            of_split: list[RowTally] = []
            for shard in write_shards(split, layout, tokenization, work, advance):
                of_split.append(shard.tally)
                dropped.append(shard.dropped)
                if not shard.tally.rows:
                    continue
                number, first_row = shard.begin
                base = next_row - first_row if tells_sources else None
                one = map_file(str(shard.path), {}, split.files[number].where, first_row, base)
                next_row += shard.tally.rows
                assert one is not None, "what we write can be mapped"
                mapped.append(one)
            splits[split.name] = SplitRows(mapped)
            tallies += of_split
            rows[split.name] = split.rows_of_files(RowTally.total(of_split))
    return TokenizedInputs(
        rows=InputRows(splits=splits, rows_of_files=rows, tells_sources=tells_sources),
        tally=RowTally.total(tallies),
        dropped=dropped,
    )
