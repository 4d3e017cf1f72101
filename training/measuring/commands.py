"""What `bench` does: a model and packs are loaded and checked, and every layout is measured."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.base.errors import ConfigError
from training.attention.interface import resolve_backend
from training.checking.content import check_fits, check_packs, check_segments
from training.checking.probe import CLEAN, probe
from training.measuring.bench import bench
from training.measuring.lanes import Measurement
from training.measuring.versions import machine
from training.models.pretrained import load_on_device
from training.options import STATIC, BenchOptions
from training.order import packs_of_step
from training.shards import open_shards
from training.step import autocast_dtype

log = logging.getLogger(__name__)


def run_bench(options: BenchOptions) -> dict[str, Any]:
    """Figures of each layout, of the model and of the machine. Raises `ConfigError` and `DataError`."""
    shards = open_shards(options.shards, options.split)
    per_step, num_packs = options.packs_per_forward, len(shards.packs)
    if num_packs < per_step:
        raise ConfigError(f"--packs-per-forward {per_step}: there are {num_packs} packs")
    model = load_on_device(options.model, seed=options.seed)
    check_fits(shards, model, joint=False)
    autocast = autocast_dtype(options.dtype, model.device)
    backend = resolve_backend(model, options.backend, autocast)
    check_segments(shards, model, backend, per_step, is_static=STATIC in options.layouts)
    measured = min(options.steps, num_packs // per_step) * per_step
    packs = shards.packs.select(packs_of_step(num_packs, 0, measured, options.seed))
    check_packs(packs.table(range(len(packs))), model, shards)
    finding = probe(model, backend, autocast=autocast)
    if finding.verdict != CLEAN:
        log.warning("packs cannot be trained like this: %s %s", type(model).__name__, finding.verdict)
    measurement = Measurement(
        packs_per_forward=per_step,
        rounds=options.rounds,
        layouts=tuple(options.layouts),
        backend=backend,
        autocast=autocast,
        capacity=shards.capacity,
        seed=options.seed,
    )
    figures = {"shards": options.shards, "model": options.model, "verdict": finding.verdict, **machine(model.device)}
    return figures | bench(model.train(), packs, measurement)
