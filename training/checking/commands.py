"""What `probe` and `parity` do: a model, and packs, are loaded and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pipeline.base.errors import DataError
from training.attention.interface import resolve_backend
from training.checking.content import check_fits, check_packs, check_segments, packs_to_compare
from training.checking.parity import Parity, parity
from training.checking.probe import CLEAN, Finding, probe, probe_ways
from training.models.pretrained import load_on_device
from training.options import ParityOptions, ProbeOptions
from training.shards import open_shards
from training.step import autocast_dtype

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What was found of a model."""

    model: str
    finding: Finding
    """With our batch and the chosen backend."""

    ways: list[Finding]
    """In other ways, where they were asked for."""

    @property
    def passed(self) -> bool:
        """Whether the model can be trained on packs."""
        return self.finding.verdict == CLEAN


@dataclass(frozen=True, kw_only=True)
class ParityResult:
    """Packs beside their samples."""

    shards: str
    model: str
    packs: int
    samples: int
    comparisons: list[Parity]

    @property
    def passed(self) -> bool:
        """Whether losses and gradients agree in every precision."""
        return all(each.agrees for each in self.comparisons)


def run_probe(options: ProbeOptions) -> ProbeResult:
    """Probe a model, in the precision in which it would be trained. Raises `ConfigError`."""
    model = load_on_device(options.model, seed=options.seed)
    autocast = autocast_dtype(options.dtype, model.device)
    backend = resolve_backend(model, options.backend, autocast)
    finding = probe(model, backend, seed=options.seed, autocast=autocast)
    ways = probe_ways(model, seed=options.seed, autocast=autocast) if options.all_ways else []
    return ProbeResult(model=options.model, finding=finding, ways=[each for each in ways if each.way != finding.way])


def run_parity(options: ParityOptions) -> ParityResult:
    """Compare some packs with their samples one by one. Raises `ConfigError`, `DataError` and `CheckError`."""
    shards = open_shards(options.shards, options.split)
    model = load_on_device(options.model, seed=options.seed)
    check_fits(shards, model, joint=False)
    autocast = autocast_dtype(options.dtype, model.device)
    backend = resolve_backend(model, options.backend, autocast)
    check_segments(shards, model, backend, packs_per_forward=1)
    packs = shards.packs.select(packs_to_compare(shards, options.packs, options.seed))
    check_packs(packs.table(range(len(packs))), model, shards)
    rows = [packs[number] for number in range(len(packs))]
    if not any(row["target_counts"].any() for row in rows):
        raise DataError(f"shards {options.shards}: {len(rows)} packs without a single target; try more --packs")
    samples = sum(len(row["target_counts"]) for row in rows)
    log.info("running %d samples one by one, and as %d packs", samples, len(rows))
    return ParityResult(
        shards=options.shards,
        model=options.model,
        packs=len(rows),
        samples=samples,
        comparisons=parity(model, rows, backend, dtype=autocast),
    )
