"""What a manifest tells of the packs of a dataset, or of one of its splits."""

from __future__ import annotations

import msgspec

from pipeline.format.counts import Counts

Report = dict[str, int | float]
"""What a strategy tells of a run, by name."""


class SegmentsPerPack(msgspec.Struct, frozen=True, kw_only=True):
    """How many segments a pack has."""

    mean: float
    max: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """The account, and how well packs are filled."""

    capacity: int
    """Tokens that a pack may hold."""

    counts: Counts
    packs: int
    fill: float
    """Tokens in packs / (packs × capacity), 0 to 1."""

    lower_bound: int
    """The least packs that so many tokens need, and, with `--max-segments`, so many segments."""

    segments_per_pack: SegmentsPerPack
    sum_length_squared: int
    """The sum of squared segment lengths, in tokens²: what attention within segments costs."""

    cuts_stream: bool
    """Whether samples were cut as one stream of tokens, so that `overlong` had no say."""

    report: Report

    @property
    def segments(self) -> int:
        """Segments in all packs."""
        return round(self.segments_per_pack.mean * self.packs)


def figures_of(
    counts: Counts,
    *,
    packs: int,
    segments: int,
    most_segments: int,
    sum_length_squared: int,
    capacity: int,
    max_segments: int | None,
    cuts_stream: bool,
    report: Report,
) -> Figures:
    """The figures that follow from an account and from what packs hold.

    segments: in all packs; most_segments: in one pack; max_segments: what a pack may hold, None for any number.
    """
    by_tokens, by_segments = -(-counts.tokens_packed // capacity), -(-segments // max_segments) if max_segments else 0
    return Figures(
        capacity=capacity,
        counts=counts,
        packs=packs,
        fill=counts.tokens_packed / (packs * capacity) if packs else 0.0,
        lower_bound=max(by_tokens, by_segments),
        segments_per_pack=SegmentsPerPack(mean=segments / packs if packs else 0.0, max=most_segments),
        sum_length_squared=sum_length_squared,
        cuts_stream=cuts_stream,
        report=report,
    )
