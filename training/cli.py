"""python -m training: the commands. What they do lives elsewhere and is imported when one is called."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from training.errors import CheckError, StorageError, TrainingError, UnsupportedAttentionError
from training.signals import Terminated

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger("training")

EXIT_BUG = 70
EXIT_STORAGE = 74
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tightpack", prog_name="tightpack")
def cli() -> None:
    """Train on packed shards, and check that what is trained is what was packed."""


def _finite(_: click.Context, __: click.Parameter, value: float) -> float:
    if not math.isfinite(value) or value > 1e30:
        raise click.BadParameter("must be a finite number, at most 1e30")
    return value


_number = partial(click.option, callback=_finite, show_default=True)
_shards = click.option("--shards", required=True, metavar="DIR", help="What `python -m pipeline pack` wrote.")
_split = click.option("--split", metavar="NAME", help="Where the shards have several.")
_model = click.option(
    "--model",
    required=True,
    metavar="PATH_OR_CONFIG",
    help="Directory, Hub id, or a config.json for random weights.",
)
_backend = click.option(
    "--backend",
    type=click.Choice(["auto", "flash-attn", "torch-varlen", "sdpa"]),
    default="auto",
    show_default=True,
    help="Who computes attention; auto takes the fastest that runs.",
)
_attention = click.option(
    "--attention",
    type=click.Choice(["isolated", "joint"]),
    default="isolated",
    show_default=True,
    help="Whether samples of a pack see each other.",
)
_seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of every random draw."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
_dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the forward pass; auto is bfloat16 on a GPU.",
)


@cli.command()
@_shards
@_split
@_model
@click.option("--steps", type=click.IntRange(1), required=True, help="Optimizer steps.")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="For model and log.")
@click.option(
    "--packs-per-step", type=click.IntRange(1), default=8, show_default=True, help="Of all ranks, for one step."
)
@click.option(
    "--packs-per-forward", type=click.IntRange(1), default=1, show_default=True, help="Of a rank, in one pass."
)
@_attention
@click.option(
    "--loss",
    type=click.Choice(["token-mean", "sample-mean"]),
    default="token-mean",
    show_default=True,
    help="Whether targets or samples weigh the same.",
)
@_number("--learning-rate", type=click.FloatRange(0), default=2e-5, help="At its highest.")
@click.option("--warmup-steps", type=click.IntRange(0), default=0, show_default=True, help="Then a cosine to zero.")
@_number("--weight-decay", type=click.FloatRange(0), default=0.0, help="Of matrices.")
@_number("--max-grad-norm", type=click.FloatRange(0, min_open=True), default=1.0, help="Clip.")
@_dtype
@_backend
@click.option("--compile", is_flag=True, help="torch.compile, with rows of one length.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory, more time: compute activations twice.")
@click.option("--save-every", type=click.IntRange(0), default=0, metavar="STEPS", help="Checkpoints, to go on from.")
@click.option("--log-every", type=click.IntRange(1), default=1, show_default=True, metavar="STEPS", help="Log lines.")
@click.option(
    "--check/--no-check", default=True, show_default=True, help="Checksums of the shards, and probe, before training."
)
@_seed
@_json
def train(as_json: bool, **values: Any) -> None:
    """Train a model on packs. A run that was stopped goes on by the same command; torchrun starts several."""
    from training.options import TrainOptions
    from training.tables import train_table
    from training.train import train as run

    _print(run(TrainOptions(**values)), train_table, as_json)


@cli.command()
@_model
@_backend
@click.option("--all", "all_ways", is_flag=True, help="Also by positions alone, with usual mistakes, and each backend.")
@_dtype
@_seed
@_json
def probe(model: str, backend: str, all_ways: bool, dtype: str, seed: int, as_json: bool) -> None:
    """Does one sample see another, with our batch and the chosen backend? Exits with 4 if so."""
    from dataclasses import asdict

    import torch

    from training.attention import choose_backend
    from training.probe import CLEAN, probe_ways
    from training.probe import probe as find
    from training.step import autocast_dtype
    from training.tables import probe_table

    device = _device()
    loaded = _loaded(model, seed, device, autocast_dtype(dtype, device) or torch.float32)
    name, why = choose_backend(backend, device)
    log.info("attention by %s on %s (%s)", name, device, why)
    found = find(loaded, name, seed=seed)
    others = [each for each in probe_ways(loaded, seed=seed) if each.way != found.way] if all_ways else []
    result = {
        "model": model,
        "verdict": found.verdict,
        "found": asdict(found),
        "ways": [asdict(each) for each in others],
    }
    _print(result, probe_table, as_json)
    if found.verdict != CLEAN:
        sys.exit(CheckError.exit_code)


@cli.command()
@_shards
@_split
@_model
@_backend
@click.option("--packs", type=click.IntRange(1), default=4, show_default=True, help="How many are compared.")
@_dtype
@_seed
@_json
def parity(
    shards: str, split: str | None, model: str, backend: str, packs: int, dtype: str, seed: int, as_json: bool
) -> None:
    """Compare losses and gradients of packs with those of their samples one by one. Exits with 4 if they differ."""
    from dataclasses import asdict

    import torch

    from training.attention import choose_backend
    from training.errors import ShardError
    from training.parity import parity as compare
    from training.shards import check_fits, check_packs, open_shards, packs_to_compare
    from training.step import autocast_dtype
    from training.tables import parity_table

    device = _device()
    opened = open_shards(shards, split)
    loaded = _loaded(model, seed, device, torch.float32)
    check_fits(opened, loaded, joint=False)
    name, why = choose_backend(backend, device)
    log.info("attention by %s on %s (%s)", name, device, why)
    chosen = opened.packs.select(packs_to_compare(opened, packs, seed))
    check_packs(chosen.with_format("arrow")[:], loaded, opened)
    rows = list(chosen)
    if not any(row["target_counts"].any() for row in rows):
        raise ShardError(f"shards {shards}: {len(rows)} packs without a single target; try more --packs")
    samples = sum(len(row["target_counts"]) for row in rows)
    log.info("running %d samples one by one, and as %d packs", samples, len(rows))
    found = compare(loaded, rows, name, dtype=autocast_dtype(dtype, device))
    agrees = all(each.agrees for each in found)
    result = {
        "shards": shards,
        "model": model,
        "packs": len(rows),
        "samples": samples,
        "agrees": agrees,
        "found": [asdict(e) for e in found],
    }
    _print(result, parity_table, as_json)
    if not agrees:
        sys.exit(CheckError.exit_code)


@cli.command()
@_shards
@_split
@_model
@_backend
@click.option("--steps", type=click.IntRange(1), default=8, show_default=True, help="Of each layout in a round.")
@click.option(
    "--packs-per-step",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="In one forward pass.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="In which layouts take turns.")
@click.option("--layouts", metavar="NAME,...", help="Some of them, by name.")
@_dtype
@_seed
@_json
def bench(
    shards: str,
    split: str | None,
    model: str,
    backend: str,
    steps: int,
    packs_per_step: int,
    rounds: int,
    layouts: str | None,
    dtype: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure tokens per second, on a GPU also memory, of the same samples: padded, grouped, flattened, packed."""
    import torch

    from training.attention import choose_backend
    from training.bench import BenchOptions
    from training.bench import bench as measure
    from training.errors import ConfigError
    from training.layouts import LAYOUTS
    from training.probe import CLEAN, probe
    from training.shards import check_fits, check_packs, open_shards, packs_of_step
    from training.step import autocast_dtype
    from training.tables import bench_table
    from training.versions import machine

    chosen = tuple(layouts.split(",")) if layouts else LAYOUTS
    for name in chosen:
        if name not in LAYOUTS:
            raise ConfigError(f"--layouts: there is no {name!r}, but {', '.join(LAYOUTS)}")
    device = _device()
    opened = open_shards(shards, split)
    if len(opened.packs) < packs_per_step:
        raise ConfigError(f"--packs-per-step {packs_per_step}: there are {len(opened.packs)} packs")
    loaded = _loaded(model, seed, device, torch.float32).train()
    check_fits(opened, loaded, joint=False)
    name, why = choose_backend(backend, device)
    log.info("attention by %s on %s (%s)", name, device, why)
    num_packs = min(steps, len(opened.packs) // packs_per_step) * packs_per_step
    rows = opened.packs.select(packs_of_step(len(opened.packs), 0, num_packs, seed))
    check_packs(rows.with_format("arrow")[:], loaded, opened)
    autocast = autocast_dtype(dtype, device)
    found = probe(loaded.eval(), name, autocast=autocast)
    if found.verdict != CLEAN:
        log.warning("packs cannot be trained like this: %s %s", type(loaded).__name__, found.verdict)
    loaded.train()
    options = BenchOptions(
        packs_per_step=packs_per_step,
        rounds=rounds,
        layouts=chosen,
        backend=name,
        autocast=autocast,
        capacity=opened.capacity,
        seed=seed,
    )
    figures = {"shards": shards, "model": model, "verdict": found.verdict, **machine(device)}
    _print(figures | measure(loaded, rows, options), bench_table, as_json)


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _loaded(name: str, seed: int, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    from training.models import load_model

    model = load_model(name, seed=seed, dtype=dtype)
    model.to(device)  # type: ignore[arg-type]
    return model


def _print(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    if not _is_first_rank():
        return
    try:
        click.echo(json.dumps(result) if as_json else table(result))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read this has seen enough
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StorageError(f"the result cannot be printed: {error.strerror}") from error


def _is_first_rank() -> bool:
    """Whether this process speaks for all that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def main() -> NoReturn:
    """Run a command; every way it can end has its exit code, and a user's mistake is one message."""
    to_stderr = logging.StreamHandler(sys.stderr)
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    to_stderr.setFormatter(logging.Formatter(f"%(levelname)s: {rank}%(message)s"))
    log.addHandler(to_stderr)
    log.setLevel(logging.INFO if _is_first_rank() else logging.ERROR)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with cli.make_context("python -m training", sys.argv[1:]) as ctx:
            cli.invoke(ctx)
        sys.exit(0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except TrainingError as error:
        _fail(str(error), error.exit_code)
    except UnsupportedAttentionError as error:
        _fail(f"packs cannot be trained like this: {error}", CheckError.exit_code)
    except KeyboardInterrupt as error:
        kept = "; ".join(getattr(error, "__notes__", []))
        terminated = isinstance(error, Terminated)
        _fail(
            ("terminated" if terminated else "interrupted") + (f"; {kept}" if kept else ""),
            EXIT_TERMINATED if terminated else EXIT_INTERRUPTED,
        )
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "training":
            _report_bug(error)
        _fail(f"{error.name} is not installed for {sys.executable}: pip install 'tightpack[train]'", 2)
    except OSError as error:
        _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), EXIT_STORAGE)
    except Exception as error:
        _report_bug(error)


def _report_bug(error: Exception) -> NoReturn:
    text = "".join(traceback.format_exception(error))
    with tempfile.NamedTemporaryFile("w", prefix="tightpack-bug-", suffix=".log", delete=False) as file:
        file.write(" ".join(sys.argv) + "\n" + text)
    _fail(f"a bug of ours: {type(error).__name__}: {error}; please report it with {file.name}", EXIT_BUG)


def _fail(message: str, code: int) -> NoReturn:
    log.error(message)
    sys.exit(code)


def _terminate(*_: object) -> NoReturn:
    raise Terminated
