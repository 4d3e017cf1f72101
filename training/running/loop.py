"""The loop of a training run on one rank: from its checkpoint, if there is one, to its last step."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.base.errors import CheckError, ConfigError, Termination
from pipeline.base.words import first_line
from training.checking.content import check_packs
from training.collator import PackedCollator
from training.measuring.metrics import peak_flops, peak_memory, training_flops, why_no_mfu
from training.options import TrainOptions
from training.order import packs_of_step
from training.packs import Costs, costs, extents
from training.running import checkpoint, output
from training.running.place import Place
from training.shapes import choose_shapes, compile_layers, pack_shapes
from training.shards import Shards
from training.step import StepResult, autocast_dtype, train_step

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
"""Time between lines of progress where there is no terminal."""

NO_COSTS = Costs(0, 0, 0.0)


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended."""

    loss: float | None
    """The loss of the last step; None where the log of a run that went on does not say."""

    seconds: float


class Loop:
    """What trains a model on the packs of one rank."""

    def __init__(self, options: TrainOptions, place: Place, shards: Shards, model: PreTrainedModel) -> None:
        """model: on the rank's device, with its attention set. Raises `ConfigError` for what it cannot do."""
        self._options, self._place, self._shards, self._bare = options, place, shards, model
        self._model = _wrapped(options, place, model)
        self._collate = _collator(options, shards)
        self._optimizer = _optimizer(options, place, model)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._told = time.perf_counter()
        self._autocast = autocast_dtype(options.dtype, place.device)
        why = why_no_mfu(place.device, self._autocast)
        if why is not None and place.device.type == "cuda":
            log.warning("%s: the log has no mfu", why)

    def run(self, signals: Sequence[int]) -> LoopResult:
        """Train from the checkpoint on, if there is one.

        signals: those that arrive meanwhile; the step is then finished, and a checkpoint written.

        Raises `KeyboardInterrupt` after a signal, and `CheckError` if the loss is no number any more.
        """
        options, place = self._options, self._place
        first, record = self._resume()
        batches = iter(self._loader(first))
        started = since = time.perf_counter()
        done = NO_COSTS
        bar = tqdm(
            total=options.steps,
            initial=first,
            unit="step",
            disable=None if place.is_first else True,
            dynamic_ncols=True,
        )
        lines = options.output / output.LOG if place.is_first else Path(os.devnull)
        with bar, open(lines, "a", encoding="utf-8") as file:
            for step in range(first + 1, options.steps + 1):
                torch.manual_seed(options.seed + 1_000_003 * step + place.rank)  # of dropout
                micro_batches, step_costs = self._next(batches)
                rate = float(self._scheduler.get_last_lr()[0])
                result = self._step(micro_batches)
                done += step_costs
                if step % options.log_every == 0 or step == options.steps:
                    record = self._record(step, rate, result, done, time.perf_counter() - since)
                    since, done = time.perf_counter(), NO_COSTS
                    file.write(json.dumps(record, allow_nan=False) + "\n")
                    file.flush()
                    if record["loss"] is None:
                        raise CheckError(f"the loss of step {step} is {float(result.loss)}: lower --learning-rate?")
                    bar.set_postfix(loss=f"{record['loss']:.4f}")
                    if bar.disable:
                        self._tell(step, record["loss"])
                bar.update()
                self._save_or_stop(step, signals)
        return LoopResult(record.get("loss"), time.perf_counter() - started)

    def _save_or_stop(self, step: int, signals: Sequence[int]) -> None:
        options, place = self._options, self._place
        stop = place.highest(signals[0] if signals else 0)  # ranks hear a signal at different steps
        if stop or (options.save_every and step % options.save_every == 0):
            self._save(step)
        if stop:
            place.highest(0)  # no rank leaves while another writes
            stopped = KeyboardInterrupt() if stop == signal.SIGINT else Termination()
            stopped.add_note(f"the same command goes on after step {step} of {options.steps}")
            raise stopped

    def _tell(self, step: int, loss: float) -> None:
        """Log a line now and then, where there is no terminal for a bar."""
        if time.perf_counter() - self._told >= PROGRESS_SECONDS:
            log.info("step %d of %d, loss %.4f", step, self._options.steps, loss)
            self._told = time.perf_counter()

    def _step(self, micro_batches: list[dict[str, Any]]) -> StepResult:
        options = self._options
        try:
            return train_step(
                self._model,
                micro_batches,
                self._optimizer,
                scheduler=self._scheduler,
                max_grad_norm=options.max_grad_norm,
                autocast=self._autocast,
            )
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise ConfigError(f"--compile: the model does not compile here: {first_line(error)}") from error
            raise

    def _rate(self, step: int) -> float:
        """Part of the learning rate: linear warm-up, then a cosine to zero."""
        warmup, steps = self._options.warmup_steps, self._options.steps
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    def _loader(self, first: int) -> DataLoader[Any]:
        return DataLoader(
            self._shards.packs,
            batch_sampler=MicroBatches(self._options, self._place, len(self._shards.packs), first),
            collate_fn=self._collated,
            pin_memory=self._place.device.type == "cuda",
        )

    def _collated(self, tables: list[pa.Table]) -> tuple[dict[str, Any], Costs]:
        (packs,) = tables
        check_packs(packs, self._bare, self._shards)  # also without --check, and if files change under a run
        batch = self._collate(packs)
        return batch, costs(packs, joint=self._options.attention == "joint")

    def _next(self, batches: Iterator[Any]) -> tuple[list[dict[str, Any]], Costs]:
        """Micro-batches of the next step."""
        options = self._options
        of_rank = options.packs_per_step // self._place.num_ranks
        taken = [next(batches) for _ in range(-(-of_rank // options.packs_per_forward))]
        total = NO_COSTS
        for _, each in taken:
            total += each
        return [batch for batch, _ in taken], total

    def _record(self, step: int, rate: float, result: StepResult, done: Costs, seconds: float) -> dict[str, Any]:
        """What the log says of the steps since its last line; rates are of all ranks."""
        place = self._place
        record: dict[str, Any] = {
            "step": step,
            "loss": _finite(result.loss),  # waits for the device
            "grad_norm": _finite(result.grad_norm),
            "learning_rate": rate,
            "tokens_per_second": done.tokens * place.num_ranks / seconds,
            "targets_per_second": done.targets * place.num_ranks / seconds,
            "peak_memory_bytes": peak_memory(place.device),
        }
        peak = peak_flops(place.device, self._autocast)
        if peak is not None:
            spent = training_flops(self._bare, done.tokens, done.targets, done.sum_length_squared)
            record["mfu"] = spent / seconds / peak
        return record

    def _resume(self) -> tuple[int, dict[str, Any]]:
        """Load the checkpoint; returns (steps that are done, what the log says of the last of them)."""
        options = self._options
        state = checkpoint.load(options.output)
        lines = options.output / output.LOG
        if state is None:
            if self._place.is_first:
                lines.unlink(missing_ok=True)
            return 0, {}
        self._bare.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        step: int = state["step"]
        if not self._place.is_first:
            return step, {}
        known = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
        kept = [line for line in known if line.endswith("}") and json.loads(line)["step"] <= step]
        lines.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        log.info("going on after step %d", step)
        return step, json.loads(kept[-1]) if kept else {}

    def _save(self, step: int) -> None:
        if self._place.is_first:
            checkpoint.save(
                self._options.output,
                {
                    "step": step,
                    "model": self._bare.state_dict(),
                    "optimizer": self._optimizer.state_dict(),
                    "scheduler": self._scheduler.state_dict(),
                },
            )


class MicroBatches(Sampler[list[int]]):
    """Numbers of the packs of one rank, micro-batch by micro-batch, from a step on."""

    def __init__(self, options: TrainOptions, place: Place, num_packs: int, first: int) -> None:
        self._options, self._place, self._num_packs, self._first = options, place, num_packs, first

    def __iter__(self) -> Iterator[list[int]]:
        options, place = self._options, self._place
        for step in range(self._first, options.steps):
            of_step = packs_of_step(self._num_packs, step, options.packs_per_step, options.seed)
            own = of_step[place.rank :: place.num_ranks]
            for at in range(0, len(own), options.packs_per_forward):
                yield own[at : at + options.packs_per_forward]


def _wrapped(options: TrainOptions, place: Place, model: PreTrainedModel) -> nn.Module:
    """A model in the form in which it is trained."""
    model.train()
    if options.gradient_checkpointing:
        # transformers 5.23 has the former, 5.17 the latter.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable()
        except ValueError as error:
            raise ConfigError(f"--gradient-checkpointing: {first_line(error)}") from error
    if options.compile:
        compile_layers(model)
    if not place.in_group:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=[place.device] if place.device.type == "cuda" else None
    )


def _optimizer(options: TrainOptions, place: Place, model: nn.Module) -> torch.optim.AdamW:
    trained = [each for each in model.parameters() if each.requires_grad]
    groups = [
        {"params": [each for each in trained if each.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [each for each in trained if each.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=place.device.type == "cuda")


def _collator(options: TrainOptions, shards: Shards) -> PackedCollator:
    """Rows of one length, and few shapes, where the model is compiled."""
    packs = options.packs_per_forward
    collate = PackedCollator(attention=options.attention, sample_mean=options.loss == "sample-mean", targets=True)
    if not options.compile:
        return collate
    boundaries = pa.table({"boundaries": shards.packs.column("boundaries")})
    of_packs = pack_shapes(*extents(boundaries, joint=options.attention == "joint"), shards.capacity)
    shapes = choose_shapes(*of_packs, packs_per_row=packs)
    log.info("compiled for %d shapes, from %s to %s", len(shapes), shapes[0], shapes[-1])
    return dataclasses.replace(collate, pad_to=packs * shards.capacity, shapes=shapes)


def _finite(value: Tensor) -> float | None:
    """A number that JSON has; None for others."""
    number = float(value)
    return number if math.isfinite(number) else None
