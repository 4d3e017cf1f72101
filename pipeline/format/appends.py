"""What a manifest says once something was appended, and which shards belong to which run."""

from __future__ import annotations

import re
from typing import Any

from msgspec import UNSET, UnsetType, structs

from pipeline.format.figures import Figures, figures_of
from pipeline.format.manifest import AnyManifest, Manifest, PackManifest, TokenizeManifest
from pipeline.format.records import PackAppend, SplitEntry, TokenizeAppend, TokenizedSplit

_SHARD = re.compile(r"data-([0-9a-f]{8})(?:-w(\d+))?-s(\d+)\.arrow")


def joined(old: Manifest, new: AnyManifest) -> AnyManifest:
    """The manifest of what was there with what a run over new files alone gives, but for its files and its seal."""
    if isinstance(old, PackManifest):
        assert isinstance(new, PackManifest), "packs are appended to packs"
        return _joined_packs(old, new)
    assert isinstance(new, TokenizeManifest), "tokens are appended to tokens"
    return _joined_tokens(old, new)


def _joined_packs(old: PackManifest, new: PackManifest) -> PackManifest:
    names = [name for name in PackAppend.__struct_fields__ if name != "files"]
    append = PackAppend(**{name: getattr(new, name) for name in names}, files=new.inputs)
    cap = new.config.max_segments
    splits: dict[str, SplitEntry] | UnsetType = UNSET
    if isinstance(old.splits, dict) and isinstance(new.splits, dict):
        splits = {
            split: structs.replace(
                part, **_totals(part, new.splits[split], cap), windows=part.windows + new.splits[split].windows
            )
            for split, part in old.splits.items()
        }
    tally = UNSET if old.tokenized is UNSET or new.tokenized is UNSET else old.tokenized + new.tokenized
    windows = UNSET if old.windows is UNSET or new.windows is UNSET else old.windows + new.windows
    return structs.replace(
        old,
        **_totals(old, new, cap),
        run_id=new.run_id,
        inputs=old.inputs + new.inputs,
        windows=windows,
        splits=splits,
        dropped_rows=UNSET if tally is UNSET else tally.dropped,
        tokenized=tally,
        appends=[*_appends(old), append],
    )


def _totals(old: Figures, new: Figures, max_segments: int | None) -> dict[str, Any]:
    """The figures of both together, with the report of the first."""
    whole = figures_of(
        old.counts + new.counts,
        packs=old.packs + new.packs,
        segments=old.segments + new.segments,
        most_segments=max(old.segments_per_pack.max, new.segments_per_pack.max),
        sum_length_squared=old.sum_length_squared + new.sum_length_squared,
        capacity=old.capacity,
        max_segments=max_segments,
        cuts_stream=old.cuts_stream,
        report=old.report,
    )
    return structs.asdict(whole)


def _joined_tokens(old: TokenizeManifest, new: TokenizeManifest) -> TokenizeManifest:
    append = TokenizeAppend(run_id=new.run_id, files=new.inputs, counts=new.counts, splits=new.splits)
    splits: dict[str, TokenizedSplit] | UnsetType = UNSET
    if isinstance(old.splits, dict) and isinstance(new.splits, dict):
        later = new.splits
        splits = {split: TokenizedSplit(counts=part.counts + later[split].counts) for split, part in old.splits.items()}
    return structs.replace(
        old,
        run_id=new.run_id,
        inputs=old.inputs + new.inputs,
        counts=old.counts + new.counts,
        splits=splits,
        appends=[*_appends(old), append],
    )


def _appends(manifest: Manifest) -> list[Any]:
    return list(manifest.appends) if isinstance(manifest.appends, list) else []


def shards_of(manifest: Manifest, split: str) -> list[tuple[int, int, str]]:
    """Each shard of a split, in order: the number of the run that wrote it (0 the first, then the appends), the window
    in that run, and its path.
    """
    numbers = {append.run_id[:8]: number for number, append in enumerate(_appends(manifest), 1)}
    shards = []
    for path in manifest.files:
        folder, _, name = path.rpartition("/")
        match = _SHARD.fullmatch(name)
        if match and folder == split:
            shards.append((numbers.get(match[1], 0), int(match[2] or 0), int(match[3]), path))
    return [(run, window, path) for run, window, _, path in sorted(shards)]
