"""One layout and what is measured of it, apart from the others: a failure is its own, and so is its memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from pipeline.base.words import first_line
from pipeline.format.labels import IGNORE
from training.attention.interface import use_backend
from training.measuring.flattening import attend_as_transformers
from training.measuring.layouts import LayoutStep, layout_steps
from training.options import LAYOUTS, OF_TRANSFORMERS, STATIC
from training.plan import precision, to_device
from training.shapes import compile_layers
from training.step import train_step

_WARM_UP = 2
"""Steps of a round that are not timed, after that of most tokens; of compiled rows, which have several shapes, it is
all steps of the first round."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured, and how."""

    packs_per_forward: int = 1
    rounds: int = 3
    layouts: tuple[str, ...] = LAYOUTS
    backend: str = "sdpa"
    """It computes the layouts of ours; for those of transformers see `attend_as_transformers`."""

    autocast: torch.dtype | None = None
    capacity: int
    seed: int = 0


class Lane:
    """One layout and what was measured of it."""

    def __init__(
        self, layout: str, packs: Sequence[Mapping[str, Any]], model: PreTrainedModel, options: Measurement
    ) -> None:
        """packs: in whole steps."""
        self.layout, self._packs, self._model, self._options = layout, packs, model, options
        self._device = next(model.parameters()).device
        self._own = model.config._attn_implementation
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=self._device.type == "cuda")
        self._steps: list[LayoutStep] = []
        self._compiled: list[tuple[nn.Module, Any]] = []
        """Layers of a static layout with what calls them when they are compiled."""

        self.seconds: dict[int, list[float]] = {}
        """How long every step took, by the number of the round."""

        self.peak = 0
        """Most bytes of a GPU that were taken at once."""

        self.kernels: str | None = None
        """Who computed attention."""

        self.failed: str | None = None
        """Why nothing was measured."""

        self.micro_batches = 1
        """Into how many a step is divided, if it has as many rows, because memory did not suffice for one."""

    def run(self, number: int) -> None:
        """Measure a round, with as many micro-batches as memory wants; a failure ends this layout alone."""
        while self.failed is None and number not in self.seconds:
            try:
                self.seconds[number] = self._round()
            except torch.OutOfMemoryError as error:
                self._divide(first_line(error))
            except Exception as error:  # whatever it is, it is this layout's, and the others are measured
                self.failed = f"{type(error).__name__}: {first_line(error)}"
            try:  # after the error, whose frames hold what the step had computed
                self._leave()
            except Exception as error:
                self.failed = self.failed or f"{type(error).__name__}: {first_line(error)}"

    def _divide(self, said: str) -> None:
        """Go on with smaller pieces, if there are any; what was measured in others is no round of the same."""
        if self.micro_batches > max((len(each.micro_batches) for each in self._steps), default=self.micro_batches):
            self.failed = f"OutOfMemoryError, with one row at a time: {said}"
            return
        self.micro_batches *= 2
        self._steps = []
        self.seconds.clear()

    def _round(self) -> list[float]:
        """Seconds of each step."""
        if not self._steps:
            options = self._options
            made = layout_steps(
                self.layout, self._packs, options.packs_per_forward, options.capacity, options.seed, self.micro_batches
            )
            self._steps = [
                replace(each, micro_batches=[self._pinned(one) for one in each.micro_batches]) for each in made
            ]
        step = self._step_of_ours
        if self.layout in OF_TRANSFORMERS:
            step = self._step_of_transformers
            self.kernels = attend_as_transformers(self._model, self.layout, self._options.backend)
        else:
            is_ours = use_backend(self._model, self._options.backend)
            self.kernels = self._options.backend if is_ours else f"{type(self._model).__name__} itself"
        if self.layout == STATIC:
            self._compile()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        for each in self._warm_up():
            step(each)
        seconds = timed([lambda each=each: step(each) for each in self._steps], self._device)  # type: ignore[misc]
        if self._device.type == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self._device))
        return seconds

    def _warm_up(self) -> list[LayoutStep]:
        """With these Adam has its state, and the allocator its largest blocks, whatever the round."""
        first = self._steps if self.layout == STATIC and not self.seconds else self._steps[:_WARM_UP]
        return [max(self._steps, key=lambda each: each.computed), *first]

    def _leave(self) -> None:
        """Leave nothing to the next layout: neither memory nor attention."""
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        for layer, _ in self._compiled:
            layer._compiled_call_impl = None
        self._model.set_attn_implementation(self._own)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _pinned(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch as a loader gives it on a GPU: nothing waits for its copy."""
        if self._device.type != "cuda":
            return dict(batch)
        return {name: each.pin_memory() if isinstance(each, Tensor) else each for name, each in batch.items()}

    def _compile(self) -> None:
        """Compile the layers, or give them back what was compiled: other layouts train the same model without it."""
        if not self._compiled:
            torch.compiler.reset()
            self._compiled = [(layer, layer._compiled_call_impl) for layer in compile_layers(self._model)]
        for layer, call in self._compiled:
            layer._compiled_call_impl = call

    def _step_of_ours(self, step: LayoutStep) -> None:
        train_step(self._model, step.micro_batches, self._optimizer, autocast=self._options.autocast)

    def _step_of_transformers(self, step: LayoutStep) -> None:
        """Do what `train_step` does, for batches that are not `PackedCollator`'s."""
        self._optimizer.zero_grad(set_to_none=True)
        for batch in step.micro_batches:
            inputs = to_device(batch, self._device)
            labels = inputs.pop("labels")
            with precision(self._device, self._options.autocast):
                logits = self._model(**inputs, use_cache=False).logits
            following = functional.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
            losses = functional.cross_entropy(
                logits.flatten(0, 1).float(), following, ignore_index=IGNORE, reduction="sum"
            )
            (losses / step.targets).backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()

    def figures(self, padded: Lane | None, flops: float, peak: float | None) -> dict[str, Any]:
        """What was measured, or why nothing was.

        flops: of all steps. peak: operations a second that the device can do, if that is known.
        """
        if self.failed is not None:
            return {"failed": self.failed, "micro_batches": self.micro_batches}
        median = statistics.median(sum(seconds) for seconds in self.seconds.values())
        tokens, targets, computed = (
            sum(getattr(each, name) for each in self._steps) for name in ("tokens", "targets", "computed")
        )
        figures: dict[str, Any] = {
            "tokens_per_second": tokens / median,
            "targets_per_second": targets / median,
            "step_seconds": self.step_seconds(),
            "steps": len(self._steps),
            "micro_batches": max(len(each.micro_batches) for each in self._steps),
            "real_tokens": tokens / computed,
            "attention": self.kernels,
        }
        if self._device.type == "cuda":
            figures["peak_memory_bytes"] = self.peak
        if peak is not None:
            figures["mfu"] = flops / median / peak
        if padded is not None and padded is not self and padded.failed is None:
            figures["times_padded"] = self.times(padded)
            if self.peak:
                figures["memory_of_padded"] = self.peak / padded.peak
        return figures

    def step_seconds(self) -> float:
        """Median over steps and rounds."""
        return statistics.median(each for seconds in self.seconds.values() for each in seconds)

    def times(self, other: Lane) -> dict[str, float]:
        """How many times as fast as another layout, within each round."""
        both = self.seconds.keys() & other.seconds.keys()
        ratios = [sum(other.seconds[each]) / sum(self.seconds[each]) for each in both]
        return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def timed(steps: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
    """Seconds of each step: by events on a GPU, which is not made to wait between steps."""
    if device.type != "cuda":
        seconds = []
        for step in steps:
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        return seconds
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    events[0].record()
    for step, event in zip(steps, events[1:], strict=True):
        step()
        event.record()
    torch.cuda.synchronize(device)
    return [one.elapsed_time(other) / 1000 for one, other in pairwise(events)]
