"""What packing is worth: the same samples padded, grouped by length, flattened and packed, trained by the same model.

Layouts take turns, round by round, so that what disturbs the machine disturbs them all; a layout's ratio to the padded
one is taken within each round. Every step is a whole one: forward, backward, clipping, optimizer.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.base.words import first_line
from pipeline.format.labels import IGNORE
from training.attention.interface import use_backend
from training.attention.settings import UnsupportedAttentionError
from training.collator import PackedCollator
from training.measuring.layouts import LayoutBatch, layout_batches, samples_of
from training.measuring.metrics import peak_flops, training_flops
from training.options import LAYOUTS, OF_TRANSFORMERS, PACKED, PADDED, STATIC
from training.plan import precision, to_device
from training.shapes import compile_layers
from training.step import train_step

log = logging.getLogger(__name__)

_WARM_UP = 3
"""Steps of a layout that are not timed, in its first round; of compiled rows all, which have several shapes."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured, and how."""

    packs_per_forward: int = 1
    rounds: int = 3
    layouts: tuple[str, ...] = LAYOUTS
    backend: str = "sdpa"
    """It computes the layouts of ours; the model's own attention computes the others."""

    autocast: torch.dtype | None = None
    capacity: int
    seed: int = 0


def bench(model: PreTrainedModel, packs: Any, options: Measurement) -> dict[str, Any]:
    """Train on packs, in each layout, as often as there are rounds.

    packs: a list of rows of packed shards, or a dataset of them, which is then read again to time the reading.

    The model is trained, on its device. Returns figures of each layout, or why there are none: medians over rounds, and
    ratios to the padded layout.
    """
    device = next(model.parameters()).device
    rows = [packs[number] for number in range(len(packs))]
    squares = sum(float(len(each["input_ids"])) ** 2 for each in samples_of(rows))
    lanes: dict[str, _Lane] = {}
    for layout in options.layouts:
        batches = layout_batches(layout, rows, options.packs_per_forward, options.capacity, options.seed)
        lanes[layout] = _Lane(layout, batches, model, options)
    with tqdm(total=options.rounds * len(lanes), unit="run", disable=None, leave=False) as bar:
        for number in range(1, options.rounds + 1):
            for lane in lanes.values():
                lane.run()
                bar.update()
                if bar.disable:
                    log.info("round %d of %d: %s %s", number, options.rounds, lane.layout, lane.failed or "measured")
    padded = lanes.get(PADDED)
    batches = next(iter(lanes.values())).batches
    tokens, targets, samples = (
        sum(getattr(each, name) for each in batches) for name in ("tokens", "targets", "samples")
    )
    peak = peak_flops(device)
    flops = training_flops(model, tokens, targets, squares)
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "packs_per_forward": options.packs_per_forward,
        "rounds": options.rounds,
        "precision": str(options.autocast or torch.float32).removeprefix("torch."),
        "backend": options.backend,
        "samples": samples,
        "tokens": tokens,
        "targets": targets,
        "collating": _collating(packs, options, lanes.get(PACKED)),
        "layouts": {name: lane.figures(padded, flops, peak) for name, lane in lanes.items()},
    }


class _Lane:
    """One layout and what was measured of it."""

    def __init__(self, layout: str, batches: list[LayoutBatch], model: PreTrainedModel, options: Measurement) -> None:
        self.layout, self.batches, self._model, self._options = layout, batches, model, options
        self._own = model.config._attn_implementation
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-6, fused=next(model.parameters()).device.type == "cuda"
        )
        self._compiled: list[tuple[nn.Module, Any]] = []
        """Layers of a static layout with what calls them when they are compiled."""

        self._seconds: list[list[float]] = []
        """How long every step took, round by round."""

        self._peak = 0
        self.failed: str | None = None

    def run(self) -> None:
        """Measure one round; a failure ends this layout alone."""
        if self.failed is not None:
            return
        device = next(self._model.parameters()).device
        step = self._packed_step
        if self.layout in OF_TRANSFORMERS:
            step = self._step_of_transformers
            self._model.set_attn_implementation(
                "flash_attention_2" if self._options.backend == "flash-attn" else self._own
            )
        else:
            use_backend(self._model, self._options.backend)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            if self.layout == STATIC:
                self._compile()
            if not self._seconds:
                for each in self.batches if self.layout == STATIC else self.batches[:_WARM_UP]:
                    step(each)
            self._seconds.append(_timed([lambda each=each: step(each) for each in self.batches], device))  # type: ignore[misc]
            if device.type == "cuda":
                self._peak = max(self._peak, torch.cuda.max_memory_allocated(device))
        except (UnsupportedAttentionError, RuntimeError) as error:  # the latter: out of memory, or no compiler
            self.failed = first_line(error)
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            self._optimizer.state.clear()  # one layout's at a time
            self._model.set_attn_implementation(self._own)
            for layer, _ in self._compiled:
                layer._compiled_call_impl = None

    def _compile(self) -> None:
        """Compile the layers, or give them back what was compiled: other layouts train the same model without it."""
        if not self._compiled:
            torch.compiler.reset()
            self._compiled = [(layer, layer._compiled_call_impl) for layer in compile_layers(self._model)]
        for layer, call in self._compiled:
            layer._compiled_call_impl = call

    def _packed_step(self, batch: LayoutBatch) -> None:
        train_step(self._model, batch.tensors, self._optimizer, autocast=self._options.autocast)

    def _step_of_transformers(self, batch: LayoutBatch) -> None:
        """Do what `train_step` does, for batches that are not `PackedCollator`'s."""
        device = next(self._model.parameters()).device
        inputs = to_device(batch.tensors, device)
        labels = inputs.pop("labels")
        self._optimizer.zero_grad(set_to_none=True)
        with precision(device, self._options.autocast):
            logits = self._model(**inputs, use_cache=False).logits
        following = functional.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), following, ignore_index=IGNORE, reduction="sum")
        (losses / (following != IGNORE).sum()).backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()

    def figures(self, padded: _Lane | None, flops: float, peak: float | None) -> dict[str, Any]:
        """What was measured, or why nothing was."""
        if self.failed is not None:
            return {"failed": self.failed}
        rounds = [sum(seconds) for seconds in self._seconds]
        tokens, targets, computed = (
            sum(getattr(each, name) for each in self.batches) for name in ("tokens", "targets", "computed")
        )
        figures: dict[str, Any] = {
            "tokens_per_second": tokens / statistics.median(rounds),
            "targets_per_second": targets / statistics.median(rounds),
            "step_seconds": statistics.median([each for seconds in self._seconds for each in seconds]),
            "steps": len(self.batches),
            "real_tokens": tokens / computed,
        }
        if peak is not None:
            figures |= {"mfu": flops / statistics.median(rounds) / peak, "peak_memory_bytes": self._peak}
        if padded is not None and padded.failed is None and padded is not self:
            ratios = [sum(theirs) / ours for theirs, ours in zip(padded._seconds, rounds, strict=True)]
            figures["times_padded"] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            if self._peak:
                figures["memory_of_padded"] = self._peak / padded._peak
        return figures


def _timed(steps: Sequence[Callable[[], None]], device: torch.device) -> list[float]:
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


def _collating(packs: Any, options: Measurement, packed: _Lane | None) -> dict[str, float]:
    """What it takes to read and collate the packs of a step, and which part of the step that is."""
    collate = PackedCollator()
    seconds = []
    for at in range(0, len(packs) - options.packs_per_forward + 1, options.packs_per_forward):
        started = time.perf_counter()
        collate([packs[number] for number in range(at, at + options.packs_per_forward)])
        seconds.append(time.perf_counter() - started)
    figures = {"seconds": statistics.median(seconds)}
    if packed is not None and packed.failed is None:
        figures["part_of_step"] = figures["seconds"] / statistics.median(
            [each for one in packed._seconds for each in one]
        )
    return figures
