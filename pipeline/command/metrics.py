"""What a run tells while it goes on and when it ends: bars, the log, and a file for Prometheus' textfile collector.

The names of the metrics, and what each means, are promised in docs/jobs.md.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.harness import Decorator, at_end
from pipeline.base.process.log import logs_json
from pipeline.base.progress import Progress, TerminalBars
from pipeline.base.words import in_one_line

if TYPE_CHECKING:
    from prometheus_client import Metric

    from pipeline.format.manifest import PackManifest
    from pipeline.format.records import Tally

log = logging.getLogger(__name__)

PREFIX = "tightpack_"
OF_ALL_RUNS = {
    "last_run_timestamp_seconds": "When the last run ended, however it ended.",
    "last_run_duration_seconds": "How long it took.",
    "last_exit_code": "Its exit code.",
}
OF_SUCCESSES = {
    "last_success_timestamp_seconds": "When the last run ended that was done, or found its output up to date.",
    "last_success_duration_seconds": "How long it took.",
    "up_to_date": "Whether it found its output up to date (1), or made it (0).",
    "stage_seconds": "Seconds that it spent in a stage.",
    "rows": "Raw rows read.",
    "dropped_rows": "Raw rows left out, by reason.",
    "samples": "Samples of the dataset.",
    "tokens": "Tokens of the dataset.",
    "targets": "Targets of the dataset.",
    "packs": "Packs of the dataset.",
    "fill_ratio": "How full the packs are, 0 to 1.",
    "dropped_samples": "Samples left out, by reason.",
    "dropped_tokens": "Tokens left out, by reason.",
}
LABELS = {"stage_seconds": "stage", "dropped_rows": "reason", "dropped_samples": "reason", "dropped_tokens": "reason"}
"""The label that a metric has besides those of all: `job_name`, the file's name, and `command`."""

Figures = Mapping[str, float | Mapping[str, float]]
"""Values by the name of their metric; of one with a label the values by that."""

_WATCH = "tightpack.watch"


@dataclass
class Watch:
    """A run's progress, and how it ended; called with the former."""

    command: str
    metrics_file: Path | None = None
    """Where its metrics are written; None where nobody asked."""

    _begun: float = field(default_factory=time.monotonic)
    _bars: TerminalBars = field(default_factory=TerminalBars)
    _stages: dict[str, float] = field(default_factory=dict)
    """Kind of stage -> seconds, of those that ended."""

    _running: dict[str, float] = field(default_factory=dict)
    _figures: Figures | None = None
    """Of a run that was done."""

    def __call__(self, progress: Progress) -> None:
        """Tell how far a stage is: on a terminal by bars, in the log when it begins and ends."""
        if not logs_json():
            self._bars(progress)
        level = logging.INFO if logs_json() else logging.DEBUG
        name, now = progress.stage, time.monotonic()
        if name not in self._running:
            self._running[name] = now
            log.log(level, "%s begins", name, extra={"stage": name, "total": progress.total, "unit": progress.unit})
        if progress.ended:
            seconds = now - self._running.pop(name)
            kind = name.partition(" ")[0]  # "tokenising train" and "tokenising test" are one stage of the metrics
            self._stages[kind] = self._stages.get(kind, 0.0) + seconds
            fields = {"stage": name, "done": progress.done, "unit": progress.unit, "seconds": round(seconds, 3)}
            log.log(level, "%s ends", name, extra=fields)

    def done(self, status: str, figures: Figures, **fields: Any) -> None:
        """Note that the run did what it was asked; fields: what else the log says of it."""
        self._figures = {"up_to_date": status == "up_to_date", "stage_seconds": dict(self._stages), **figures}
        fields |= {"status": status, "seconds": round(time.monotonic() - self._begun, 3)}
        log.info("%s: %s", self.command, status.replace("_", " "), extra=fields)

    def leave_metrics(self) -> None:
        """Leave the metrics as they are: this run shows something and writes nothing."""
        if self.metrics_file is not None:
            log.info("--metrics-file tells of runs that publish: %s stays as it is", self.metrics_file)
        self.metrics_file = None

    def write_metrics(self, exit_code: int) -> None:
        """Renew the metrics; those of the last success stay where this run was none.

        Raises `ConfigError` if a file of somebody else stands there, `StorageError` if it cannot be written.
        """
        if self.metrics_file is None:
            return
        now, seconds = time.time(), time.monotonic() - self._begun
        of_run: Figures = {
            "last_run_timestamp_seconds": now,
            "last_run_duration_seconds": seconds,
            "last_exit_code": exit_code,
        }
        if self._figures is None:
            kept = [
                metric for metric in read_metrics(self.metrics_file) if metric.name.removeprefix(PREFIX) in OF_SUCCESSES
            ]
            metrics = [*self._metrics(of_run), *kept]
        else:
            of_success = {"last_success_timestamp_seconds": now, "last_success_duration_seconds": seconds}
            metrics = self._metrics({**of_run, **of_success, **self._figures})
        write_metrics(self.metrics_file, metrics)

    def _metrics(self, figures: Figures) -> list[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        assert self.metrics_file is not None
        common = {"job_name": self.metrics_file.stem, "command": self.command}
        metrics: list[Metric] = []
        for name, text in {**OF_ALL_RUNS, **OF_SUCCESSES}.items():
            if name not in figures:
                continue
            label = LABELS.get(name)
            metric = GaugeMetricFamily(PREFIX + name, text, labels=[*common, *([label] if label else [])])
            value = figures[name]
            for of_label, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
                metric.add_metric([*common.values(), *([] if of_label is None else [of_label])], float(number))
            metrics.append(metric)
        return metrics


def read_metrics(path: Path) -> list[Metric]:
    """The metrics of a file that an earlier run left; none where there is none.

    Raises `ConfigError` if it is not one of ours, `StorageError` if it cannot be read.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        metrics = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"--metrics-file {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--metrics-file {path} is no file of metrics ({in_one_line(error)}); name another") from None
    foreign = next((metric.name for metric in metrics if not metric.name.startswith(PREFIX)), None)
    if foreign is not None:
        raise ConfigError(f"--metrics-file {path} holds metrics of others ({foreign}); name another")
    return metrics


def write_metrics(path: Path, metrics: Iterable[Metric]) -> None:
    """Write metrics in one step, so that the collector never reads half of them. Raises `StorageError`."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()
    for metric in metrics:
        for sample in metric.samples[:1]:
            gauge = Gauge(metric.name, metric.documentation, list(sample.labels), registry=registry)
        for sample in metric.samples:
            gauge.labels(**sample.labels).set(sample.value)
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise StorageError(f"--metrics-file {path} is not renewed: {error.strerror}") from None


def pack_figures(manifest: PackManifest) -> Figures:
    """What is told of packs, and of the raw rows that they came from."""
    from msgspec import UNSET

    counts = manifest.counts
    figures: dict[str, Any] = {
        "samples": counts.samples_packed,
        "tokens": counts.tokens_packed,
        "targets": counts.targets_packed,
        "packs": manifest.packs,
        "fill_ratio": manifest.fill,
        "dropped_samples": {reason: loss.samples for reason, loss in counts.dropped.items()},
        "dropped_tokens": {reason: loss.tokens for reason, loss in counts.dropped.items()},
    }
    if manifest.tokenized is not UNSET:
        figures |= {"rows": manifest.tokenized.rows, "dropped_rows": manifest.tokenized.dropped}
    return figures


def tally_figures(tally: Tally) -> Figures:
    """What is told of raw rows that were tokenised."""
    numbers = {name: getattr(tally, name) for name in ("rows", "samples", "tokens", "targets")}
    return {**numbers, "dropped_rows": tally.dropped}


def watch_of(ctx: click.Context) -> Watch:
    """The watch of a command."""
    watch: Watch = ctx.meta.setdefault(_WATCH, Watch(str(ctx.info_name)))
    return watch


def _keep_metrics(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Callback of `--metrics-file`: whatever could be wrong with it is found before any work is done."""
    if path is None:
        return None
    if path.suffix != ".prom":
        raise ConfigError(f"--metrics-file {path}: the collector reads only files whose names end in .prom")
    if not path.parent.is_dir():
        raise ConfigError(f"--metrics-file {path}: there is no folder {path.parent}")
    read_metrics(path)
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"--metrics-file {path}: the folder {path.parent} cannot be written to")
    watch = watch_of(ctx)
    watch.metrics_file = path
    at_end(ctx, watch.write_metrics)
    return path


METRICS_FLAGS: list[Decorator] = [
    click.option(
        "--metrics-file",
        type=click.Path(path_type=Path),
        is_eager=True,
        callback=_keep_metrics,
        metavar="FILE.prom",
        help="Renew this file for Prometheus' textfile collector, however the run ends.",
    )
]
