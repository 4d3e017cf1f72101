"""The log of a run: a line of JSON for a step, or for scores; nothing waits for the device to write it.

What a step did is sent to the host when the step is queued, and read when two more are: by then it is there, unless the
device is behind. Before anything is written that the run could go on from, all of it is read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.base import storage
from pipeline.base.errors import CheckError, ConfigError, DataError
from pipeline.base.words import counted
from training.measuring.metrics import peak_flops, peak_memory, training_flops
from training.options import TrainOptions
from training.packs import Costs
from training.place import Place
from training.running.output import LOG, Scores, finite
from training.step import StepResult

log = logging.getLogger(__name__)

LATE = 2
"""Steps that are queued after one before it is read."""

MOST_SKIPPED = 5
"""Steps in a row whose gradient may be infinite or no number."""

PROGRESS_SECONDS = 30.0
"""Time between lines of progress where there is no terminal."""


class Moment:
    """When a device has done what it was given so far."""

    def __init__(self, device: torch.device) -> None:
        self._event, self._at = None, 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._at = time.perf_counter()

    def wait(self) -> None:
        """Wait until it has come."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, other: Moment) -> float:
        """Time from another moment on; both have come."""
        if self._event is None or other._event is None:
            return self._at - other._at
        return float(other._event.elapsed_time(self._event)) / 1000


@dataclass(frozen=True)
class _Queued:
    """A step that the device has still to do, perhaps."""

    step: int
    rate: float
    costs: Costs
    numbers: Tensor
    """Loss, norm of the gradient, whether it was skipped; on the host once it has ended.  # shape: (3,)"""

    begun: Moment
    ended: Moment


class StepLog:
    """What is written of steps, and counted; a context, in which its file is open."""

    def __init__(
        self, options: TrainOptions, place: Place, model: PreTrainedModel, autocast: torch.dtype | None
    ) -> None:
        self._options, self._place, self._model, self._autocast = options, place, model, autocast
        self._path = options.output / LOG if place.is_first else Path(os.devnull)
        self._queued: deque[_Queued] = deque()
        self._costs, self._seconds, self._skipped_in_a_row = Costs(), 0.0, 0
        self._told = time.perf_counter()
        self._first = 0
        self.skipped = 0
        """Steps of the run that were not taken."""

        self.loss: float | None = None
        """Of the last step that has a line, on the first rank."""

        self.scores: Scores | None = None
        """The last that have a line, on the first rank."""

    def resume(self, step: int, skipped: int) -> None:
        """Go on after a step: nothing is kept of what came later, or of a line that was broken off."""
        self._first, self.skipped = step, skipped
        if not self._place.is_first:
            return
        if step == 0:
            storage.remove(self._path)
            return
        kept = self._kept(step)
        storage.write_file(self._path, "".join(line + "\n" for line, _ in kept).encode())
        for _, record in kept:
            if "evaluation" in record:
                self.scores = Scores(step=record["step"], **record["evaluation"])
            else:
                self.loss = record["loss"]

    def _kept(self, step: int) -> list[tuple[str, dict[str, Any]]]:
        """The lines of the first steps, and what they say. Raises `ConfigError` for a line that is none of ours."""
        if not self._path.is_file():
            return []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        try:
            known = [(line, json.loads(line)) for line in lines if line.endswith("}")]
            return [(line, record) for line, record in known if record["step"] <= step]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._path} is damaged; remove it to go on without what it says") from error

    def __enter__(self) -> StepLog:
        self._file = storage.append(self._path)
        self._bar = tqdm(
            total=self._options.steps,
            initial=self._first,
            unit="step",
            disable=None if self._place.is_first else True,
            dynamic_ncols=True,
        )
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        with self._file, self._bar:
            if isinstance(error, DataError):  # of packs that come later: what was trained before is told
                self.read()

    def begin(self) -> None:
        """Let time count for the next step from now on, after what is none."""
        self._since = Moment(self._place.device)

    def queue(self, step: int, rate: float, result: StepResult, costs: Costs) -> None:
        """Take up what the device has been given to do, and write of the step that is `LATE` before it.

        Raises `CheckError` as `read`.
        """
        numbers = torch.stack([each.detach().double() for each in (result.loss, result.grad_norm, result.skipped)])
        numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
        begun, self._since = self._since, Moment(self._place.device)
        self._queued.append(_Queued(step, rate, costs, numbers, begun, self._since))
        self.read(LATE)
        self._bar.update()

    def read(self, left: int = 0) -> None:
        """Wait for all steps that are queued, but for so many, and write of them.

        Raises `CheckError` if the gradients of `MOST_SKIPPED` steps in a row are infinite or no numbers.
        """
        while len(self._queued) > left:
            self._read(self._queued.popleft())

    def finish(self) -> None:
        """Write of all steps. Raises `CheckError` if half of them were skipped, or as `read`."""
        self.read()
        if 2 * self.skipped >= self._options.steps:
            raise CheckError(
                f"the gradients of {self.skipped} of {counted(self._options.steps, 'step')} are infinite or no numbers:"
                " lower --learning-rate?"
            )

    def score(self, scores: Scores) -> None:
        """Write what a model was found to lose."""
        self.scores = scores
        evaluation = dataclasses.asdict(scores)
        self._write({"step": evaluation.pop("step"), "evaluation": evaluation})
        log.info("evaluation after step %d: %s", scores.step, scores)

    def _read(self, queued: _Queued) -> None:
        queued.ended.wait()
        loss, grad_norm, skipped = queued.numbers.tolist()
        self._costs += queued.costs
        self._seconds += queued.ended.seconds_since(queued.begun)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        self.skipped += bool(skipped)
        if skipped:
            log.warning("step %d is skipped: its gradient is infinite or no number, its loss %s", queued.step, loss)
        is_broken = self._skipped_in_a_row >= MOST_SKIPPED
        if queued.step % self._options.log_every == 0 or queued.step == self._options.steps or is_broken:
            self._write(self._record(queued, loss, grad_norm))
            self._tell(queued.step, finite(loss))
        if is_broken:
            raise CheckError(
                f"the gradients of {MOST_SKIPPED} steps in a row, up to step {queued.step}, are infinite or no numbers,"
                f" and the loss is {loss}: lower --learning-rate?"
            )

    def _record(self, queued: _Queued, loss: float, grad_norm: float) -> dict[str, Any]:
        """What the log says of the steps since its last line; rates are of all ranks."""
        done, seconds, num_ranks = self._costs, self._seconds, self._place.num_ranks
        self._costs, self._seconds = Costs(), 0.0
        record: dict[str, Any] = {
            "step": queued.step,
            "loss": finite(loss),
            "grad_norm": finite(grad_norm),
            "learning_rate": queued.rate,
            "skipped_steps": self.skipped,
            "tokens_per_second": done.tokens * num_ranks / seconds,
            "targets_per_second": done.targets * num_ranks / seconds,
            "peak_memory_bytes": peak_memory(self._place.device),
        }
        peak = peak_flops(self._place.device, self._autocast)
        if peak is not None:
            spent = training_flops(self._model, done.tokens, done.targets, done.sum_length_squared)
            record["mfu"] = spent / seconds / peak
        return record

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        self._file.flush()

    def _tell(self, step: int, loss: float | None) -> None:
        """Show the loss beside the bar, or log a line now and then where there is no terminal for one."""
        self.loss = loss
        shown = "no number" if loss is None else f"{loss:.4f}"
        self._bar.set_postfix(loss=shown)
        if self._bar.disable and time.perf_counter() - self._told >= PROGRESS_SECONDS:
            log.info("step %d of %d, loss %s", step, self._options.steps, shown)
            self._told = time.perf_counter()
