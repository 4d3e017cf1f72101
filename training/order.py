"""Which packs a step trains: it follows from the step's number and the seed alone."""

from __future__ import annotations

import numpy as np

from training.packs import Integers


def pack_order(num_packs: int, epoch: int, seed: int) -> Integers:
    """A permutation of the packs, for each epoch another.  # shape: (num_packs,)"""
    return np.random.default_rng([seed, epoch]).permutation(num_packs)


def packs_of_step(num_packs: int, step: int, packs_per_step: int, seed: int) -> list[int]:
    """Which packs are trained in a step, counted from 0: epochs run on through steps, so a step may span two."""
    first = step * packs_per_step
    wanted = np.arange(first, first + packs_per_step)
    orders = {epoch: pack_order(num_packs, epoch, seed) for epoch in np.unique(wanted // num_packs).tolist()}
    return [int(orders[at // num_packs][at % num_packs]) for at in wanted.tolist()]
