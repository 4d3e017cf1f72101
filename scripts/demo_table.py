"""Shows what the demo's runs came to: the strategies side by side, and one pack as a training loop would read it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer

BAR = 30
TEXT = 88
IGNORED = -100
SAMPLES_SHOWN = 3


@dataclass(frozen=True)
class Outcome:
    """What `pack --json` and `verify --json` said about one strategy; counts are of one epoch."""

    strategy: str
    packs: int
    capacity: int
    fill: float
    tokens: int
    verified: int

    @property
    def padding(self) -> int:
        """Positions computed for nothing when every pack is padded to its capacity."""
        return self.packs * self.capacity - self.tokens


def main(folder: Path, strategies: list[str]) -> None:
    """Compare the strategies, the first being the baseline, then open the first pack of the last one."""
    outcomes = [load_outcome(folder, strategy) for strategy in strategies]
    print(comparison(outcomes))
    print()
    print(first_pack(folder, strategies[-1]))


def load_outcome(folder: Path, strategy: str) -> Outcome:
    """Read the two JSON objects the demo saved for a strategy."""
    packed = json.loads((folder / f"{strategy}.pack.json").read_text())
    verified = json.loads((folder / f"{strategy}.verify.json").read_text())
    return Outcome(
        strategy=strategy,
        packs=packed["packs"],
        capacity=packed["capacity"],
        fill=packed["fill"],
        tokens=packed["counts"]["tokens_packed"],
        verified=verified["tokens"] if verified["ok"] and verified["source"] else 0,
    )


def comparison(outcomes: list[Outcome]) -> str:
    """One line a strategy; with one pack a step, packs are training steps."""
    baseline = outcomes[0]
    rows = [("strategy", "packs", "fill", "", "padding", "training steps", "verified")]
    for outcome in outcomes:
        rows.append(
            (
                outcome.strategy,
                f"{outcome.packs:,}",
                bar(outcome.fill),
                f"{outcome.fill:.1%}",
                f"{outcome.padding:,}",
                "the baseline" if outcome is baseline else f"{baseline.packs / outcome.packs:.1f}× fewer",
                f"{outcome.verified:,} tokens",
            )
        )
    lines = [f"{a:<20} {b:>6}  {c:<{BAR}} {d:>6} {e:>10}  {f:<14} {g:>15}" for a, b, c, d, e, f, g in rows]
    lines.append(f"padding: tokens computed for nothing in every epoch, packs being padded to {baseline.capacity}")
    lines.append(
        "training steps: at the same number of packs a step; samples over the maximum length are cut in pieces"
    )
    return "\n".join(lines)


def bar(share: float) -> str:
    """A share of 0..1 in block characters, rounded down so that only a whole one looks whole."""
    full = int(share * BAR)
    return "█" * full + "░" * (BAR - full)


def first_pack(folder: Path, strategy: str) -> str:
    """The first row of a packed dataset, and the text of its first samples, split by their labels."""
    pack = datasets.load_from_disk(str(folder / strategy))[0]
    lines_of_pairs = (folder / "pairs.jsonl").read_bytes().split(b"\n")
    modules = [json.loads(line)["module"] for line in lines_of_pairs if line]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    targets = sum(pack["target_counts"])
    lines = [
        f"the first pack of {strategy}, as datasets.load_from_disk gives it:",
        f"  input_ids   {len(pack['input_ids'])} tokens",
        f"  labels      {targets} targets, -100 on the other {len(pack['labels']) - targets}",
        f"  boundaries  {shortened(str(pack['boundaries']), TEXT)}",
        f"  sample_ids  {shortened(str(pack['sample_ids']), TEXT)}",
    ]
    segments = list(zip(pairwise(pack["boundaries"]), pack["sample_ids"], pack["target_counts"], strict=True))
    for (start, end), sample, count in segments[:SAMPLES_SHOWN]:
        tokens = list(zip(pack["input_ids"][start:end], pack["labels"][start:end], strict=True))
        lines += [
            f"  [{start}:{end}]  sample {sample}, from {modules[sample]}: {end - start} tokens, {count} targets",
            f"    given   {decoded(tokenizer, [token for token, label in tokens if label == IGNORED])}",
            f"    target  {decoded(tokenizer, [label for _, label in tokens if label != IGNORED])}",
        ]
    if len(segments) > SAMPLES_SHOWN:
        lines.append(f"  … and {len(segments) - SAMPLES_SHOWN} more samples, each starting again at position 0")
    return "\n".join(lines)


def decoded(tokenizer: Any, tokens: list[int]) -> str:
    """Tokens as one line of text."""
    return shortened(" ".join(tokenizer.decode(tokens, skip_special_tokens=False).split()), TEXT)


def shortened(text: str, width: int, tail: int = 24) -> str:
    """The beginning and the end of a text that is wider than `width`."""
    return text if len(text) <= width else f"{text[: width - tail - 3]} … {text[-tail:]}"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: demo_table.py FOLDER STRATEGY...")
    main(Path(sys.argv[1]), sys.argv[2:])
