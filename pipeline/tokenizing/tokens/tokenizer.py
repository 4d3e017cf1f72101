"""A tokenizer, by path or Hub id: what it calls its special tokens, its content hash, and what encodes with it."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.digests import hash_bytes
from pipeline.base.errors import BusyError, ConfigError
from pipeline.base.words import first_line
from pipeline.tokenizing.tokens.places import Locator

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(?<!\.json)")


@dataclass(frozen=True, kw_only=True)
class TextTokenizer:
    """A loaded tokenizer. Encoding takes the special tokens in a text for what they are, as transformers does."""

    name: str
    """The base name of its path, or its Hub id."""

    content_hash: str
    """The hash of everything that decides token ids, and of what templates see of it."""

    special_ids: frozenset[int]
    special_tokens: tuple[str, ...]
    """The longest first."""

    special_texts: re.Pattern[str]
    """Matches any special token, the longest first."""

    bos_id: int | None
    eos_id: int | None
    eos_text: str | None
    eos_is_inferred: bool
    """The files name no end token; this is the only special token there is."""

    backend: Tokenizer
    locator: Locator
    """Encodes texts with it."""

    whole: PreTrainedTokenizerBase
    """As transformers loaded it, with its chat template."""

    def decode(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included."""
        return str(self.backend.decode(ids, skip_special_tokens=False))


def load_tokenizer(name: str) -> TextTokenizer:
    """Load a directory, a bare tokenizer.json or a Hub id.

    Raises `ConfigError` for what is no tokenizer or has no fast one, `BusyError` where the Hub is out of reach.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # blocks are encoded side by side, by our own threads
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of torch, which is not needed here
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of every retry
    path = Path(name)
    whole = _load(name, path)
    backend = getattr(whole, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"--tokenizer {name}: {type(whole).__name__} has no fast version, so no offsets to find targets"
        )
    state = _untrimmed(json.loads(backend.to_str()))
    names = {key: str(value) for key, value in whole.special_tokens_map.items()}
    special = {token.content: number for number, token in whole.added_tokens_decoder.items() if token.special}
    special |= {token: whole.convert_tokens_to_ids(token) for token in (whole.bos_token, whole.eos_token) if token}
    eos, inferred = whole.eos_token, False
    if eos is None and len(special) == 1:
        (eos,), inferred = special, True
    content = json.dumps([state, names], sort_keys=True, ensure_ascii=True)
    longest_first = tuple(sorted(special, key=len, reverse=True))
    from tokenizers import Tokenizer  # noqa: PLC0415 - only where tokens are made

    try:
        untrimmed = Tokenizer.from_str(json.dumps(state))
    except Exception as error:
        raise ConfigError(f"--tokenizer {name}: damaged ({first_line(error)})") from None
    return TextTokenizer(
        name=path.resolve().name if path.exists() else name,
        content_hash=hash_bytes(content.encode()),
        special_ids=frozenset(special.values()),
        special_tokens=longest_first,
        special_texts=re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"),
        bos_id=whole.bos_token_id,
        eos_id=None if eos is None else special[eos],
        eos_text=eos,
        eos_is_inferred=inferred,
        backend=untrimmed,
        locator=Locator(untrimmed, state),
        whole=whole,
    )


def _load(name: str, path: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415 - a second, torch or not

    if path.is_file():
        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:
            raise ConfigError(f"--tokenizer {name}: not a tokenizer.json ({first_line(error)})") from None
    if not path.exists() and not _HUB_ID.fullmatch(name):
        raise ConfigError(f"--tokenizer {name}: no such file or directory")
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        if path.is_dir():
            raise ConfigError(f"--tokenizer {name}: no tokenizer can be loaded from it ({first_line(error)})") from None
        message = f"--tokenizer {name}: no such path, and not loaded from the Hub ({first_line(error)})"
        is_passing = "connect" in str(error).lower() and not _is_offline()
        raise (BusyError if is_passing else ConfigError)(message) from None


def _is_offline() -> bool:
    from huggingface_hub.constants import is_offline_mode  # noqa: PLC0415

    return bool(is_offline_mode())


def _untrimmed(state: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's state that neither pads, truncates, nor leaves white space out of a token's offsets."""

    def untrim(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: False if key == "trim_offsets" else untrim(value) for key, value in part.items()}
        return [untrim(value) for value in part] if isinstance(part, list) else part

    return state | {"padding": None, "truncation": None, "post_processor": untrim(state.get("post_processor"))}
