"""One segment a pack: what padding to the maximum length amounts to, and the baseline of every comparison."""

from __future__ import annotations

import numpy as np

from strategies.contract import Plan, Request, Strategy


def place(request: Request) -> Plan:
    """Make segment i pack i. O(num_segments). Source: arXiv 2410.08081, "padding"."""
    count = len(request.lengths)
    return Plan(segment=np.arange(count, dtype=np.int64), pack_offsets=np.arange(count + 1, dtype=np.int64))


STRATEGY = Strategy(
    name="padding",
    place=place,
    summary="one sample a pack",
    when="as the baseline to compare with",
    least_max_segments=lambda options: 1,
)
