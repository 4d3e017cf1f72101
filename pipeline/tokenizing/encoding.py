"""A block of rows → token ids and labels, masked exactly at token level."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.format.labels import IGNORE
from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import RawBlock
from pipeline.tokenizing.chats.rendered import Rendering
from pipeline.tokenizing.chats.template import ChatTemplate
from pipeline.tokenizing.chats.turns.shapes import Parts
from pipeline.tokenizing.faults import Fault, Unused
from pipeline.tokenizing.rendering import Renderer
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.gathering import TreeBlock
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.samples import Chat, Sample
from pipeline.tokenizing.rows.trees import Tree, TreeReader
from pipeline.tokenizing.sizes import SizeLimit
from pipeline.tokenizing.tokens.places import Span
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer
from strategies.arrays import Int32Array

Ranges = list[tuple[str, tuple[int, int]]]
"""Tokens from..to-1, by kind and in order."""


@dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """The samples of a block of rows, and the rows that gave none."""

    num_rows: int
    counts_in_file: bool
    """Whether rows are counted from the file's first, not the block's, as they stand anywhere in the file."""

    rows: list[int]
    """The row of each sample, or the one that ends it; a row may give several.  # length: num_samples"""

    turns: list[int]
    """The turn of its row, or of its path in a tree, that ends each sample.  # length: num_samples"""

    lengths: list[int]
    """Tokens of each sample.  # length: num_samples"""

    input_ids: Int32Array
    """# shape: (num_tokens,)"""

    labels: Int32Array
    """-100 where not trained.  # shape: (num_tokens,)"""

    kinds: Counter[str]
    """Targets by kind; text is an answer, and its end."""

    turn_counts: Counter[str]
    """Turns by what `Tally` counts of them."""

    prompts: list[str]
    """What to embed each sample by; empty unless it is to be kept.  # length: num_samples"""

    faults: list[Fault]
    """In the order of rows."""

    unread: Counter[str]
    """Column that is not read -> rows in which it has content."""

    unread_keys: Counter[str]
    """Key of turns that is not read -> turns in which it has content."""

    notes: dict[str, list[int]]
    """Rows about which something is to be said, by what, as often as it is; see `tally.NOTES`."""

    token_kinds: list[str]
    """What each token is, trained or not: a kind of target; system, user, result (of a tool) or another role; prompt;
    template, or text where it cannot be told whose. Empty unless it is asked for.  # length: num_tokens"""


@dataclass(slots=True)
class _Encoded:
    """A sample, encoded."""

    row: int
    sample: Rendering
    tokens: array[int]
    ranges: Ranges
    """The tokens that are trained."""

    kinds: list[str]
    """Of its tokens, if they are asked for."""


class Encoder:
    """Turns the rows of one format into samples. Pure: the same block gives the same result, in any thread."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate | None, format_: Format, options: TokenizeOptions
    ) -> None:
        """template: None lays pairs end to end. Raises `ConfigError` for targets that the format cannot have."""
        self._locator, self._special_ids = tokenizer.locator, tokenizer.special_ids
        self._bos, self._eos, self._format = tokenizer.bos_id, tokenizer.eos_id, format_
        self._is_chat = template is not None
        self._renderer = Renderer(tokenizer, template, format_, options)
        self._words = self._renderer.words
        self._size_limit = SizeLimit(format_, options.max_row_bytes)
        self._trees = TreeReader(format_, options.paths) if format_.name == "tree" else None
        self._ends_special = re.compile(rf"(?:{tokenizer.special_texts.pattern})\s*\Z")
        self._keep_text = options.keep_text
        self._appended = tokenizer.eos_id if options.append_eos else None

    @property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools of a chat."""
        return self._renderer.writes_tools

    def encode(self, block: RawBlock | TreeBlock, *, tells_kinds: bool = False) -> EncodedBlock:
        """Encode a block; rows that cannot be used become faults. tells_kinds: whether to tell what each token is."""
        unused = Unused(block)
        unread = Counter(block.unread)
        unread_keys: Counter[str] = Counter()
        num_rows, samples = self._samples(block, unused, unread, unread_keys)
        encoded = self._encoded(self._rendered(samples, unused), unused, tells_kinds=tells_kinds)
        ids = array("i")
        edges = [0]  # tokens at which targets begin and end, in turn
        kinds: Counter[str] = Counter()
        turn_counts: Counter[str] = Counter()
        for one in encoded:
            at = len(ids)
            for kind, (start, stop) in one.ranges:
                kinds[kind] += stop - start
                edges += (at + start, at + stop)
            for name, number in one.sample.turns.items():
                turn_counts[name] += number
            ids += one.tokens
        input_ids = np.array(ids, np.int32)
        runs = np.diff([*edges, len(ids)])
        is_target = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        rows = [one.row if one.sample.source_row is None else one.sample.source_row for one in encoded]
        return EncodedBlock(
            num_rows=num_rows,
            counts_in_file=isinstance(block, TreeBlock),
            rows=rows,
            turns=[one.sample.source_turn for one in encoded],
            lengths=[len(one.tokens) for one in encoded],
            input_ids=input_ids,
            labels=np.where(is_target, input_ids, np.int32(IGNORE)),
            kinds=kinds,
            unread=unread,
            unread_keys=unread_keys,
            turn_counts=turn_counts,
            prompts=[one.sample.prompt for one in encoded] if self._keep_text else [],
            faults=unused.faults(),
            notes=unused.messages()
            | {
                note: [row for row, one in zip(rows, encoded, strict=True) if note in one.sample.notes]
                for note in sorted({note for one in encoded for note in one.sample.notes})
            },
            token_kinds=[kind for one in encoded for kind in one.kinds],
        )

    def _samples(
        self, block: RawBlock | TreeBlock, unused: Unused, unread: Counter[str], unread_keys: Counter[str]
    ) -> tuple[int, list[tuple[int, Sample]]]:
        """The number of rows, and the samples of each row, or tree, that can be read; counts what is not."""
        samples: list[tuple[int, Sample]] = []
        num_rows = 0
        may_be_too_large = self._size_limit.may_be_exceeded(block)
        for row, content in enumerate(block.rows()):
            num_rows += len(content.rows) if isinstance(content, Tree) else 1
            try:
                if isinstance(content, ValueError):
                    raise RowFault("unreadable", str(content))
                if may_be_too_large:
                    self._size_limit.check(content)
                if not isinstance(content, Tree):
                    if columns := self._format.unread(content):
                        unread.update(columns)
                    if keys := self._format.overruled(content):
                        unread_keys.update(keys)
                if self._trees is not None:
                    paths = self._trees.paths(content)
                    unused.paths[row] = paths
                    samples += [(row, path) for path in paths.chats]
                elif not isinstance(content, Tree):
                    samples.append((row, self._format.sample(content, as_chat=self._is_chat)))
            except RowFault as fault:
                unused.add(row, fault)
        for _, sample in samples:
            if keys := self._renderer.unread_keys(sample):
                unread_keys.update(keys)
        return num_rows, samples

    def _rendered(self, samples: list[tuple[int, Sample]], unused: Unused) -> list[tuple[int, Rendering]]:
        written = self._renderer.together([sample for _, sample in samples])
        rendered = []
        for row, sample in samples:
            source_row = sample.rows[-1] if isinstance(sample, Chat) and sample.rows else None
            try:
                several = self._renderer.render(sample, written.get(id(sample)))
                for one in several:
                    one.text.encode()
            except RowFault as fault:
                unused.add(row, fault, source_row)
            except UnicodeEncodeError as error:
                half = ascii(error.object[error.start])
                told = f"it holds half of a surrogate pair ({half}), which is no text"
                unused.add(row, RowFault("not_text", told), source_row)
            else:
                rendered += [(row, one) for one in several]
        return rendered

    def _encoded(self, rendered: list[tuple[int, Rendering]], unused: Unused, *, tells_kinds: bool) -> list[_Encoded]:
        """The tokens of each sample, and those that are trained; a faulty one takes its row along."""
        parts: list[Parts] = [sample.parts() if tells_kinds else [] for _, sample in rendered]
        spans = [
            [span for _, span in sample.targets or ()] + sample.end_tokens + [span for _, span in own]
            for (_, sample), own in zip(rendered, parts, strict=True)
        ]
        adds = not self._is_chat
        usual = self._locator.encode([sample.text for _, sample in rendered], spans, add_special_tokens=adds)
        encoded: list[_Encoded] = []
        for (row, sample), wanted, own, (tokens, places) in zip(rendered, spans, parts, usual, strict=True):
            try:
                if sample.hides:
                    tokens, places = self._words.encode(sample.text, wanted, add_special_tokens=adds)  # noqa: PLW2901
                ranges = self._target_ranges(sample, tokens, places)
            except RowFault as fault:
                unused.add(row, fault, sample.source_row)
                continue
            kinds = _kinds(sample, len(tokens), own, places[len(places) - len(own) :]) if tells_kinds else []
            if not self._is_chat:
                self._finish(tokens, ranges, kinds)
            if self._is_unfinished(sample, tokens):
                sample.notes.append("unfinished")
            if tells_kinds:
                for kind, (start, stop) in ranges:
                    kinds[start:stop] = kinds[start:stop] if kind == "all" else [kind] * (stop - start)
            encoded.append(_Encoded(row, sample, array("i", tokens), ranges, kinds))
        return [one for one in encoded if one.row not in unused]

    def _target_ranges(self, sample: Rendering, tokens: list[int], places: list[Span | None]) -> Ranges:
        """The tokens that are trained, from..to-1, by kind and in order; each token is in one range alone.

        places: the tokens of each target, and of each end token.
        """
        if not tokens:
            raise RowFault("empty_turn", "the tokenizer gives no token for it")
        if sample.targets is None:
            return [("answer" if self._format.name == "text" else "all", (0, len(tokens)))]
        ranges: Ranges = []
        at = 0
        for (kind, _), place in zip(sample.targets, places, strict=False):
            if place is not None and place[1] > at:
                ranges.append((kind, (max(at, place[0]), place[1])))
                at = place[1]
        if not ranges:
            raise RowFault("empty_turn", "an assistant turn gives no token")
        for span, place in zip(sample.end_tokens, places[len(sample.targets) :], strict=False):
            if place is None or tokens[place[0]] not in self._special_ids:
                text = sample.text[slice(*span)]
                raise RowFault("no_end_token", f"the tokenizer does not read the end token {text!r} as one token")
        return ranges

    def _finish(self, tokens: list[int], ranges: Ranges, kinds: list[str]) -> None:
        """One beginning and one end token around a sample that no template wrote; its targets go to the end."""
        bos, eos = self._bos, self._eos
        (kind, (first, _)) = ranges[0]
        if bos is not None and tokens[:2] == [bos, bos]:  # the text brought its own
            del tokens[0], kinds[:1]
            first = max(0, first - 1)
        if eos is not None and tokens[-2:] == [eos, eos]:
            del tokens[-1], kinds[-1:]
        if self._appended is not None and tokens[-1:] != [self._appended]:
            tokens.append(self._appended)
            kinds += ["end"] if kinds else []
        stop = len(tokens)
        ends = kind == "answer" and tokens[-1] in self._special_ids
        last = stop - 1 if ends else stop
        ranges[:] = [(kind, (first, last))] if first < last else []
        ranges += [("end", (last, stop))] if ends else []

    def _is_unfinished(self, sample: Rendering, tokens: list[int]) -> bool:
        """Whether something trained ends without a special token (and white space), as far as nobody looked yet."""
        if sample.end_tokens or "no_turn_end" in sample.notes or (self._is_chat and sample.targets is None):
            return False
        if not self._is_chat and tokens[-1] in self._special_ids:
            return False
        trained = _joined([span for _, span in sample.targets or []]) or [(0, len(sample.text))]
        return not all(self._ends_special.search(sample.text, start, stop) for start, stop in trained)


def _kinds(sample: Rendering, num_tokens: int, parts: Parts, places: list[Span | None]) -> list[str]:
    """What each token is by the text that it holds; one that holds several is of the first that somebody said."""
    kinds = [sample.around] * num_tokens
    at = 0
    for (kind, _), place in zip(parts, places, strict=True):
        if place is not None and place[1] > at:
            start = max(at, place[0])
            kinds[start : place[1]] = [kind] * (place[1] - start)
            at = place[1]
    return kinds


def _joined(spans: list[Span]) -> list[Span]:
    """Spans that touch, as one."""
    joined: list[Span] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((begin, end))
    return joined
