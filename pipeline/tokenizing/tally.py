"""What became of raw rows, said when it is done, and listed where rows were left out."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.base.storage import FileFacts, HashingFile, open_file
from pipeline.base.words import counted
from pipeline.format.records import Tally
from pipeline.tokenizing.rows.trees import LEFT_OUT

log = logging.getLogger(__name__)

DROPPED = "dropped.jsonl"
"""The file that lists the rows left out, where leaving out was asked for."""

OTHERS = "…"
"""What unread columns are counted under once there are very many."""

_MOST_NAMES, _MOST_TOLD, _LONGEST_NAME = 1000, 20, 60

NOTES = {
    "unfinished": "what is trained ends without an end token, so the model would not learn to stop; --append-eos adds"
    " one to text and pairs, and the marks of a template should go round it",
    "holds_special": "special tokens stand in the sample's own words: was a template applied to it before?"
    " --special-in-text split encodes them there as plain text",
    "special_split": "special tokens stood in their own words and were encoded as plain text, as asked",
    "history_inserted": "the template writes the earlier turns otherwise once they are history (no reasoning is"
    " left out: what it inserts, or where it puts tools or a system turn, differs); --history expand makes"
    " a sample of each answer as it is at inference",
    "history_left_out": "the template leaves out the reasoning of earlier turns",
    "prompt_unwritten": "the template opens an answer with text, such as <think> or an empty thought, that it does not"
    " write into the chat itself, so the answer is trained after other text than it is generated after; --history"
    " expand (of earlier turns), a template that writes it (--chat-template FILE), or one that is told not to open it"
    " (--template-kwargs) makes them agree",
    "history_column": "their earlier turns were taken from the history column",
    "reasoning_dropped": "their reasoning was taken out before rendering, as asked",
    "result_tags": "the tags <tool_response> round their results were taken off, as the template writes them itself",
    "tools_twice": "their system turn describes tools in <tools>, and the template writes those of their column, too;"
    " take one of the two out",
    "calls_twice": "calls stand as <tool_call> in the text of turns that have them under tool_calls, too, so they are"
    " written twice; take one of the two out",
    "calls_as_text": "calls stand as <tool_call> in the text of answers and are trained as such: the template writes"
    " calls otherwise, or they were to be masked; give them under tool_calls",
    "free_arguments": "arguments of calls are no object, nor JSON text of one, and are trained as they stand; write"
    ' them as an object, as in {"city": "Oslo"}',
    "reasoning_as_text": "answers begin with reasoning in marks, and the template writes others round reasoning; give"
    " it under reasoning_content to have these, or take it out with --reasoning drop",
    "reasoning_unread": "answers begin with reasoning in marks that were not looked for, as <thinking> or [THINK], so"
    " it is trained as answer; --reasoning-marks OPEN,CLOSE names them",
    "kwargs_unread": "the template does not read all that their chat_template_kwargs tell",
    "unsaid_tools": "the template does not write their tools, as allowed",
    "unsaid_system": "the template does not write their system turn, as allowed",
    "unsaid_names": "the template does not write the names of their speakers",
    "unranked_replies": "no reply to some message has a rank, so the first in the file was taken",
    "no_turn_end": "no special token ends a trained turn, as allowed, so the model does not learn to stop there",
}
"""What is said of samples that are used all the same."""


@dataclass(kw_only=True)
class RowTally:
    """Counts of rows and of what they gave."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Targets by kind."""

    turns: Counter[str] = field(default_factory=Counter)
    """Turns by what `Tally` counts of them."""

    notes: Counter[str] = field(default_factory=Counter)
    """Samples about which something is to be said, by what."""

    first_noted: dict[str, str] = field(default_factory=dict)
    """Where the first of them is."""

    unread: Counter[str] = field(default_factory=Counter)
    """Rows in which a column has content that is not read, by its name."""

    unread_keys: Counter[str] = field(default_factory=Counter)
    """Turns in which a key has content that is not read, by its name."""

    file_rows: Counter[int] = field(default_factory=Counter)
    """Rows by the number of their file."""

    def add(self, other: RowTally) -> None:
        """Count the rows of `other`, which come later."""
        for name in ("rows", "samples", "tokens", "targets"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped += other.dropped
        self.kinds += other.kinds
        self.turns += other.turns
        self.notes += other.notes
        self.file_rows += other.file_rows
        for mine, others in ((self.unread, other.unread), (self.unread_keys, other.unread_keys)):
            for name, number in others.items():
                mine[name if name in mine or len(mine) < _MOST_NAMES else OTHERS] += number
        self.first_noted = other.first_noted | self.first_noted

    @property
    def entry(self) -> Tally:
        """What the manifest says of it."""
        return Tally(
            rows=self.rows,
            samples=self.samples,
            tokens=self.tokens,
            targets=self.targets,
            dropped=dict(sorted(self.dropped.items())),
            targets_by_kind=dict(sorted(self.kinds.items())),
            unread=dict(sorted(self.unread.items())),
            unread_keys=dict(sorted(self.unread_keys.items())),
            **self.turns,
        )

    @staticmethod
    def from_json(value: dict[str, Any]) -> RowTally:
        """Read what `vars` gave, from JSON."""
        file_rows = Counter({int(number): rows for number, rows in value["file_rows"].items()})
        names = ("dropped", "kinds", "turns", "notes", "unread", "unread_keys")
        counters = {name: Counter(value[name]) for name in names}
        return RowTally(**value | counters | {"file_rows": file_rows})

    @staticmethod
    def total(tallies: Iterable[RowTally]) -> RowTally:
        """The tallies of consecutive runs of rows as one."""
        whole = RowTally()
        for tally in tallies:
            whole.add(tally)
        return whole


def warn_of_rows(tally: RowTally, *, are_listed: bool) -> None:
    """Warn of rows left out, and of samples that may not be what the user thinks.

    are_listed: whether the rows left out are written to a file.
    """
    if tally.dropped:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in sorted(tally.dropped.items()))
        where = f", listed in {DROPPED}" if are_listed else ""
        log.warning("%s left out (%s)%s", counted(tally.dropped.total(), "row"), reasons, where)
    if tally.unread:
        log.warning("columns with content that is not read: %s", _unread(tally.unread, "row", "column"))
    if tally.unread_keys:
        log.warning("keys of turns that are not read: %s", _unread(tally.unread_keys, "turn", "key"))
    for note, number in sorted(tally.notes.items()):
        if note in LEFT_OUT:
            left_out = f"{counted(number, 'message')} of trees left out"
            log.warning("%s, the first in %s: %s", left_out, tally.first_noted[note], LEFT_OUT[note])
        else:
            log.warning("%s, the first in %s: %s", counted(number, "sample"), tally.first_noted[note], NOTES[note])


def _unread(numbers: Counter[str], unit: str, what: str) -> str:
    """The names of what is not read, those of the most rows or turns first."""
    ordered = sorted(numbers.items(), key=lambda item: (item[0] == OTHERS, -item[1], item[0]))
    told = [f"{name[:_LONGEST_NAME]} ({counted(number, unit)})" for name, number in ordered[:_MOST_TOLD]]
    left = len(ordered) - len(told)
    return ", ".join(told) + (f" and {counted(left, what)} more" if left else "")


def write_dropped(parts: Iterable[Path], folder: Path) -> FileFacts:
    """Join the lists of all shards into the dataset's folder. Raises `OSError`."""
    file = HashingFile(folder / DROPPED)
    try:
        for part in parts:
            with open_file(part) as lines:
                shutil.copyfileobj(lines, file)
        return file.finish()
    finally:
        file.discard()
