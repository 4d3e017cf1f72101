"""Which samples are shown: the first ones, or those of rows by their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline.base.errors import ConfigError
from pipeline.base.words import counted
from pipeline.reading.cache import FileCache
from pipeline.reading.decoding.raw import RawBlock
from pipeline.reading.inputs import Input
from pipeline.tokenizing.encoding import EncodedBlock, Encoder
from pipeline.tokenizing.faults import Fault
from pipeline.tokenizing.rows.gathering import TreeBlock, blocks_of
from pipeline.tokenizing.shards import RawSplit, open_raw_inputs, tally_of
from pipeline.tokenizing.tally import RowTally
from pipeline.tokenizing.tokenization import Tokenization
from strategies.arrays import Int32Array


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """A sample, with what each of its tokens is."""

    title: str
    """Its file and row, and which of the row's samples it is."""

    row: int
    """In its file."""

    input_ids: Int32Array
    """# shape: (num_tokens,)"""

    labels: Int32Array
    """# shape: (num_tokens,)"""

    kinds: Sequence[str]
    """See `EncodedBlock.token_kinds`.  # length: num_tokens"""


@dataclass(frozen=True, kw_only=True)
class ShownFault:
    """A row that gives no sample."""

    title: str
    """Its file and row."""

    row: int
    """In its file."""

    fault: Fault


Shown = ShownSample | ShownFault


def first_samples(
    inputs: list[Input], tokenization: Tokenization, cache: FileCache, count: int, tally: RowTally
) -> Iterator[Shown]:
    """The first `count` samples, and what is wrong with as many rows before them that give none.

    tally: to which all rows are added that had to be tokenised for it. Raises as tokenising would for inputs that
    cannot be read.
    """
    num_samples = num_faults = 0
    for split in open_raw_inputs(inputs, tokenization, cache):
        for place in _blocks(split, tokenization):
            for one in place.shown(place.encoded(tally)):
                is_sample = isinstance(one, ShownSample)
                if is_sample or num_faults < count:
                    yield one
                num_samples += is_sample
                num_faults += not is_sample
                if num_samples == count:
                    return


def chosen_rows(
    inputs: list[Input], tokenization: Tokenization, cache: FileCache, numbers: Sequence[int], tally: RowTally
) -> Iterator[Shown]:
    """What the rows with these numbers give, in every split that has them; no other row is tokenised, or parsed.

    numbers: of rows in their split, over all inputs; tally: to which they are added. Raises `ConfigError` for a number
    that no split has, and as tokenising would for inputs that cannot be read.
    """
    missing, num_rows = set(numbers), 0
    for split in open_raw_inputs(inputs, tokenization, cache):
        of_split = 0
        for place in _blocks(split, tokenization):
            of_split = max(of_split, place.before + place.first_row + place.num_rows)
            for number in sorted(set(numbers)):
                alone = place.holding(number - place.before)
                if alone is not None:
                    missing.discard(number)
                    found = alone.shown(alone.encoded(tally))
                    samples: list[Shown] = [one for one in found if isinstance(one, ShownSample)]
                    yield from samples or [one for one in found if one.row == number - place.before]
            if of_split > max(numbers) and isinstance(place.block, RawBlock):  # trees come in another order
                break
        num_rows = max(num_rows, of_split)
    if missing:
        raise ConfigError(
            f"--show-row {min(missing)}: there is no such row, of {counted(num_rows, 'row')} that are numbered from 0"
        )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A block of rows, and where it stands."""

    where: str
    """Words naming its file."""

    before: int
    """Rows of its split in the files before."""

    first_row: int
    """In its file."""

    block: RawBlock | TreeBlock
    encoder: Encoder
    stops_at_faults: bool
    """Whether a row that cannot be used is an error."""

    @cached_property
    def num_rows(self) -> int:
        """Rows of the block, counted once."""
        return self.block.num_rows

    def holding(self, row: int) -> _Place | None:
        """A row of the file alone, or the tree that it belongs to; None where it is in another block."""
        if isinstance(self.block, TreeBlock):
            trees = [tree for tree in self.block.trees if row in tree.rows]
            return replace(self, block=TreeBlock(trees, 0, 0)) if trees else None
        at = row - self.first_row
        return replace(self, block=self.block.row(at), first_row=row) if 0 <= at < self.num_rows else None

    def encoded(self, tally: RowTally) -> EncodedBlock:
        """The block, encoded. tally: to which its rows are added, but not those that stop a run."""
        found = self.encoder.encode(self.block, tells_kinds=True)
        own = tally_of(found, self.where, (0, 0 if found.counts_in_file else self.first_row))
        if self.stops_at_faults:
            own.dropped -= Counter(fault.reason for fault in found.faults if fault.is_error)
        tally.add(own)
        return found

    def shown(self, encoded_block: EncodedBlock) -> list[Shown]:
        """Everything in a block, in order."""
        ends = np.cumsum(encoded_block.lengths)
        of_row = Counter(encoded_block.rows)
        first_row = 0 if encoded_block.counts_in_file else self.first_row
        found: list[Shown] = [
            ShownFault(title=self._title(first_row + fault.row), row=first_row + fault.row, fault=fault)
            for fault in encoded_block.faults
        ]
        seen: Counter[int] = Counter()
        for row, turn, end, length in zip(
            encoded_block.rows, encoded_block.turns, ends, encoded_block.lengths, strict=True
        ):
            seen[row] += 1
            several = f", sample {seen[row]} of {of_row[row]}, ends with turn {turn}" if of_row[row] > 1 else ""
            span = slice(end - length, end)
            sample = ShownSample(
                title=self._title(first_row + row) + several,
                row=first_row + row,
                input_ids=encoded_block.input_ids[span],
                labels=encoded_block.labels[span],
                kinds=encoded_block.token_kinds[span],
            )
            found.append(sample)
        return sorted(found, key=lambda one: one.row)

    def _title(self, row: int) -> str:
        return f"{self.where}, row {row}" + (f" ({self.before + row} of all)" if self.before else "")


def _blocks(split: RawSplit, tokenization: Tokenization) -> Iterator[_Place]:
    before = 0
    for file, format_ in zip(split.files, split.formats, strict=True):
        encoder = tokenization.encoder(format_)
        first_row = 0
        for block in blocks_of(file, format_):
            place = _Place(
                where=file.where,
                before=before,
                first_row=first_row,
                block=block,
                encoder=encoder,
                stops_at_faults=tokenization.options.on_error == "error",
            )
            yield place
            first_row += place.num_rows
        before += first_row
