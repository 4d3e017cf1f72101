"""The manifest of a run, from what its windows became."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from pipeline.embedding.vectors import Vectors
from pipeline.format.counts import Counts
from pipeline.format.figures import Figures, Report, figures_of
from pipeline.format.identity import SINGLE, Identity
from pipeline.format.manifest import PackManifest
from pipeline.format.options import PackOptions
from pipeline.format.records import SplitEntry, WindowEntry
from pipeline.packing.samples import Samples
from pipeline.packing.setup import ConfiguredStrategy
from pipeline.packing.steps import PlannedWindow, Plans
from pipeline.reading.content import input_entries
from pipeline.reading.inputs import Input


def manifest_of(
    identity: Identity,
    inputs: Sequence[Input],
    samples: Samples,
    plans: Plans,
    vectors: Vectors | None,
    strategy: ConfiguredStrategy,
) -> PackManifest:
    """The manifest of a run over these inputs, but for its files and what seals it."""
    assert isinstance(identity.config, PackOptions)
    every = [planned for of_split in plans.values() for planned in of_split]
    splits = {
        split: SplitEntry(**_fields(_figures(of_split, vectors, strategy)), windows=_windows(of_split))
        for split, of_split in plans.items()
    }
    has_splits = SINGLE not in plans
    origin: dict[str, Any] = dict(identity.origin)
    return PackManifest(
        **_fields(_figures(every, vectors, strategy)),
        **origin,
        format_version=identity.format_version,
        algorithm_version=identity.algorithm_version,
        run_id=identity.run_id,
        config=identity.config,
        inputs=input_entries(inputs, samples.rows.rows_of_files, identity.batches[-1]),
        embedding=vectors.entry if vectors else UNSET,
        windows=UNSET if has_splits else splits[SINGLE].windows,
        splits=splits if has_splits else UNSET,
        files={},
        own_hash="",
        dropped_rows=UNSET if samples.tally is None else samples.tally.entry.dropped,
        tokenized=UNSET if samples.tally is None else samples.tally.entry,
    )


def _fields(figures: Figures) -> dict[str, Any]:
    return msgspec.structs.asdict(figures)


def _figures(windows: Sequence[PlannedWindow], vectors: Vectors | None, strategy: ConfiguredStrategy) -> Figures:
    summaries = [planned.summary for planned in windows]
    return figures_of(
        sum((summary.counts for summary in summaries), Counts()),
        packs=sum(summary.packs for summary in summaries),
        segments=sum(summary.segments for summary in summaries),
        most_segments=max((summary.most_segments for summary in summaries), default=0),
        sum_length_squared=sum(summary.sum_length_squared for summary in summaries),
        capacity=strategy.capacity,
        max_segments=strategy.max_segments,
        cuts_stream=strategy.cuts_stream,
        report=_report([summary.report for summary in summaries], vectors, strategy),
    )


def _report(reports: Sequence[Report], vectors: Vectors | None, strategy: ConfiguredStrategy) -> Report:
    """What is told of the sums of what the strategy reported for each window."""
    sums: Report = {}
    for report in reports:
        for key, value in report.items():
            sums[key] = sums.get(key, 0) + value
    figures = strategy.strategy.figures
    if figures is None or not sums:
        return sums
    return dict(figures(sums, vectors.preparation if vectors else {}))


def _windows(windows: Sequence[PlannedWindow]) -> list[WindowEntry]:
    return [
        WindowEntry(rows=planned.window.num_rows, tokens=planned.window.num_tokens, packs=planned.summary.packs)
        for planned in windows
    ]
