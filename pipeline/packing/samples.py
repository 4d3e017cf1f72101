"""The samples of a run, from inputs that are tokenised, or are tokenised now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.storage import FileFacts
from pipeline.packing.setup import Setup
from pipeline.reading.columns import Selection
from pipeline.reading.input_rows import InputRows, open_inputs
from pipeline.reading.inputs import Input
from pipeline.reading.workspace import Workspace
from pipeline.tokenizing.tally import DROPPED, RowTally, warn_of_rows, write_dropped

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The rows to be packed."""

    rows: InputRows
    tally: RowTally | None = None
    """What became of raw rows; None where inputs were tokenised before."""

    dropped_lists: Sequence[Path] = ()
    """JSON lines of the raw rows left out, in order."""


def open_samples(
    inputs: Sequence[Input], setup: Setup, work: Workspace, rows_before: Mapping[str, int] | None = None
) -> Samples:
    """Open the inputs, tokenised first if they are raw. Raises as `open_inputs` and `tokenize_inputs`.

    rows_before: of each split, in what is appended to.
    """
    if setup.tokenization is None:
        extra = setup.embedder.column if setup.embedder else None
        selection = Selection(names=setup.options.column, extra=extra, unpack=setup.options.unpack)
        return Samples(rows=open_inputs(list(inputs), selection, work))
    from pipeline.tokenizing.for_packing import tokenize_inputs

    with work.alone("tokens"):
        tokenized = tokenize_inputs(list(inputs), setup.tokenization, work, rows_before)
    return Samples(rows=tokenized.rows, tally=tokenized.tally, dropped_lists=tokenized.dropped)


def write_lists(samples: Samples, setup: Setup, folder: Path, before: Path | None) -> dict[str, FileFacts]:
    """Write the list of raw rows left out, if leaving out was asked for. Raises `OSError`.

    before: the dataset that is appended to.
    """
    if setup.tokenization is None or setup.tokenization.options.on_error != "drop":
        return {}
    return {DROPPED: write_dropped([*([before / DROPPED] if before else []), *samples.dropped_lists], folder)}


def warn_of_samples(samples: Samples, *, are_listed: bool) -> None:
    """Say what the user may not expect of the samples. are_listed: whether raw rows left out are written to a file."""
    if samples.tally is not None:
        warn_of_rows(samples.tally, are_listed=are_listed)
    else:
        _tell_targets(samples.rows)


def _tell_targets(rows: InputRows) -> None:
    """Say where nothing decides which tokens are trained."""
    files = [file for split in rows.splits.values() for file in split.files]
    silent = [file.name for file in files if file.columns.targets is None]
    way_out = "if yours has another name, give it with --column labels=NAME"
    if silent and len(silent) < len(files):
        log.warning("%s has no labels or mask, others have: every token of it is trained; %s", silent[0], way_out)
    elif silent:
        log.info("no labels or mask column: every token is trained; %s", way_out)
