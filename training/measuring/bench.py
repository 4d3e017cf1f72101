"""What packing is worth: the same samples padded, grouped by length, flattened and packed, trained by the same model.

Layouts take turns, round by round, so that what disturbs the machine disturbs them all; ratios are taken within each
round. Every step is a whole one: forward, backward, clipping, optimizer.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.format.labels import IGNORE
from training.collator import PackedCollator
from training.measuring.lanes import Lane, Measurement
from training.measuring.metrics import peak_flops, training_flops, why_no_mfu
from training.options import DENSE, FLATTENED, PACKED, PADDED, STATIC

log = logging.getLogger(__name__)


def bench(model: PreTrainedModel, packs: Any, options: Measurement) -> dict[str, Any]:
    """Train on packs, in each layout, as often as there are rounds.

    packs: a list of rows of packed shards, or `Packs`, which are then read again to time the reading.

    The model is trained, on its device. Returns figures of each layout, or why there are none: medians over rounds; and
    ratios of the packed layouts to the others, or why they are not given.
    """
    device = next(model.parameters()).device
    whole = len(packs) - len(packs) % options.packs_per_forward
    rows = [packs[number] for number in range(whole)]
    lanes = {layout: Lane(layout, rows, model, options) for layout in options.layouts}
    with tqdm(total=options.rounds * len(lanes), unit="run", disable=None, leave=False) as bar:
        for number in range(1, options.rounds + 1):
            for lane in lanes.values():
                lane.run(number)
                bar.update()
                if bar.disable:
                    log.info("round %d of %d: %s %s", number, options.rounds, lane.layout, lane.failed or "measured")
    tokens = sum(len(row["input_ids"]) for row in rows)
    targets = sum(int((np.asarray(row["labels"]) != IGNORE).sum()) for row in rows)
    squares = sum(float(np.square(np.diff(row["boundaries"]).astype(float)).sum()) for row in rows)
    as_one = sum(float(len(row["input_ids"])) ** 2 for row in rows)
    flops = {
        name: training_flops(model, tokens, targets, as_one if name == DENSE else squares) for name in options.layouts
    }
    peak = peak_flops(device, options.autocast)
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "packs_per_forward": options.packs_per_forward,
        "rounds": options.rounds,
        "precision": str(options.autocast or torch.float32).removeprefix("torch."),
        "backend": options.backend,
        "samples": sum(len(row["boundaries"]) - 1 for row in rows),
        "tokens": tokens,
        "targets": targets,
        "peak_flops": peak,
        "no_mfu": why_no_mfu(device, options.autocast),
        "collating": _collating(packs, options, lanes.get(PACKED)),
        "layouts": {name: lane.figures(lanes.get(PADDED), flops[name], peak) for name, lane in lanes.items()},
        "ratios": {name: _ratios(lanes[name], lanes) for name in (PACKED, STATIC) if name in lanes},
    }


def _ratios(lane: Lane, lanes: dict[str, Lane]) -> dict[str, dict[str, Any]]:
    """How a layout compares with those that are not ours, or why that is not said."""
    return {name: _ratio(lane, lanes[name]) for name in (PADDED, *FLATTENED, DENSE) if name in lanes}


def _ratio(lane: Lane, other: Lane) -> dict[str, Any]:
    for each in (lane, other):
        if each.failed is not None:
            return {"not_given": f"{each.layout} failed: {each.failed}"}
    if other.layout in FLATTENED and lane.kernels != other.kernels:
        return {
            "not_given": f"not the same kernels: {lane.layout} is computed by {lane.kernels}, {other.layout} by"
            f" {other.kernels}"
        }
    ratio: dict[str, Any] = {"tokens_per_second": lane.times(other)}
    if other.peak:
        ratio["peak_memory"] = lane.peak / other.peak
    return ratio


def _collating(packs: Any, options: Measurement, packed: Lane | None) -> dict[str, float]:
    """What it takes to read and collate the packs of a step, and which part of the step that is."""
    collate = PackedCollator()
    seconds = []
    for at in range(0, len(packs) - options.packs_per_forward + 1, options.packs_per_forward):
        started = time.perf_counter()
        collate([packs[number] for number in range(at, at + options.packs_per_forward)])
        seconds.append(time.perf_counter() - started)
    figures = {"seconds": statistics.median(seconds)}
    if packed is not None and packed.failed is None:
        figures["part_of_step"] = figures["seconds"] / packed.step_seconds()
    return figures
