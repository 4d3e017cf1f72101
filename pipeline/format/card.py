"""README.md of the datasets that we write: how they were made, and how to use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.format.identity import NamedHash
from pipeline.format.manifest import PackManifest, TokenizeManifest
from pipeline.format.records import InputEntry


def pack_card(manifest: PackManifest) -> str:
    """The card of a packed dataset."""
    config, counts = manifest.config, manifest.counts
    settings = ", ".join(f"{key}={value}" for key, value in config.set.items() if value != "")
    per_pack = manifest.segments_per_pack
    rows = [
        ("strategy", config.strategy + (f" ({settings})" if settings else "")),
        ("capacity", f"{manifest.capacity:,} tokens a pack"),
        ("packs", f"{manifest.packs:,} (lower bound {manifest.lower_bound:,})"),
        ("fill", f"{manifest.fill:.4%}"),
        ("samples", f"{counts.samples_packed:,} of {counts.samples_in:,}"),
        ("tokens", f"{counts.tokens_packed:,} of {counts.tokens_in:,}"),
        ("targets", f"{counts.targets_packed:,} of {counts.targets_in:,}"),
        ("samples a pack", f"{per_pack.mean:.2f} on average, {per_pack.max} at most{_cap(config.max_segments)}"),
        ("run", manifest.run_id),
    ]
    if isinstance(manifest.embedding_model, NamedHash):
        rows.append(("embedded by", manifest.embedding_model.name))
    rows += [(name.replace("_", " "), f"{figure:.6g}") for name, figure in sorted(manifest.report.items())]
    losses = [
        (reason, f"{loss.samples:,}", f"{loss.tokens:,}", f"{loss.targets:,}")
        for reason, loss in counts.dropped.items()
        if any(msgspec.structs.astuple(loss))
    ]
    split = f'["{next(iter(manifest.splits))}"]' if isinstance(manifest.splits, dict) else ""
    return f"""---
tags: [packed]
---
# Packed dataset

Several samples stand end to end in each row. `position_ids` restart at 0 where a sample begins, `boundaries`
are the pack's `cu_seqlens`, and the first label of every sample is -100.

{_table(("", ""), rows)}

Left out or masked, by reason:

{_table(("reason", "samples", "tokens", "targets"), losses or [("nothing", "0", "0", "0")])}

Packed from:
{_sources(manifest.inputs)}

## Use

```python
import datasets

packs = datasets.load_from_disk("this folder"){split}
```

Give `position_ids` to the model, one pack a row, batch size 1, **and no attention mask**: an all-ones mask makes
transformers ignore the restarting positions and lets samples attend to each other. Set `use_cache=False`.
"""


def tokenize_card(manifest: TokenizeManifest) -> str:
    """The card of a tokenised dataset."""
    counts, template = manifest.counts, manifest.chat_template
    rows = [
        ("rows", f"{counts.rows:,}"),
        ("samples", f"{counts.samples:,}"),
        ("tokens", f"{counts.tokens:,}"),
        ("targets", f"{counts.targets:,}"),
        ("tokenizer", f"{manifest.tokenizer.name}, xxh3_128 {manifest.tokenizer.xxh3_128}"),
        ("chat template", f"{template.name}, xxh3_128 {template.xxh3_128}" if template else "none"),
        ("trained on", manifest.config.train_on or "what the format has by default"),
        ("run", manifest.run_id),
    ]
    rows += [(f"left out: {reason}", f"{number:,} rows") for reason, number in counts.dropped.items()]
    return f"""---
tags: [tokenized]
---
# Tokenised dataset

One sample a row: `input_ids`, and `labels` that are -100 where a token is not trained. Nothing is padded or shifted.

{_table(("", ""), rows)}

Tokenised from:
{_sources(manifest.inputs)}
"""


def _cap(max_segments: int | None) -> str:
    return "" if max_segments is None else f" ({max_segments:,} allowed)"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sources(inputs: Sequence[InputEntry]) -> str:
    return "\n".join(f"- {entry.name}: {entry.rows:,} rows, xxh3_128 {entry.xxh3_128}" for entry in inputs)
