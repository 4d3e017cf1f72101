"""How samples are shown: token by token in blocks of one kind, then what all of them hold of each kind.

What is trained is bright and the rest dim, or stands in ⟦brackets⟧ where there is no colour; special tokens, the ends
of lines and control characters are visible.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import groupby

import click

from pipeline.base.words import counted
from pipeline.format.labels import IGNORE
from pipeline.tokenizing.showing.samples import Shown, ShownFault, ShownSample
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_UNLOCATED = "where the template writes each turn cannot be told here: what is of kind text may be anybody's"


def shown_text(shown: Iterable[Shown], tokenizer: TextTokenizer, *, color: bool) -> str:
    """The samples one after the other, and what they hold of each kind. color: for a terminal."""
    texts: list[str] = []
    tokens: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    num_samples = 0
    for one in shown:
        title = click.style(one.title, bold=True, underline=True) if color else one.title
        if isinstance(one, ShownFault):
            texts.append(f"{title}: gives no sample ({one.fault.reason}): {one.fault.detail}\n")
            continue
        num_samples += 1
        tokens.update(one.kinds)
        targets.update(kind for kind, label in zip(one.kinds, one.labels.tolist(), strict=True) if label != IGNORE)
        texts.append(f"{title}: {_numbers(len(one.kinds), int((one.labels != IGNORE).sum()))}\n")
        texts[-1] += "".join(_blocks(one, tokenizer, color))
    if num_samples:
        rows = [f"{kind:<9}  {number:>9,}  {targets[kind]:>9,}\n" for kind, number in tokens.items()]
        total = f"{counted(num_samples, 'sample')}: {_numbers(tokens.total(), targets.total())}\n"
        texts.append(total + f"{'kind':<9}  {'tokens':>9}  {'trained':>9}\n" + "".join(rows))
    return "\n".join(texts)


def _numbers(num_tokens: int, num_targets: int) -> str:
    return f"{num_tokens:,} tokens, {num_targets:,} trained"


def _blocks(sample: ShownSample, tokenizer: TextTokenizer, color: bool) -> list[str]:
    """A block for each run of tokens of one kind that are trained, or are not."""
    blocks = [f"{_UNLOCATED}\n"] if "text" in sample.kinds else []
    trained = (sample.labels != IGNORE).tolist()
    tokens = zip(sample.input_ids.tolist(), sample.kinds, trained, strict=True)
    for (kind, is_target), run in groupby(tokens, key=lambda token: token[1:]):
        ids = [token for token, *_ in run]
        lead = f"{kind:<9}  {'trained' if is_target else '':<7}  {len(ids):>6,}  "
        text = _text(ids, tokenizer, is_target, color)
        blocks.append(lead + text.replace("\n", "\n" + " " * len(lead)) + "\n")
    return blocks


def _text(ids: list[int], tokenizer: TextTokenizer, is_target: bool, color: bool) -> str:
    pieces = [
        (is_special, _printable(tokenizer.decode(list(group))))
        for is_special, group in groupby(ids, key=tokenizer.special_ids.__contains__)
    ]
    if color:
        return "".join(_styled(text, is_target, is_special) for is_special, text in pieces)
    text = "".join(text for _, text in pieces)
    return f"⟦{text}⟧" if is_target else text


def _printable(text: str) -> str:
    """Control characters as escapes, as a terminal would obey them, and each end of a line with a sign.

    A text that ends with one does not begin another line.
    """
    shown = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text).replace("\n", "↵\n")
    return shown.removesuffix("\n")


def _styled(text: str, is_target: bool, is_special: bool) -> str:
    """Line by line, because pagers forget a colour at the end of a line."""
    color = "yellow" if is_special else "green" if is_target else None
    return "\n".join(
        click.style(line, fg=color, bold=is_target or None, dim=None if is_target else True) if line else line
        for line in text.split("\n")
    )
