"""Token ids of texts, and the tokens that overlap given characters.

The tokenizer can follow every character to its token, which takes it a fifth of its time. Where a vocabulary is made of
bytes (as of GPT-2, Llama 3, Qwen), that is not needed: what the tokens write, one after the other, is the text, so the
lengths of the tokens say where each stands. Whether it is the text is looked at for every one; where it is not, as with
a normaliser that changed something, the tokenizer is asked for places after all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from strategies.arrays import Int64Array

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Span = tuple[int, int]
"""Characters of a text, or tokens, from..to-1."""

_MANY_TOKENS = 1 << 13
"""From so many on, places are searched for by bisection; below, it takes the tokenizer less to look at every token."""

_NO_TEXT = b"\xff"
"""Stands in no text: what a token writes of which that is not known."""


class LocatedTokens(NamedTuple):
    """The tokens of a text, and where some of its characters are among them."""

    ids: list[int]
    places: list[Span | None]
    """The tokens that overlap each of the spans that were asked for; None where there are none."""


class Locator:
    """Encodes texts and tells which tokens overlap some of their characters. For any number of threads."""

    def __init__(self, backend: Tokenizer, state: dict[str, Any]) -> None:
        """state: what `backend` is made of, its tokenizer.json."""
        self._backend = backend
        self._is_bytes = _writes_bytes(state)

    def encode(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], *, add_special_tokens: bool
    ) -> list[LocatedTokens]:
        """Encode each text; never padded, never truncated.

        spans: for each text, the characters to be located; a character may have several tokens.
        add_special_tokens: what the tokenizer puts around a plain text; templates write their own.
        """
        adds = add_special_tokens and self._backend.num_special_tokens_to_add(is_pair=False) > 0
        if any(spans) and (adds or not self._is_bytes):
            return self._asked(texts, spans, add_special_tokens)
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        ids = [encoding.ids for encoding in encodings]
        if not any(spans):
            return [LocatedTokens(own, []) for own in ids]
        written = self._written
        encoded = [text.encode() for text in texts]
        differ = [
            number
            for number, (own, text) in enumerate(zip(ids, encoded, strict=True))
            if spans[number] and b"".join([written[token] for token in own]) != text
        ]
        again = [texts[number] for number in differ], [spans[number] for number in differ]
        asked = dict(zip(differ, self._asked(*again, add_special_tokens), strict=True)) if differ else {}
        places = self._places(ids, texts, encoded, [() if number in asked else own for number, own in enumerate(spans)])
        return [asked.get(number) or LocatedTokens(*both) for number, both in enumerate(zip(ids, places, strict=True))]

    def _asked(
        self, texts: Sequence[str], spans: Sequence[Sequence[Span]], add_special_tokens: bool
    ) -> list[LocatedTokens]:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [
            LocatedTokens(encoding.ids, located(encoding, own)) for encoding, own in zip(encodings, spans, strict=True)
        ]

    def _places(
        self,
        ids: Sequence[list[int]],
        texts: Sequence[str],
        encoded: Sequence[bytes],
        spans: Sequence[Sequence[Span]],
    ) -> list[list[Span | None]]:
        """The tokens that overlap spans, where tokens write the bytes of their text one after the other."""
        num_tokens = sum(map(len, ids))
        ends = np.cumsum(self._lengths[np.fromiter(chain.from_iterable(ids), np.int64, num_tokens)])
        edges: list[int] = []  # the first and the last byte of each span, in turn
        firsts: list[int] = []  # the first token of its text, for each of them
        token = 0
        byte = 0
        for own, text, content, wanted in zip(ids, texts, encoded, spans, strict=True):
            for begin, end in wanted if len(text) == len(content) else _in_bytes(text, wanted):
                edges += (byte + begin, byte + end - 1)
                firsts += (token, token)
            token += len(own)
            byte = int(ends[token - 1]) if token else 0
        tokens = (np.searchsorted(ends, edges, side="right") - np.array(firsts, np.int64)).tolist()
        places = zip(tokens[::2], [last + 1 for last in tokens[1::2]], strict=True)
        return [
            [place if begin < end else None for (begin, end), place in zip(own, places, strict=False)] for own in spans
        ]

    @cached_property
    def _written(self) -> list[bytes]:
        """What each token writes.  # length: vocabulary"""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        added = {number: token.content for number, token in self._backend.get_added_tokens_decoder().items()}
        written = [_NO_TEXT] * (max(vocabulary.values()) + 1)
        for text, number in vocabulary.items():
            try:
                written[number] = text.translate(_BYTES).encode("latin-1")
            except UnicodeEncodeError:
                continue
        for number, text in added.items():
            written[number] = text.encode()
        return written

    @cached_property
    def _lengths(self) -> Int64Array:
        """Bytes that each token writes.  # shape: (vocabulary,)"""
        return np.array([len(text) for text in self._written], np.int64)


def located(encoding: Encoding, spans: Sequence[Span]) -> list[Span | None]:
    """The tokens of an encoding that overlap each of some spans of its text; None where there are none."""
    if len(encoding) < _MANY_TOKENS:
        return [_overlapping(encoding, span) for span in spans]
    own = range(len(encoding))  # without what the tokenizer puts around a text
    while own and encoding.token_to_chars(own[0]) is None:
        own = own[1:]
    while own and encoding.token_to_chars(own[-1]) is None:
        own = own[:-1]
    return [_searched(encoding, own, span) for span in spans]


def _overlapping(encoding: Encoding, span: Span) -> Span | None:
    """The tokens that overlap some characters, which may have no token, or several. O(tokens) for each character."""
    at, end = span
    first = None
    while at < end and (first := encoding.char_to_token(at)) is None:
        at += 1
    if first is None:
        return None
    at = end - 1
    while (last := encoding.char_to_token(at)) is None:
        at -= 1
    stop = last + 1
    while stop < len(encoding) and (chars := encoding.token_to_chars(stop)) is not None and chars[0] < end:
        stop += 1  # the last character has several tokens
    return first, stop


def _searched(encoding: Encoding, own: range, span: Span) -> Span | None:
    """The same in O(log(tokens)), by bisection among the text's own tokens, which are in the order of the text."""

    def chars(token: int) -> Span:
        found = encoding.token_to_chars(token)
        assert found is not None, "a token of the text"
        return found

    at, end = span
    first = bisect_right(own, at, key=lambda token: chars(token)[1])
    stop = bisect_left(own, end, lo=first, key=lambda token: chars(token)[0])
    while first < stop and chars(own[first])[0] == chars(own[first])[1]:
        first += 1
    return (own[first], own[stop - 1] + 1) if at < end and first < stop else None


def _in_bytes(text: str, spans: Sequence[Span]) -> list[Span]:
    """Spans of a text's characters as those of its bytes."""
    byte_of: dict[int, int] = {}
    at = byte = 0
    for edge in sorted({edge for span in spans for edge in span}):
        byte += len(text[at:edge].encode())
        at = edge
        byte_of[edge] = byte
    return [(byte_of[begin], byte_of[end]) for begin, end in spans]


def _writes_bytes(state: dict[str, Any]) -> bool:
    """Whether tokens are pieces of the text's bytes, as far as that can be told beforehand."""
    before = _parts(state, "pre_tokenizer", "pretokenizers")
    levels = [part for part in before if part["type"] == "ByteLevel"]
    normalizers = [part["type"] for part in _parts(state, "normalizer", "normalizers")]
    strips = any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"])  # white space beside them
    is_whole = bool(levels) and not any(part["add_prefix_space"] for part in levels)
    return is_whole and not strips and set(normalizers) <= {"NFC"}


def _parts(state: dict[str, Any], name: str, names: str) -> list[dict[str, Any]]:
    """The steps that a part of a tokenizer is made of."""
    part = state.get(name)
    return [] if part is None else part[names] if part["type"] == "Sequence" else [part]


def _byte_characters() -> dict[int, int]:
    """Character of a byte-level vocabulary -> its byte, as GPT-2 has it: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + number: byte for number, byte in enumerate(others)}


_BYTES = _byte_characters()
