"""`python -m training bench`."""

from __future__ import annotations

import os
from typing import Any

import click

from pipeline.base.harness import Decorator, flag, flags, print_result, result_options
from training.command.flags import COMPUTE_FLAGS, MODEL_FLAG, SHARD_FLAGS
from training.options import LAYOUTS, BenchOptions

_BENCH_FLAGS: list[Decorator] = [
    flag(BenchOptions, "steps", "Make so many steps of each layout in a round.", metavar="N"),
    flag(BenchOptions, "packs_per_forward", "Put so many packs through the model at once.", metavar="N"),
    flag(BenchOptions, "rounds", "Let the layouts take turns so often.", metavar="N"),
    click.option("--layouts", metavar="NAME,...", help="Measure some layouts alone. [default: all]"),
]


@click.command()
@flags(SHARD_FLAGS, MODEL_FLAG, _BENCH_FLAGS, COMPUTE_FLAGS)
@result_options
def bench(as_json: bool, layouts: str | None, **values: Any) -> None:
    """Measure what packing is worth for a model and its data.

    The same samples are trained padded, grouped by length, flattened and packed: tokens a second, and memory on a GPU.
    A layout that memory does not suffice for is measured in several micro-batches, and the table says so.
    """
    # Read when torch is imported: layouts of other sizes then find whole room where others were.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    from training.command.tables import bench_table
    from training.measuring.commands import run_bench

    figures = run_bench(BenchOptions(layouts=layouts.split(",") if layouts else LAYOUTS, **values))
    print_result(bench_table(figures), {"status": "measured", **figures}, as_json)
