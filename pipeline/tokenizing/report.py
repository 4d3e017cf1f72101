"""What is said of a finished tokenisation, and listed of the rows left out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.storage import FileFacts, HashingFile
from pipeline.base.words import counted
from pipeline.tokenizing.encoding import NOTES
from pipeline.tokenizing.shards import Tally

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
"""Lists the rows left out, where leaving out was asked for."""


def write_skipped(parts: Iterable[Path], folder: Path) -> FileFacts:
    """Join the lists of all shards into the dataset's folder."""
    file = HashingFile(folder / SKIPPED)
    try:
        for part in parts:
            with part.open("rb") as lines:
                shutil.copyfileobj(lines, file)
        return file.finish()
    finally:
        file.discard()


def tell(tally: Tally, *, listed: bool) -> None:
    """Warn of rows left out, and of samples that may not be what the user thinks.

    listed: whether the rows left out were written to a file.
    """
    if tally.skipped:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(tally.skipped.items()))
        where = f", listed in {SKIPPED}" if listed else ""
        log.warning("%s left out (%s)%s", counted(tally.skipped.total(), "row"), reasons, where)
    for note, number in sorted(tally.notes.items()):
        log.warning("%s, the first in %s: %s", counted(number, "sample"), tally.first_noted[note], NOTES[note])
