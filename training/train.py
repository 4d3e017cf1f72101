"""Training on packed shards: `python -m training train`.

Which packs a step trains follows from its number and the seed alone, as do its random draws; so a run that was stopped
goes on exactly as it would have, and the same packs are trained on any number of ranks.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import PreTrainedModel

from training import checkpoint, output
from training.attention import choose_backend
from training.collator import PackedCollator
from training.errors import CheckError, ConfigError, first_line
from training.interface import use_backend
from training.metrics import peak_flops, peak_memory, training_flops
from training.models import load_model, save_model
from training.options import TrainOptions
from training.place import Place, joined
from training.probe import CLEAN, probe
from training.shards import (
    Costs,
    PackTables,
    Shards,
    check_content,
    check_fits,
    check_packs,
    costs,
    open_shards,
    packs_of_step,
)
from training.signals import Terminated, deferred_signals
from training.step import StepResult, autocast_dtype, train_step
from training.storage import check_room

log = logging.getLogger("training")

_TELL_EVERY = 30.0
"""Seconds between lines of progress where there is no terminal."""


def train(options: TrainOptions) -> dict[str, Any]:
    """Train, or go on with a run that was stopped; what a finished run is told is what it told then.

    Raises `ConfigError`; `ShardError`; `CheckError` if samples would not be trained as if alone, or the loss is no
    number any more; `StorageError`; `BusyError`; `LostRankError`.
    """
    with joined() as place:
        options.check_ranks(place.num_ranks)
        shards = open_shards(options.shards, options.split)
        identity = options.identity(shards) if place.rank == 0 else {}
        if place.rank == 0:
            output.check_output(options.output, identity)
        done = output.finished(options.output)
        if done is not None:
            return done | {"output": str(options.output), "up_to_date": True}
        torch.manual_seed(options.seed)
        model = load_model(options.model, seed=options.seed)
        model.to(place.device)  # type: ignore[arg-type]
        check_fits(shards, model, joint=options.attention == "joint")
        backend, why = choose_backend(options.backend, place.device)
        log.info("attention by %s on %s (%s)", backend, place.device, why)
        if options.check:
            if options.attention == "isolated":
                _check_isolated(model, backend, autocast_dtype(options.dtype, place.device))
            check_content(shards, model, place.rank, place.num_ranks)
        else:
            log.warning("neither checksums nor whether samples see each other are checked")
        if not use_backend(model, backend):
            log.warning("%s computes attention itself: %s has no effect on it", type(model).__name__, backend)
        run = _Run(options, place, shards, model, backend)
        with output.claim(options.output, identity) if place.rank == 0 else nullcontext():
            if place.rank == 0:
                check_room(options.output, _room_for(options, model))
            place.highest(0)  # other ranks wait, and read there what is to be gone on from
            log.info("%d steps; see %s", options.steps, options.output / output.LOG)
            return run.run()


def _check_isolated(model: PreTrainedModel, backend: str, autocast: torch.dtype | None) -> None:
    found = probe(model, backend, autocast=autocast)
    if found.verdict != CLEAN:
        at = f" at {found.layer}" if found.layer else ""
        raise CheckError(
            f"samples would not be trained as if alone: {type(model).__name__} {found.verdict}{at}"
            f"{f' ({found.message})' if found.message else ''}; see `python -m training probe --model … --all`"
            " (--no-check trains all the same)"
        )


def _room_for(options: TrainOptions, model: nn.Module) -> int:
    """Bytes that a run will write: weights, or two checkpoints, each of weights and both moments of Adam."""
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    known = options.output / checkpoint.NAME
    return (6 if options.save_every else 1) * weights - (known.stat().st_size if known.is_file() else 0)


def _number(value: Tensor) -> float | None:
    """A number that JSON has; None for others."""
    number = float(value)
    return number if math.isfinite(number) else None


class _Steps(Sampler[list[int]]):
    """Packs of one rank, micro-batch by micro-batch, from a step on."""

    def __init__(self, options: TrainOptions, place: Place, num_packs: int, first: int) -> None:
        self._options, self._place, self._num_packs, self._first = options, place, num_packs, first

    def __iter__(self) -> Iterator[list[int]]:
        options, place = self._options, self._place
        for step in range(self._first, options.steps):
            of_step = packs_of_step(self._num_packs, step, options.packs_per_step, options.seed)
            own = of_step[place.rank :: place.num_ranks]
            for at in range(0, len(own), options.packs_per_forward):
                yield own[at : at + options.packs_per_forward]


class _Run:
    """A run on one rank."""

    def __init__(
        self,
        options: TrainOptions,
        place: Place,
        shards: Shards,
        model: PreTrainedModel,
        backend: str,
    ) -> None:
        self._options, self._place, self._shards, self._bare = options, place, shards, model
        self._backend = backend
        model.train()
        if options.gradient_checkpointing:
            # transformers 5.23 has the former, 5.17 the latter.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            try:
                enable()
            except ValueError as error:
                raise ConfigError(f"--gradient-checkpointing: {first_line(error)}") from error
        self._model: nn.Module = model
        if options.compile:
            self._model.compile(fullgraph=True, dynamic=False)
        if place.num_ranks > 1:
            self._model = nn.parallel.DistributedDataParallel(
                self._model, device_ids=[place.device] if place.device.type == "cuda" else None
            )
        trained = [each for each in model.parameters() if each.requires_grad]
        decayed = [each for each in trained if each.ndim > 1]
        others = [each for each in trained if each.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=options.learning_rate,
            fused=place.device.type == "cuda",
        )
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)

    def run(self) -> dict[str, Any]:
        """Train from the checkpoint on, if there is one."""
        options, place = self._options, self._place
        first, record = self._resume()
        loader = iter(self._loader(first))
        started = time.perf_counter()
        since, done = started, Costs(0, 0, 0.0)
        self._told = started
        bar = tqdm(
            total=options.steps, initial=first, unit="step", disable=True if place.rank else None, dynamic_ncols=True
        )
        lines = options.output / output.LOG if place.rank == 0 else Path(os.devnull)
        with deferred_signals() as signals, bar, open(lines, "a", encoding="utf-8") as file:
            for step in range(first + 1, options.steps + 1):
                torch.manual_seed(options.seed + 1_000_003 * step + place.rank)  # of dropout
                micro_batches, of_step = self._next(loader)
                rate = float(self._scheduler.get_last_lr()[0])
                result = self._step(micro_batches)
                done += of_step
                if step % options.log_every == 0 or step == options.steps:
                    record = self._record(step, rate, result, done, time.perf_counter() - since)
                    since, done = time.perf_counter(), Costs(0, 0, 0.0)
                    file.write(json.dumps(record, allow_nan=False) + "\n")
                    file.flush()
                    if record["loss"] is None:
                        raise CheckError(f"the loss of step {step} is {float(result.loss)}: lower --learning-rate?")
                    bar.set_postfix(loss=f"{record['loss']:.4f}")
                    if bar.disable:
                        self._tell(step, record["loss"])
                bar.update()
                stop = place.highest(signals[0] if signals else 0)  # ranks hear a signal at different steps
                if stop or (options.save_every and step % options.save_every == 0):
                    self._save(step)
                if stop:
                    place.highest(0)  # no rank leaves while another writes
                    stopped = KeyboardInterrupt() if stop == signal.SIGINT else Terminated()
                    stopped.add_note(f"the same command goes on after step {step} of {options.steps}")
                    raise stopped
            return self._finish(record, time.perf_counter() - started)

    def _tell(self, step: int, loss: float) -> None:
        """A line now and then, where there is no terminal for a bar."""
        if time.perf_counter() - self._told >= _TELL_EVERY:
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
                autocast=autocast_dtype(options.dtype, self._place.device),
            )
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise ConfigError(f"--compile: the model does not compile here: {first_line(error)}") from error
            raise

    def _rate(self, step: int) -> float:
        """Part of the learning rate: linear warm-up, then a cosine to zero."""
        options = self._options
        if step < options.warmup_steps:
            return (step + 1) / options.warmup_steps
        return 0.5 * (
            1 + math.cos(math.pi * (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1))
        )

    def _loader(self, first: int) -> DataLoader[Any]:
        options = self._options
        size = options.packs_per_forward * self._shards.capacity if options.compile else None
        most = None if size is None else options.packs_per_forward * self._shards.most_segments + 1
        self._collate = PackedCollator(
            attention=options.attention, sample_mean=options.loss == "sample-mean", pad_to=size, max_segments=most
        )
        sampler = _Steps(options, self._place, len(self._shards.packs), first)
        return DataLoader(
            PackTables(self._shards),
            batch_sampler=sampler,
            collate_fn=self._collated,
            pin_memory=self._place.device.type == "cuda",
        )

    def _collated(self, tables: list[pa.Table]) -> tuple[dict[str, Any], Costs]:
        (packs,) = tables
        check_packs(packs, self._bare, self._shards)  # also without --check, and if files change under a run
        batch = self._collate(packs)
        return batch, costs(packs, joint=self._options.attention == "joint")

    def _next(self, loader: Iterator[Any]) -> tuple[list[dict[str, Any]], Costs]:
        """Micro-batches of the next step."""
        options = self._options
        of_rank = options.packs_per_step // self._place.num_ranks
        taken = [next(loader) for _ in range(-(-of_rank // options.packs_per_forward))]
        total = Costs(0, 0, 0.0)
        for _, each in taken:
            total += each
        return [batch for batch, _ in taken], total

    def _record(self, step: int, rate: float, result: StepResult, done: Costs, seconds: float) -> dict[str, Any]:
        """What the log says of the steps since its last line; rates are of all ranks."""
        place = self._place
        record: dict[str, Any] = {
            "step": step,
            "loss": _number(result.loss),  # waits for the device
            "grad_norm": _number(result.grad_norm),
            "learning_rate": rate,
            "tokens_per_second": done.tokens * place.num_ranks / seconds,
            "targets_per_second": done.targets * place.num_ranks / seconds,
            "peak_memory_bytes": peak_memory(place.device),
        }
        peak = peak_flops(place.device)
        if peak is not None:
            spent = training_flops(self._bare, done.tokens, done.targets, done.sum_length_squared)
            record["mfu"] = spent / seconds / peak
        return record

    def _resume(self) -> tuple[int, dict[str, Any]]:
        """(steps that are done, what the log says of the last of them)."""
        options = self._options
        state = checkpoint.load(options.output)
        lines = options.output / output.LOG
        if state is None:
            if self._place.rank == 0:
                lines.unlink(missing_ok=True)
            return 0, {}
        self._bare.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        step: int = state["step"]
        if self._place.rank != 0:
            return step, {}
        known = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
        kept = [line for line in known if line.endswith("}") and json.loads(line)["step"] <= step]
        lines.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        log.info("going on after step %d", step)
        return step, json.loads(kept[-1]) if kept else {}

    def _save(self, step: int) -> None:
        if self._place.rank == 0:
            checkpoint.save(
                self._options.output,
                {
                    "step": step,
                    "model": self._bare.state_dict(),
                    "optimizer": self._optimizer.state_dict(),
                    "scheduler": self._scheduler.state_dict(),
                },
            )

    def _finish(self, record: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Write the trained model, and say that the run is done."""
        options = self._options
        result = {
            "output": str(options.output),
            "steps": options.steps,
            "loss": record.get("loss"),
            "backend": self._backend,
            "device": str(self._place.device),
            "seconds": seconds,
            "up_to_date": False,
        }
        if self._place.rank == 0:
            save_model(self._bare, options.model, options.output / output.MODEL)
            output.finish(options.output, result)
        return result
