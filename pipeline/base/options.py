"""Options as frozen dataclasses: their values are checked where they are made, from Python as from a command line.

An option's type says what it may be: a number annotated with a `Range`, a `Literal` of choices, a text, a mapping.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pipeline.base.engine import available_cores
from pipeline.base.errors import ConfigError
from pipeline.base.words import listed


@dataclass(frozen=True)
class Range:
    """The least and the most that a number may be; None where there is no bound."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    """What it has to be greater than."""

    below: float | None = None
    """What it has to be less than."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a frozen dataclass of options inherits."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that an option cannot have."""
        for name, kind in option_types(type(self)).items():
            kind.check(name, getattr(self, name))

    def changed(self) -> dict[str, Any]:
        """The options that are not at their default, ready for JSON; options inside others likewise."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), default_of(field)
            if value != default:
                found[field.name] = value.changed() if isinstance(value, Options) else as_json(value)
        return found


@dataclass(frozen=True, kw_only=True)
class OptionType:
    """What values an option may have."""

    kinds: tuple[type, ...]
    choices: tuple[str, ...] = ()
    """The texts that will do; empty where every one does."""

    range: Range = Range()
    may_be_none: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise `ConfigError`, naming the option, unless the value fits."""
        if value is None and self.may_be_none:
            return
        kinds = (*self.kinds, int) if float in self.kinds else self.kinds
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{name} must be {listed(map(_called, self.kinds), 'or')}, not {value!r}")
        if self.choices and value not in self.choices:
            raise ConfigError(f"{name} must be {listed(self.choices, 'or')}, not {value!r}")
        if isinstance(value, int | float):
            self._check_range(name, value)

    def _check_range(self, name: str, value: float) -> None:
        least, most, above, below = self.range.least, self.range.most, self.range.above, self.range.below
        if not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, not {value}")
        if least is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}")
        if most is not None and value > most:
            raise ConfigError(f"{name} must be at most {most}, not {value}")
        if above is not None and value <= above:
            raise ConfigError(f"{name} must be greater than {above}, not {value}")
        if below is not None and value >= below:
            raise ConfigError(f"{name} must be less than {below}, not {value}")


def option_types(options: type[Options]) -> Mapping[str, OptionType]:
    """The type of each option, by name."""
    hints = typing.get_type_hints(options, include_extras=True)
    return {field.name: _option_type(hints[field.name]) for field in dataclasses.fields(options)}


def _option_type(hint: Any) -> OptionType:
    if typing.get_origin(hint) is Annotated:
        plain, *marks = typing.get_args(hint)
        return dataclasses.replace(_option_type(plain), range=next(m for m in marks if isinstance(m, Range)))
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
        found = [_option_type(part) for part in parts]
        return OptionType(
            kinds=tuple(kind for one in found for kind in one.kinds),
            choices=tuple(choice for one in found for choice in one.choices),
            may_be_none=len(parts) < len(typing.get_args(hint)),
        )
    if typing.get_origin(hint) is Literal:
        return OptionType(kinds=(str,), choices=typing.get_args(hint))
    return OptionType(kinds=(typing.get_origin(hint) or hint,))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """An option's default; `dataclasses.MISSING` where it has to be given."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def as_json(value: Any) -> Any:
    """An option's value as JSON has it."""
    return dict(value) if isinstance(value, Mapping) else value


def _called(kind: type) -> str:
    names = {int: "an integer", str: "a text", bool: "true or false", Path: "a path", float: "a number"}
    return names.get(kind, "a mapping" if issubclass(kind, Mapping) else kind.__name__)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """How a run is done. Nothing here changes a byte of what it writes."""

    num_workers: Annotated[int | None, Range(1)] = None
    """Parallel tasks; None takes the cores that this process may run on."""

    cache_dir: Path | None = None
    """Where content hashes and embeddings are kept; None takes `tightpack` under `$XDG_CACHE_HOME`, or ~/.cache."""

    rehash: bool = False
    """Read all inputs to hash them, also those whose hashes are remembered."""

    def resolved(self) -> RunOptions:
        """The options with what None takes."""
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return dataclasses.replace(
            self,
            num_workers=self.num_workers or available_cores(),
            cache_dir=self.cache_dir or Path(cache) / "tightpack",
        )


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Who does the tasks of a run. Nothing here changes a byte of what it writes."""

    engine: Literal["local", "ray"] = "local"
    """This process's threads, or the workers of a Ray cluster."""

    ray_address: str | None = None
    """Where the cluster is; None starts one on this machine."""

    resources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What a task of a stage takes of the cluster, as {"embed": "gpu:1"}."""

    task_index: Annotated[int | None, Range(0)] = None
    """Which of `task_count` processes that share a run this is; None where one does all of it."""

    task_count: Annotated[int | None, Range(1)] = None
    wait: Annotated[float, Range(0)] = 0.0
    """Seconds to wait for what the other processes have to do first."""

    finish: bool = False
    """Publish what the processes that shared a run left."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for options that have no effect together."""
        super().__post_init__()
        if self.engine == "local":
            for name in ("ray_address", "resources"):
                if getattr(self, name):
                    raise ConfigError(f"--{name.replace('_', '-')} has no effect without --engine ray")
        elif self.is_share or self.finish:
            raise ConfigError("--engine ray deals tasks itself: leave out --task-index, --task-count and --finish")
        if (self.task_index is None) != (self.task_count is None) and not (self.finish and self.task_index is None):
            missing = "task-index" if self.task_index is None else "task-count"
            raise ConfigError(f"--task-index I and --task-count N go together: --{missing} is missing")
        if self.task_index is not None and self.task_count is not None:
            if self.task_index >= self.task_count:
                last = self.task_count - 1
                raise ConfigError(
                    f"--task-index {self.task_index} is out of range: of {self.task_count} it is 0 to {last}"
                )
            if self.finish:
                raise ConfigError("--finish publishes what all tasks left, and is none of them: leave it out")
        elif self.wait:
            raise ConfigError("--wait is for what other tasks do, and has no effect without --task-index")

    @property
    def is_share(self) -> bool:
        """Whether this is one of several processes that share a run."""
        return self.task_index is not None
