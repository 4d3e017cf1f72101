"""docs/templates.md, made of the cells."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from chat_matrix.cells import Cell
from chat_matrix.families import FAMILIES
from chat_matrix.kinds import KINDS

PAGE = Path(__file__).parents[2] / "docs/templates.md"
SHORT = {
    "--history expand": "expand",
    "--reasoning-inline": "inline",
    "--reasoning drop": "drop",
    "--turn-end next": "next",
    "--turn-end none": "none",
    "--unsaid allow": "unsaid",
}
"""Flags, as cells have them."""

_PLAIN = tuple(KINDS)[: tuple(KINDS).index("reasoning")]
_OTHERS = tuple(KINDS)[len(_PLAIN) :]
_NOTE = re.compile(r"^\*\*([a-z])\*\* (.*)$", re.MULTILINE)


def words_of(cell: Cell) -> str:
    """What a cell says, refusals in full. Raises `ValueError` for one that the oracles find wrong."""
    if cell.faults:
        raise ValueError("; ".join(cell.faults))
    if cell.refusal:
        return f"refused: {cell.refusal}"
    several = f"{cell.num_samples} samples" if cell.num_samples > 1 else ""
    told = ", ".join(filter(None, (*(SHORT[way] for way in cell.ways), several))) or "exact"
    return f"{told}, prompt" if cell.is_unprompted else told


def told_in(page: str) -> dict[str, dict[str, str]]:
    """What a page says of each template and kind, refusals in full."""
    notes = dict(_NOTE.findall(page))
    found: dict[str, dict[str, str]] = {}
    kinds: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| template"):
            kinds = cells[1:]
        elif kinds and line.startswith("| `"):
            told = [f"refused: {notes[cell]}" if cell in notes else cell for cell in cells[1:]]
            for name in re.findall(r"`(\w+)`", cells[0]):
                found.setdefault(name, {}).update(zip(kinds, told, strict=True))
        elif not line.startswith("|"):
            kinds = []
    return found


def page_of(matrix: Mapping[str, Mapping[str, Cell]]) -> str:
    """The page."""
    told = {name: {kind: words_of(cell) for kind, cell in row.items()} for name, row in matrix.items()}
    refusals = sorted({words for row in told.values() for words in row.values() if words.startswith("refused: ")})
    letters = {words: chr(ord("a") + number) for number, words in enumerate(refusals)}
    notes = "\n\n".join(f"**{letter}** {words.removeprefix('refused: ')}" for words, letter in letters.items())
    cells = [cell for row in matrix.values() for cell in row.values()]
    asked = [cell.by_marks for cell in cells if cell.by_marks is not None]
    return _TEXT.format(
        num_of_trl=sum(len(family.templates) for family in FAMILIES if not family.style),
        num_own=sum(len(family.templates) for family in FAMILIES if family.style),
        own="\n".join(_own()),
        num_kinds=len(KINDS),
        num_cells=len(cells),
        num_taken=sum(not cell.refusal for cell in cells),
        num_asked=len(asked),
        num_alike=sum(not differences for differences in asked),
        plain=_table(told, _PLAIN, letters),
        others=_table(told, _OTHERS, letters),
        notes=notes,
        marks=_marks(matrix),
    )


def _table(told: Mapping[str, Mapping[str, str]], kinds: tuple[str, ...], letters: Mapping[str, str]) -> str:
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, row in told.items():
        alike.setdefault(tuple(letters.get(row[kind], row[kind]) for kind in kinds), []).append(f"`{name}`")
    rows = [("template", *kinds), ("---",) * (len(kinds) + 1)]
    rows += [(", ".join(names), *cells) for cells, names in alike.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _own() -> Iterator[str]:
    """What is special about templates of our own."""
    for family in FAMILIES:
        for name in family.templates if family.style else ():
            yield textwrap.fill(f"- `{name}`: {family.style}.", 120, subsequent_indent="  ", break_on_hyphens=False)


def _marks(matrix: Mapping[str, Mapping[str, Cell]]) -> str:
    """What TRL's marks train otherwise, by family."""
    rows: list[tuple[str, ...]] = [
        ("family", "chats compared", "TRL's marks also train", "and leave out"),
        ("---",) * 4,
    ]
    for family in FAMILIES:
        asked = [c.by_marks for name in family.templates for c in matrix[name].values() if c.by_marks is not None]
        told = sorted({one for differences in asked for one in differences})
        signs = [", ".join(_code(one[1:]) for one in told if one[0] == sign) for sign in "+-"]
        if asked:
            rows.append((", ".join(f"`{name}`" for name in family.templates), str(len(asked)), *signs))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _code(text: str) -> str:
    """A text as code in a table."""
    return f"`{text!r}`".replace("|", "\\|")


_TEXT = """# Chats under chat templates

What becomes of each kind of chat under the templates that TRL ships, {num_of_trl} without its variants with
generation marks, and under {num_own} of our own in the style of families that it lacks, tried by
`scripts/templates`, which writes this page. Of {num_cells} cells {num_taken} are taken and checked; the others
are refused, and why stands below the tables. `scripts/templates --check` tries everything again; the tests try every
third template of TRL's and all of our own.

A cell says which flags the chat takes, in the order in which the refusals name them, and how many samples come of it
where there are several:

- **exact**: none are needed.
- **expand**: `--history expand`, because the template leaves out the reasoning of earlier turns; `--history
  as-rendered` gives one sample of each of these chats, which is checked too.
- **inline**, **drop**: `--reasoning-inline` or `--reasoning drop`, because the template has no place for reasoning.
- **next**: `--turn-end next`, because the template ends no turn.
- **none**: `--turn-end none`, because the template ends no turn but the last; `--append-eos`, which puts the end token
  there, is checked too.
- **unsaid**: `--unsaid allow`, because the template leaves out the tools or the developer's turn.
- **prompt**: warned of, because the template's generation prompt opens an answer with text, such as `<think>`, that it
  does not write into the chat itself (or into its earlier turns), so the answer is trained after other text than it is
  generated after.
- a letter: it is refused, for the reason below. It is the template that leaves something out or forbids it.

Where only what the template itself inserts is gone once a turn is history, such as an empty think block, or tools that
it moves to a later turn, the chat is one sample, with a warning; `--history expand` makes several, which are checked
too.

No cell is written unless two oracles apart from the tokeniser agree with it. Token ids equal `apply_chat_template` of
the chat, cut where the sample ends, or of the prompt with `add_generation_prompt=True` and the answer, where the
template renders an answer otherwise once it is there. Targets equal what stands between the header and the end that
were read by eye in the templates (`scripts/chat_matrix/families.py`), every assistant turn is a target in exactly one
sample, and targets by kind sum up to the targets.

Our own are in `tests/pipeline/templates`:

{own}

## Plain chats

{plain}

## Reasoning and tools

{others}

## Why chats are refused

{notes}

## TRL's marks

Where TRL has a variant with generation marks that writes the same text, its marks are a third oracle: of
{num_asked} chats compared, {num_alike} have the same targets, and the others differ by nothing but what stands here. A
trained turn begins where the generation prompt ends and ends with the token at which generation stops, so what marks
train beyond that (headers, the think mark that the prompt opens, the line break after the end) is not trained. The
token at which a call of Gemma stops is, and so is the header that `diffusion_gemma` has after a tool's result, where
its generation prompt is empty. With a template that has marks, its marks are followed as they are.

{marks}
"""
