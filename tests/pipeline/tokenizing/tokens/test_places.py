"""Tokens are located by the bytes that they write exactly where the tokenizer itself has them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pipeline.tokenizing.tokens import places
from pipeline.tokenizing.tokens.places import LocatedTokens, Locator, Span, located

PIECES = (
    *("the", " words", "  ", "\n", "\r\n", "\t", "\0", "\u00a0", "'ll", "<|im_end|>", "</s>", "1234", "...", "é"),
    *("e\u0301", "\u1112\u1161\u11ab", "한글", "漢字", "🤦🏽‍♂️", "🇩🇪", "ﬁ", "\ufeff", "\U000f0000", "ب", "\u212b"),
)


@pytest.fixture
def state(tokenizer_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    return loaded | {"post_processor": None}


def random_texts(count: int) -> tuple[list[str], list[list[Span]]]:
    """Texts of pieces that are hard to cut, and spans of each, some empty and in no order."""
    chosen = random.Random(0)
    texts = ["".join(chosen.choices(PIECES, k=chosen.randint(1, 30))) for _ in range(count)]
    return texts, [
        [(min(pair), max(pair)) for pair in (chosen.choices(range(len(text) + 1), k=2) for _ in range(6))]
        for text in texts
    ]


def expected(backend: Tokenizer, texts: list[str], spans: list[list[Span]]) -> list[LocatedTokens]:
    encodings = backend.encode_batch(texts, add_special_tokens=True)
    return [LocatedTokens(encoding.ids, located(encoding, own)) for encoding, own in zip(encodings, spans, strict=True)]


def asked(locator: Locator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts for whose places the tokenizer will be asked."""
    texts: list[str] = []
    own = locator._asked

    def remember(*arguments: Any) -> list[LocatedTokens]:
        texts.extend(arguments[0])
        return own(*arguments)

    monkeypatch.setattr(locator, "_asked", remember)
    return texts


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_places_are_the_tokenizers(
    state: dict[str, Any], normalizer: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = state | {"normalizer": normalizer}
    backend = Tokenizer.from_str(json.dumps(state))
    texts, spans = random_texts(600)
    locator = Locator(backend, state)
    again = asked(locator, monkeypatch)
    assert locator.encode(texts, spans, add_special_tokens=True) == expected(backend, texts, spans)
    changed = [] if normalizer is None else [text for text in texts if backend.normalizer.normalize_str(text) != text]
    assert again == changed
    assert bool(changed) == (normalizer is not None)
    assert len(changed) < len(texts) - 50


def test_texts_without_spans_are_not_looked_into(state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Tokenizer.from_str(json.dumps(state | {"normalizer": {"type": "Lowercase"}}))
    locator = Locator(backend, state)
    again = asked(locator, monkeypatch)
    texts = ["ONE", "", "two"]
    assert locator.encode(texts, [[], [], []], add_special_tokens=True) == expected(backend, texts, [[], [], []])
    assert again == []


def spaced(state: dict[str, Any]) -> None:
    state["pre_tokenizer"]["add_prefix_space"] = True


def stripping(state: dict[str, Any]) -> None:
    state["added_tokens"][-1]["rstrip"] = True


def lowered(state: dict[str, Any]) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def beginning(state: dict[str, Any]) -> None:
    token = state["added_tokens"][0]
    special = {token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}}
    single = [{"SpecialToken": {"id": token["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    state["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}


@pytest.mark.parametrize("change", [spaced, stripping, lowered, beginning])
def test_tokenizers_that_write_something_else_are_asked(
    state: dict[str, Any], change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(state)
    backend = Tokenizer.from_str(json.dumps(state))
    locator = Locator(backend, state)
    again = asked(locator, monkeypatch)
    texts, spans = random_texts(50)
    assert locator.encode(texts, spans, add_special_tokens=True) == expected(backend, texts, spans)
    assert again == texts, "all of them, once"


@pytest.mark.parametrize("change", [spaced, stripping, lowered, beginning])
def test_many_tokens_are_searched(state: dict[str, Any], change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change(state)
    backend = Tokenizer.from_str(json.dumps(state))
    texts, spans = random_texts(300)
    one_by_one = expected(backend, texts, spans)
    monkeypatch.setattr(places, "_MANY_TOKENS", 0)
    assert expected(backend, texts, spans) == one_by_one
    assert any(None in found.places for found in one_by_one) or change is not stripping


def test_words_are_not_bytes() -> None:
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    backend = Tokenizer(WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    locator = Locator(backend, json.loads(backend.to_str()))
    found = locator.encode(["one  two x"], [[(0, 3), (3, 5), (4, 8), (9, 10)]], add_special_tokens=False)
    assert found == [LocatedTokens([1, 2, 0], [(0, 1), None, (1, 2), (2, 3)])]
