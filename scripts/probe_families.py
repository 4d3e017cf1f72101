"""Which families of models can be trained on packs: probes tiny random ones, and writes docs/families.md."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from training.checking.families import FAMILIES, tiny_config
from training.checking.probe import CLEAN, Finding, probe_ways

ROOT = Path(__file__).parent.parent
TORCH = torch.__version__.partition("+")[0]
TEXT = f"""# Families of models on packs

Every family below was probed as `python -m training probe --all` does it: a tiny model with random weights, four
samples in one row, on a CPU, in float32, with transformers {transformers.__version__} and torch {TORCH}.
`scripts/probe_families.py` wrote this page; a test compares it with what it finds.

- **our batch**: `PackedCollator`'s batch with the backend `sdpa`. *clean*: no sample sees another, and each is as if it
  were alone. *leaks*: samples see each other. *refuses*: an error. Only clean models are trained.
- **positions**: only `input_ids` and `position_ids`, with transformers' own attention.
- **use_cache**: the same with `use_cache=True`, which is the default of most models' configurations.
- **all-ones mask**: the same with an attention mask of ones, as many collators and tokenizers add.

Families that refuse for the lack of `causal_conv1d` or `flash-linear-attention` may be clean where these kernels are
installed: probe yours. What stands here says nothing about GPUs; probe the model there too.

"""

HEADER = ("family", "our batch", "where", "positions", "use_cache", "all-ones mask")


def findings(family: str) -> list[Finding]:
    """By positions, with a cache, with a mask of ones, and with our batch and the backend sdpa."""
    torch.manual_seed(0)
    return probe_ways(AutoModelForCausalLM.from_config(tiny_config(family)).eval())[:4]


def row(family: str) -> tuple[str, ...]:
    """Cells of a family's row."""
    positions, cached, masked, ours = findings(family)
    where = ours.layer or (ours.message or "").partition(". ")[0]
    return (family, ours.verdict, where, positions.verdict, cached.verdict, masked.verdict)


def main() -> None:
    """Write the page."""
    transformers.logging.set_verbosity_error()
    rows = [row(family) for family in FAMILIES]
    rows.sort(key=lambda cells: cells[1] != CLEAN)  # those first that can be trained
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADER, ("---",) * len(HEADER), *rows)]
    (ROOT / "docs/families.md").write_text(TEXT + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
