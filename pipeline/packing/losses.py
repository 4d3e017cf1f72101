"""What a run leaves out: refused where nobody chose it, said loudly where it was not asked for."""

from __future__ import annotations

import logging
from dataclasses import replace

from msgspec import UNSET

from pipeline.base.errors import DataError
from pipeline.base.words import counted
from pipeline.format.manifest import PackManifest
from pipeline.format.options import PackOptions
from pipeline.packing.segments import OverlongSamples
from pipeline.packing.steps import Plans
from pipeline.reading.input_rows import InputRows

log = logging.getLogger(__name__)


def overlong_samples(plans: Plans) -> OverlongSamples:
    """The samples of all windows that are longer than `max_length`."""
    found = [planned.summary.overlong for of_split in plans.values() for planned in of_split]
    longest = max(found, key=lambda one: one.longest, default=OverlongSamples())
    return replace(longest, samples=sum(one.samples for one in found))


def refuse_overlong(plans: Plans, rows: InputRows, options: PackOptions) -> None:
    """Raise `DataError` if samples are longer than `max_length` and nothing was chosen for them."""
    overlong = overlong_samples(plans)
    if options.overlong != "error" or not overlong.samples:
        return
    where = next(
        rows.splits[split].locate(planned.window.first_row + planned.summary.overlong.longest_row)
        for split, of_split in plans.items()
        for planned in of_split
        if planned.summary.overlong.longest == overlong.longest
    )
    raise DataError(
        f"longer than --max-length {options.max_length}: {counted(overlong.samples, 'sample')};"
        f" the longest has {overlong.longest:,} tokens ({where}). Choose --overlong drop (leave them out),"
        " truncate (keep their beginning) or split (cut them into several), or a larger --max-length"
    )


def warn_of_losses(manifest: PackManifest) -> None:
    """Say loudly what was left out unasked."""
    losses = manifest.counts.dropped
    of_raw = 0 if manifest.dropped_rows is UNSET else sum(manifest.dropped_rows.values())
    no_tokens = losses.empty.samples - of_raw
    if no_tokens:
        log.warning("%s without tokens left out (empty)", counted(no_tokens, "sample"))
    if losses.no_targets.samples:
        log.warning(
            "%s (%s) without anything to train left out (no_targets); --keep-untrainable keeps them",
            counted(losses.no_targets.samples, "sample"),
            counted(losses.no_targets.tokens, "token"),
        )
    if not manifest.packs:
        log.warning("there was nothing to pack; the output is a valid, empty dataset")
