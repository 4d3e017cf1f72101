"""Special tokens in people's own words, told from those that a template writes, and encoded as plain text.

In the words each stands hidden: as many private-use characters as it has, so that every place in a text stays where it
is. Whatever a template does with the words, the special tokens of its rendering are then its own. To encode it, the two
change places: the words' are text again, and the template's are the private-use characters, which a copy of the
tokenizer knows as tokens, while it takes special tokens for text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.tokens.places import LocatedTokens, Span, located
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Words = TypeVar("Words")
"""A text, or lists and objects of texts."""

HIDDEN = "special_split"
"""The note of a sample in which special tokens are hidden."""

_FIRST = 0xF0000  # of a plane that is for private use


@dataclass(frozen=True, slots=True)
class _PlainEncoding:
    """An encoding by the copy of the tokenizer, and the ids of the tokenizer itself."""

    ids: list[int]
    encoding: Encoding


class OwnWords:
    """What becomes of special tokens in people's own words."""

    def __init__(self, tokenizer: TextTokenizer, choice: Literal["warn", "error", "split"]) -> None:
        self._tokenizer, self._choice = tokenizer, choice
        self._special = tokenizer.special_texts
        specials = tokenizer.special_tokens
        self._stand_ins = {text: chr(_FIRST + number) * len(text) for number, text in enumerate(specials)}
        self._told = {stand_in: text for text, stand_in in self._stand_ins.items()}
        self._hidden = re.compile("|".join(self._told) or r"(?!)")
        self._either = re.compile(f"{self._special.pattern}|{self._hidden.pattern}")
        self._exchanged = self._stand_ins | self._told
        self._private = re.compile(f"[{chr(_FIRST)}-{chr(_FIRST + len(specials))}]")

    def are_plain(self, texts: Iterable[str]) -> bool:
        """Whether no special token stands in texts."""
        return not any(map(self._special.search, texts))

    def look(self, words: Words, notes: list[str]) -> Words:
        """Look for special tokens in words; returns them as they are to be rendered.

        notes: what is said of the sample, to which it is added what was found: `HIDDEN` where something is hidden now.
        Raises `RowFault` where they are an error, or cannot be hidden.
        """
        if self.are_plain(_texts(words)):
            return words
        if self._choice == "error":
            raise RowFault(
                "special_in_text",
                "special tokens stand in the sample's own words; --special-in-text split encodes them as plain text",
            )
        if self._choice == "warn":
            notes.append("holds_special")
            return words
        if any(self._private.search(text) for text in _texts(words)):
            raise RowFault(
                "special_in_text",
                "special tokens stand in the sample's own words, and private-use characters (from U+F0000) that"
                " --special-in-text split needs itself",
            )
        notes.append(HIDDEN)
        return cast(Words, _mapped(words, self._hide))

    def shown(self, words: Words) -> Words:
        """Words with what is hidden in them."""
        return cast(Words, _mapped(words, lambda text: self._hidden.sub(lambda match: self._told[match[0]], text)))

    def encode(self, text: str, spans: Sequence[Span], *, add_special_tokens: bool) -> LocatedTokens:
        """Encode a text, what is hidden in it as plain text, and locate spans of it; see `Locator.encode`.

        Raises `RowFault` where it cannot be.
        That the copy of the tokenizer does what the tokenizer does is proved by the text without what is hidden.
        """
        harmless = self._hidden.sub(lambda match: "x" * len(match[0]), text)
        usual = self._tokenizer.backend.encode(harmless, add_special_tokens=add_special_tokens)
        same = self._encoded(self._hide(harmless), add_special_tokens)
        if usual.ids != same.ids or usual.offsets != same.encoding.offsets:
            raise RowFault(
                "special_in_text",
                "special tokens stand in the sample's own words, and this tokenizer cannot take them for plain text and"
                " the template's for what they are",
            )
        found = self._encoded(self._either.sub(lambda match: self._exchanged[match[0]], text), add_special_tokens)
        hidden = list(self._hidden.finditer(text))
        for match, place in zip(hidden, located(found.encoding, [one.span() for one in hidden]), strict=True):
            if place is not None and not self._tokenizer.special_ids.isdisjoint(found.ids[slice(*place)]):
                raise RowFault(
                    "special_in_text",
                    f"{self._told[match[0]]!r} stands in the sample's own words, and the tokenizer has it as an"
                    " ordinary word too, so it cannot be encoded as plain text",
                )
        return LocatedTokens(found.ids, located(found.encoding, spans))

    def _hide(self, text: str) -> str:
        return self._special.sub(lambda match: self._stand_ins[match[0]], text)

    def _encoded(self, text: str, add_special_tokens: bool) -> _PlainEncoding:
        copy, ids = self._copy
        encoding = copy.encode(text, add_special_tokens=add_special_tokens)
        return _PlainEncoding([ids.get(token, token) for token in encoding.ids], encoding)

    @cached_property
    def _copy(self) -> tuple[Tokenizer, dict[int, int]]:
        """The copy of the tokenizer, and the ids of its stand-ins -> those of the special tokens."""
        from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415 - only where tokens are made

        backend = self._tokenizer.backend
        copy = Tokenizer.from_str(backend.to_str())
        copy.encode_special_tokens = True
        known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        for text, stand_in in self._stand_ins.items():
            own = known.get(text, AddedToken(text, normalized=False))
            flags = {name: getattr(own, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            copy.add_tokens([AddedToken(stand_in, special=False, **flags)])
        ids = {copy.token_to_id(stand_in): backend.token_to_id(text) for stand_in, text in self._told.items()}
        return copy, cast("dict[int, int]", ids)


def _texts(words: Any) -> Iterator[str]:
    """All texts in words, the keys of objects too."""
    if isinstance(words, str):
        yield words
    elif isinstance(words, dict):
        for key, value in words.items():
            yield key
            yield from _texts(value)
    elif isinstance(words, list | tuple):
        for value in words:
            yield from _texts(value)


def _mapped(words: Any, change: Callable[[str], str]) -> Any:
    """Words with each of their texts changed."""
    if isinstance(words, str):
        return change(words)
    if isinstance(words, dict):
        return {_mapped(key, change): _mapped(value, change) for key, value in words.items()}
    return type(words)(_mapped(value, change) for value in words) if isinstance(words, list | tuple) else words
