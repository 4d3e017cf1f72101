"""First fit, longest segments first."""

from __future__ import annotations

from strategies.by_length.first_fit import place_in_order
from strategies.by_length.sorting import longest_first
from strategies.contract import Plan, Request, Strategy


def place(request: Request) -> Plan:
    """Plan by first fit, longest segments first.

    This is the same as opening a pack with the longest unused segment and sweeping down the rest.
    O(num_segments log num_packs). Source: arXiv 2410.08081, "greedy packing".
    """
    return place_in_order(request, longest_first(request.lengths, request.capacity))


STRATEGY = Strategy(
    name="first-fit-decreasing",
    aliases=("greedy",),
    place=place,
    summary="longest first, each into the oldest pack with room",
    when="to reproduce results published with greedy packing",
    least_max_segments=lambda options: 1,
)
