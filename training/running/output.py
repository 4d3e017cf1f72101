"""A training run's output directory: one run's own, never another's."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.base import storage
from pipeline.base.errors import ConfigError
from pipeline.base.lock import file_lock
from pipeline.base.storage import write_file
from training.options import TrainOptions
from training.running import checkpoint

log = logging.getLogger(__name__)

LOG = "log.jsonl"
MODEL = "model"
RECORD = "run.json"
RESULT = "result.json"
LOCK = ".lock"

_DEFAULTS = {
    field.name: field.default for field in dataclasses.fields(TrainOptions) if field.default is not dataclasses.MISSING
}
"""What a run had before there was an option for it."""

_BY_CONTENT = {
    "model": "its model has another config.json or other weights",
    "shards": "its shards are others",
    "eval_shards": "it is evaluated on other shards, or on none",
}
"""What is named in a run's record by a hash, and what a difference means."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model loses on packs that are not trained; None where that is no number."""

    step: int
    """Steps that it had been trained."""

    loss_per_target: float | None
    """Mean over all targets."""

    loss_per_sample: float | None
    """Mean over the samples of the mean over the targets of each."""

    targets: int
    samples: int
    """Those that have targets. A sample that was cut counts once for each part."""

    packs: int
    seconds: float

    def __str__(self) -> str:
        losses = (
            "no number" if each is None else f"{each:.4f}" for each in (self.loss_per_target, self.loss_per_sample)
        )
        return "{} a target, {} a sample".format(*losses)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a run."""

    status: Literal["trained", "up_to_date"]
    output: Path
    steps: int
    loss: float | None
    """The loss of the last step; None where it is no number, or the log of a run that went on does not say."""

    backend: str
    device: str
    seconds: float
    """How long the invocation took that ended the run."""

    skipped_steps: int = 0
    """Steps that were not taken, because their gradient is infinite or no number."""

    evaluation: Scores | None = None
    """After the last step, where that was wanted."""


def check_output(output: Path, identity: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an output that holds something else than this run, or the beginnings of another."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file")
    record = output / RECORD
    if not record.is_file():
        if output.is_dir() and any(each.name != LOCK for each in output.iterdir()):
            raise ConfigError(f"--output {output} holds files that are not of a training run: choose another directory")
    elif (output / checkpoint.NAME).is_file() or (output / RESULT).is_file():
        _refuse_other(output, identity, _read_json(record))


@contextmanager
def claim(output: Path, identity: Mapping[str, Any]) -> Iterator[None]:
    """Hold a directory as this run's own.

    Raises `BusyError` where another run writes, `OSError`, and as `check_output`.
    """
    storage.make_folders(output)
    with file_lock(output / LOCK, f"another run is writing {output}: wait for it, or choose another --output"):
        check_output(output, identity)  # again: another run may have ended meanwhile
        write_file(output / RECORD, _json_line(identity))
        yield


def finish(result: TrainResult) -> None:
    """Say that a run is done: its model is written, and there is nothing to go on from any more."""
    content = dataclasses.asdict(result)
    del content["status"], content["output"]
    write_file(result.output / RESULT, _json_line({**content, "files": _sizes(result.output / MODEL)}))
    storage.remove(result.output / checkpoint.NAME)


def finished(output: Path) -> TrainResult | None:
    """The result of a run that is done, if its model is still there.

    Raises `ConfigError` where that was changed, by names and sizes: whoever did that may want to keep it; and for a
    result that is damaged.
    """
    if not (output / RESULT).is_file():
        return None
    if not (output / MODEL).is_dir():
        log.warning("%s is gone: it is trained again", output / MODEL)
        return None
    content = _read_json(output / RESULT)
    if not content.pop("files", {}).items() <= _sizes(output / MODEL).items():
        raise ConfigError(f"{output / MODEL} is not as it was written; remove it to train it again")
    evaluation = content.pop("evaluation", None)
    try:
        scores = None if evaluation is None else Scores(**evaluation)
        return TrainResult(status="up_to_date", output=output, evaluation=scores, **content)
    except TypeError:
        raise _damaged(output / RESULT) from None


def finite(value: float) -> float | None:
    """A number that JSON has; None for others."""
    return value if math.isfinite(value) else None


def _json_line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _sizes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_size for each in folder.iterdir()} if folder.is_dir() else {}


def _read_json(path: Path) -> dict[str, Any]:
    """What a run wrote of itself. Raises `ConfigError` where that is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"{path} is damaged; remove its directory to begin again")


def _refuse_other(output: Path, identity: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    known = _DEFAULTS | dict(known)
    differ = [name for name in identity if identity[name] != known.get(name)]
    if differ:
        name = differ[0]
        was, wanted = ("none" if each.get(name) is None else repr(each[name]) for each in (known, identity))
        what = f"its {name.replace('_', '-')} is {was}, not {wanted}"
        if name in _BY_CONTENT:
            what = f"{_BY_CONTENT[name]} ({was} was given, and {wanted} now)"
        raise ConfigError(f"{output} holds another run: {what}; choose another --output, or remove it")
