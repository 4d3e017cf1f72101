"""A kind of chat under a template: tried with no flags, then with those that the refusals name."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from chat_matrix.families import FAMILIES, Family
from chat_matrix.kinds import KINDS, Row
from chat_matrix.oracle import Judge, Sample
from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import RawBlock
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.encoding import EncodedBlock, Encoder
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer, load_tokenizer

DAY = "2026-01-02"
_TODAY = datetime.date.fromisoformat(DAY)
WAYS: dict[str, dict[str, Any]] = {
    "--history expand": {"history": "expand"},
    "--reasoning-inline": {"reasoning_inline": True},
    "--reasoning drop": {"reasoning": "drop"},
    "--turn-end next": {"turn_end": "next"},
    "--turn-end none": {"turn_end": "none"},
    "--unsaid allow": {"unsaid": "allow"},
}
"""Flags that a refusal may name, in the order in which they are tried."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What became of a kind of chat under a template."""

    ways: tuple[str, ...]
    """The flags that it took."""

    num_samples: int
    refusal: str
    """Why it is not taken, in words; empty where it is."""

    is_unprompted: bool = False
    """Whether a generation prompt has text that the chat, as it is written, has not."""

    faults: list[str] = field(default_factory=list)
    """What the oracles find wrong with it."""

    by_marks: Counter[str] | None = None
    """What TRL's marks train otherwise; None where they cannot be asked."""


class Bench:
    """A template with its tokenizer, to try rows on."""

    def __init__(self, family: Family, name: str, tokenizer: TextTokenizer) -> None:
        """name: of the template's file, without its ending."""
        self.family, self.name, self._tokenizer = family, name, tokenizer
        self.path = family.folder / f"{name}.jinja"
        self._encoders: dict[str, Encoder] = {}

    def with_marks(self) -> Bench:
        """The same for TRL's variant with generation marks."""
        return Bench(self.family, f"{self.name}_training", self._tokenizer)

    @cached_property
    def judge(self) -> Judge:
        """The oracle of this template."""
        marked = self.family.folder / f"{self.name}_training.jinja"
        return Judge(
            family=self.family,
            source=_dated(self.path),
            with_marks=_dated(marked) if marked.exists() else None,
            whole=self._tokenizer.whole,
        )

    def tried(self, row: Row) -> Cell:
        """Try a row until it is taken, or the refusal names no flag that was not tried."""
        row = self.family.row(row)
        options: dict[str, Any] = {}
        ways: list[str] = []
        while (block := self.encoded(row, options)).faults:
            message = block.faults[0].detail
            way = next(
                (way for way, told in WAYS.items() if way in message and not told.keys() <= options.keys()), None
            )
            if way is None:
                return Cell(ways=tuple(ways), num_samples=0, refusal=in_short(message, self.path))
            ways.append(way)
            options |= WAYS[way]
        samples = samples_of(block)
        by_marks = self.judge.by_marks(row, samples, options)
        faults = self.judge.faults(row, samples, options)
        for other in self._others(block, ways):
            told = self.encoded(row, options | other)
            faults += self.judge.faults(row, samples_of(told), options | other)
        if block.kinds.total() != sum(sum(targets) for _, targets, _ in samples):
            faults.append("targets by kind do not sum up to the targets")
        faults += [f"TRL's marks: {told!r}" for told in self.judge.unexplained(by_marks)]
        return Cell(
            ways=tuple(ways),
            num_samples=len(samples),
            refusal="",
            is_unprompted="prompt_unwritten" in block.notes,
            faults=faults,
            by_marks=by_marks,
        )

    def _others(self, block: EncodedBlock, ways: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What else the messages to a row that is taken propose, which has to be right as well."""
        if "--history expand" in ways:
            yield {"history": "as-rendered"}
        if "history_inserted" in block.notes:
            yield {"history": "expand"}
        if "--turn-end none" in ways:
            yield {"turn_end": "error", "append_eos": True}

    def encoded(self, row: Row, options: Mapping[str, Any]) -> EncodedBlock:
        """A row, tokenised with some options."""
        key = json.dumps(options, sort_keys=True)
        if key not in self._encoders:
            day = DAY if "strftime_now" in self.path.read_text(encoding="utf-8") else None
            told = TokenizeOptions(**options, template_date=day)
            template = ChatTemplate(self._tokenizer, self.path, {}, day)
            columns = {"messages": "messages", "tools": "tools"}
            self._encoders[key] = Encoder(self._tokenizer, template, Format(name="messages", columns=columns), told)
        return self._encoders[key].encode(RawBlock(json.dumps(row).encode() + b"\n", 0))


def benches(tokenizer: Path, folder: Path, names: Collection[str] | None = None) -> dict[str, Bench]:
    """Templates by their names, all where none are named. tokenizer: a tokenizer.json; folder: an empty one."""
    found = {}
    for family in FAMILIES:
        wanted = [name for name in family.templates if names is None or name in names]
        if wanted:
            loaded = _tokenizer_of(family, tokenizer, folder / wanted[0])
            found.update({name: Bench(family, name, loaded) for name in wanted})
    return found


def matrix(trial: Mapping[str, Bench]) -> dict[str, dict[str, Cell]]:
    """The cells of every template, by kind."""
    return {name: {kind: bench.tried(row) for kind, row in KINDS.items()} for name, bench in trial.items()}


def samples_of(block: EncodedBlock) -> list[Sample]:
    """The samples of one row."""
    found: list[Sample] = []
    at = 0
    for length, turn in zip(block.lengths, block.turns, strict=True):
        labels = block.labels[at : at + length]
        found.append((block.input_ids[at : at + length].tolist(), (labels != -100).tolist(), turn))
        at += length
    return found


def in_short(message: str, path: Path) -> str:
    """A refusal without the template's name, and without the ways out, which were tried or are no flags."""
    told = message.replace(f"--chat-template {path}", "the template").partition(";")[0]
    return re.sub(r"^turn \d+ \((\w+)\):? ", r"", told)


def _dated(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    return re.sub(r"strftime_now\((['\"])(.*?)\1\)", lambda found: repr(_TODAY.strftime(found[2])), source)


def _tokenizer_of(family: Family, backend: Path, folder: Path) -> TextTokenizer:
    """A tokenizer with the special tokens that the templates of a family write."""
    texts = "".join((family.folder / f"{name}.jinja").read_text(encoding="utf-8") for name in family.templates)
    special = sorted({*family.special.findall(texts), family.eos})
    whole = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(backend)))
    whole.add_special_tokens({"bos_token": "<bos>", "eos_token": family.eos})
    whole.add_tokens([AddedToken(text, special=True, normalized=False) for text in special], special_tokens=True)
    whole.save_pretrained(str(folder))
    return load_tokenizer(str(folder))
