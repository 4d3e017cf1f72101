"""The first samples of an input as a person can check them, tokenised without writing anything.

What is trained is bright, the rest dim, and special tokens are visible.
"""

from __future__ import annotations

import re
from itertools import groupby

import click
import numpy as np

from pipeline.format.labels import IGNORE
from pipeline.reading.cache import FileCache
from pipeline.reading.inputs import Input
from pipeline.tokenizing.encoding import EncodedBlock
from pipeline.tokenizing.rows.gathering import blocks_of
from pipeline.tokenizing.shards import open_raw_inputs
from pipeline.tokenizing.tokenization import Tokenization
from pipeline.tokenizing.tokenizer import TextTokenizer
from strategies.arrays import Int32Array

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def first_samples(inputs: list[Input], tokenization: Tokenization, cache: FileCache, count: int, color: bool) -> str:
    """The first `count` samples, and what is wrong with as many rows before them that give none.

    color: for a terminal; without it, what is trained stands in ⟦brackets⟧. Raises as tokenising would for inputs that
    cannot be read.
    """
    shown: list[str] = []
    num_samples = num_faults = 0
    for split in open_raw_inputs(inputs, tokenization, cache):
        for file, format_ in zip(split.files, split.formats, strict=True):
            encoder = tokenization.encoder(format_)
            first_row = 0
            for block in blocks_of(file, format_):
                encoded_block = encoder.encode(block)
                for row, text in _of_block(encoded_block, tokenization.tokenizer, color):
                    is_sample = row in encoded_block.rows
                    if is_sample or num_faults < count:
                        counted_from = 0 if encoded_block.counts_in_file else first_row
                        title = _titled(f"{file.where}, row {counted_from + row}", color)
                        shown.append(title + ": " + text.removesuffix("\n") + "\n")
                    num_faults += not is_sample
                    num_samples += is_sample
                    if num_samples == count:
                        return "\n".join(shown)
                first_row += encoded_block.num_rows
    return "\n".join(shown)


def _of_block(encoded_block: EncodedBlock, tokenizer: TextTokenizer, color: bool) -> list[tuple[int, str]]:
    """Everything in a block, in order: its row, and what is shown of it."""
    ends = np.cumsum(encoded_block.lengths)[:-1]
    samples = zip(
        encoded_block.rows, np.split(encoded_block.input_ids, ends), np.split(encoded_block.labels, ends), strict=False
    )
    texts = [(row, _sample(ids, labels, tokenizer, color)) for row, ids, labels in samples]
    texts += [(fault.row, f"gives no sample ({fault.reason}): {fault.detail}") for fault in encoded_block.faults]
    return sorted(texts, key=lambda pair: pair[0])


def _sample(input_ids: Int32Array, labels: Int32Array, tokenizer: TextTokenizer, color: bool) -> str:
    trained = labels != IGNORE
    parts = [f"{len(input_ids):,} tokens, {int(trained.sum()):,} trained\n"]
    for is_target, run in groupby(zip(input_ids.tolist(), trained.tolist(), strict=True), key=lambda pair: pair[1]):
        pieces = [
            (is_special, _printable(tokenizer.decode([token for token, _ in group])))
            for is_special, group in groupby(run, key=lambda pair: pair[0] in tokenizer.special_ids)
        ]
        if color:
            parts += [_styled(text, is_target, is_special) for is_special, text in pieces]
        else:
            text = "".join(text for _, text in pieces)
            parts.append(f"⟦{text}⟧" if is_target else text)
    return "".join(parts)


def _printable(text: str) -> str:
    """Control characters as escapes: a terminal would obey them."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _styled(text: str, is_target: bool, is_special: bool) -> str:
    """Line by line, because pagers forget a colour at the end of a line."""
    color = "yellow" if is_special else "green" if is_target else None
    return "\n".join(
        click.style(line, fg=color, bold=is_target or None, dim=None if is_target else True) if line else line
        for line in text.split("\n")
    )


def _titled(text: str, color: bool) -> str:
    return click.style(text, bold=True, underline=True) if color else text
