"""The loop of a training run on one rank: from its checkpoint, if there is one, to its last step."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.base.errors import CheckError, ConfigError, Termination
from pipeline.base.words import counted, first_line
from training.checking.refusals import refusals_told
from training.measuring.metrics import why_no_mfu
from training.models.adapters import load_trained_state, trained_state
from training.models.fsdp import gathered, own_part, part_of
from training.options import TrainOptions
from training.packs import Costs
from training.place import Place
from training.running import checkpoint
from training.running.evaluation import Evaluation
from training.running.feed import Feed, ahead, collator, packs_of_rank
from training.running.output import Scores
from training.running.step_log import StepLog
from training.shapes import compile_layers
from training.shards import Shards
from training.step import StepResult, autocast_dtype, train_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopResult:
    """How a loop ended, as the first rank knows it."""

    loss: float | None
    """The loss of the last step; None where it is no number, or the log of a run that went on does not say."""

    skipped_steps: int
    evaluation: Scores | None
    seconds: float


class Loop:
    """What trains a model on the packs of one rank."""

    def __init__(
        self, options: TrainOptions, place: Place, shards: Shards, eval_shards: Shards | None, model: PreTrainedModel
    ) -> None:
        """model: on the rank's device, with its attention set. Raises `ConfigError` for what it cannot do."""
        self._options, self._place, self._bare = options, place, model
        self._autocast = autocast_dtype(options.dtype, place.device)
        self._model = _wrapped(options, place, model)
        self._feed = Feed(shards, model, collator(options, shards, model), place.device)
        self._evaluation = None
        if eval_shards is not None:
            self._evaluation = Evaluation(options, place, eval_shards, model, self._autocast)
        self._optimizer = _optimizer(options, place, model)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._rate)
        self._log = StepLog(options, place, model, self._autocast)
        why = why_no_mfu(place.device, self._autocast)
        if why is not None and place.device.type == "cuda":
            log.warning("%s: the log has no mfu", why)

    def run(self, signals: Sequence[int]) -> LoopResult:
        """Train from the checkpoint on, if there is one.

        signals: those that arrive meanwhile; the step is then finished, and a checkpoint written.

        Raises `KeyboardInterrupt` after a signal, `DataError` as `Feed.batches`, and `CheckError` if the gradients of
        many steps, or any weights, are no numbers.
        """
        options, place = self._options, self._place
        first, started = self._resume(), time.perf_counter()
        with self._log as step_log, ahead(self._batches, range(first, options.steps), place.device) as batches:
            step_log.begin()
            if first and options.is_evaluated(first) and not self._has_scores(first):
                self._evaluate(first, signals)
                self._save_or_stop(first, signals)
            for step in range(first + 1, options.steps + 1):
                micro_batches, costs = next(batches)
                torch.manual_seed(options.seed + 1_000_003 * step + place.rank)  # of dropout
                rate = float(self._scheduler.get_last_lr()[0])
                step_log.queue(step, rate, self._step(micro_batches), costs)
                if options.is_evaluated(step):
                    self._evaluate(step, signals)
                self._save_or_stop(step, signals)
            step_log.finish()
            self._check_weights(options.steps)
        return LoopResult(
            loss=step_log.loss,
            skipped_steps=step_log.skipped,
            evaluation=step_log.scores,
            seconds=time.perf_counter() - started,
        )

    def _batches(self, step: int) -> tuple[list[dict[str, Any]], Costs]:
        """Micro-batches of a step, counted from 0."""
        return self._feed.batches(packs_of_rank(self._options, self._place, len(self._feed.shards.packs), step))

    def _step(self, micro_batches: list[dict[str, Any]]) -> StepResult:
        options = self._options
        try:
            with refusals_told(self._bare):
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

    def _evaluate(self, step: int, signals: Sequence[int]) -> None:
        """Score the model, unless a signal arrives: that is then made up for when the run goes on."""
        assert self._evaluation is not None
        self._log.read()
        scores = self._evaluation.scores(step, lambda: self._stop(signals))
        if scores is not None:
            self._log.score(scores)
        self._log.begin()

    def _has_scores(self, step: int) -> bool:
        """Whether a run that goes on has been scored after a step; the first rank knows."""
        scores = self._log.scores
        return bool(self._place.highest(scores is not None and scores.step == step))

    def _stop(self, signals: Sequence[int]) -> int:
        """The signal to stop for; 0 for none. Ranks hear one at different steps."""
        return self._place.highest(signals[0] if signals else 0)

    def _save_or_stop(self, step: int, signals: Sequence[int]) -> None:
        options = self._options
        stop = self._stop(signals)
        if stop or (options.save_every and step % options.save_every == 0):
            self._save(step)
        if stop:
            self._place.highest(0)  # no rank leaves while another writes
            stopped = KeyboardInterrupt() if stop == signal.SIGINT else Termination()
            stopped.add_note(f"the same command goes on after step {step} of {options.steps}")
            raise stopped

    def _rate(self, step: int) -> float:
        """Part of the learning rate: linear warm-up, then a cosine to zero."""
        warmup, steps = self._options.warmup_steps, self._options.steps
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))

    def _resume(self) -> int:
        """Load the checkpoint; returns the steps that are done."""
        state = checkpoint.load(self._options.output)
        if state is None:
            self._log.resume(0, 0)
            return 0
        self._load(state["model"], state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        step: int = state["step"]
        self._log.resume(step, state.get("skipped_steps", 0))
        log.info("going on after step %d", step)
        before, now = state.get("num_ranks", self._place.num_ranks), self._place.num_ranks
        if before != now:
            log.warning(
                "%s trained before, and %d now: the same packs in each step, but sums are rounded in another order, and"
                " dropout, if the model has any, is drawn otherwise",
                counted(before, "rank"),
                now,
            )
        return step

    def _load(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Take up the states of a model and its optimizer, which are whole, or of each tensor this rank's part."""
        own = self._bare.state_dict()
        load_trained_state(self._bare, {name: part_of(each, own.get(name)) for name, each in model.items()})
        parameters = [each for group in self._optimizer.param_groups for each in group["params"]]
        moments = {
            number: {name: part_of(each, parameters[number]) if each.ndim else each for name, each in state.items()}
            for number, state in optimizer["state"].items()
        }
        self._optimizer.load_state_dict({**optimizer, "state": moments})

    def _save(self, step: int) -> None:
        """Write a checkpoint. Raises `CheckError` as `StepLog.read` and `_check_weights`, and `StorageError`."""
        self._log.read()
        self._check_weights(step)
        state = {
            "step": step,
            "skipped_steps": self._log.skipped,
            "num_ranks": self._place.num_ranks,
            "model": trained_state(self._bare),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }
        state = gathered(state, self._place)
        if self._place.is_first:
            checkpoint.save(self._options.output, state)
        self._log.begin()

    def _check_weights(self, step: int) -> None:
        """Raise `CheckError` for what must not be saved."""
        kept = [*trained_state(self._bare).values()]
        kept += [each for state in self._optimizer.state.values() for each in state.values()]
        broken = not all(bool(own_part(each).isfinite().all()) for each in kept)
        if self._place.highest(broken):  # a rank may have its part of them alone
            raise CheckError(
                f"after step {step} some weights are infinite or no numbers, so they are not saved: lower"
                " --learning-rate or --weight-decay?"
            )


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
    if options.fsdp or not place.in_group:
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
    betas = (options.adam_beta1, options.adam_beta2)
    fused = place.device.type == "cuda"  # so that nothing waits to know whether a step is skipped
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=betas, eps=options.adam_eps, fused=fused)
