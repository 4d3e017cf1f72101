"""What a manifest says of files, windows, splits, raw rows and appends, as typed records."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from pipeline.format.figures import Figures
from pipeline.format.identity import SINGLE, FileHash


class InputEntry(FileHash, frozen=True, kw_only=True):
    """One data file of the input."""

    rows: int
    bytes: int


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the directory; of a shard also what it holds."""

    bytes: int
    xxh3_128: str
    packs: int | UnsetType = UNSET
    segments: int | UnsetType = UNSET
    samples: int | UnsetType = UNSET
    tokens: int | UnsetType = UNSET
    targets: int | UnsetType = UNSET

    @property
    def is_shard(self) -> bool:
        """Whether it holds packs or samples."""
        return self.tokens is not UNSET


class WindowEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One window: its rows and tokens as they came, and the packs that they became."""

    rows: int
    tokens: int
    packs: int


class SplitEntry(Figures, frozen=True, kw_only=True):
    """One split of a packed dataset."""

    windows: list[WindowEntry]


class EmbeddingEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The vectors that related samples, and what the strategy prepared from them."""

    dimensions: int
    vectors_xxh3_128: str
    prepared_xxh3_128: str


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What became of raw rows."""

    rows: int
    samples: int
    tokens: int
    targets: int
    dropped: dict[str, int]
    """Rows left out, by reason."""

    targets_by_kind: dict[str, int] = {}
    """Targets by what they are: answer, reasoning, call, inserted, end; `all` where everything is trained."""

    turns: int = 0
    """Turns of the chats that gave samples, whoever speaks."""

    turns_trained: int = 0
    """Those that are trained, each in one sample."""

    reasoning_left_out: int = 0
    """Those whose reasoning stands in no sample: dropped, or left out by the template."""

    unread: dict[str, int] = {}
    """Rows in which a column has content that was not read, by its name."""

    unread_keys: dict[str, int] = {}
    """Turns in which a key has content that was not read, by its name."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: _sum(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__})


def _sum(one: Any, other: Any) -> Any:
    """The sum of two numbers, or of those under each key."""
    if not isinstance(one, dict):
        return one + other
    return {key: one.get(key, 0) + other.get(key, 0) for key in sorted({*one, *other})}


class TokenizedSplit(msgspec.Struct, frozen=True, kw_only=True):
    """One split of a tokenised dataset."""

    counts: Tally


def parts_of(
    figures: Figures, windows: list[WindowEntry] | UnsetType, splits: dict[str, SplitEntry] | UnsetType
) -> dict[str, SplitEntry]:
    """What is said of each split; a dataset without splits has one, called `SINGLE`."""
    if isinstance(splits, dict):
        return splits
    assert isinstance(windows, list), "there are windows where there are no splits"
    return {SINGLE: SplitEntry(**{name: getattr(figures, name) for name in Figures.__struct_fields__}, windows=windows)}


class PackAppend(Figures, frozen=True, kw_only=True):
    """One append to a packed dataset: what a run over its files alone would say, but for the numbers of samples."""

    run_id: str
    files: list[InputEntry]
    """The data files that it brought."""

    embedding: EmbeddingEntry | UnsetType = UNSET
    windows: list[WindowEntry] | UnsetType = UNSET
    splits: dict[str, SplitEntry] | UnsetType = UNSET
    dropped_rows: dict[str, int] | UnsetType = UNSET
    tokenized: Tally | UnsetType = UNSET

    @property
    def parts(self) -> dict[str, SplitEntry]:
        """See `PackManifest.parts`."""
        return parts_of(self, self.windows, self.splits)


class TokenizeAppend(msgspec.Struct, frozen=True, kw_only=True):
    """One append to a tokenised dataset."""

    run_id: str
    files: list[InputEntry]
    """The data files that it brought."""

    counts: Tally
    splits: dict[str, TokenizedSplit] | UnsetType = UNSET
