"""What a run of `pack` was asked to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.words import did_you_mean
from strategies import Draws, Strategy, find

MOST_CAPACITY = 1 << 30
"""Values in one list column of one pack: far enough from the 2^31 of Arrow's 32-bit offsets."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """The options that change bytes; everything here enters the run's identity and the manifest."""

    max_length: int
    strategy: str = "best-fit-decreasing"
    set: Mapping[str, Any] = field(default_factory=dict)
    """Options of the strategy, all of them, resolved."""

    overlong: str = "error"
    keep_untrainable: bool = False
    seed: int = 0
    pack_order: str = "shuffle"
    column: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    window_samples: int = 1 << 20
    window_tokens: int = 1 << 29
    shard_size: int = 512_000_000
    compression: str = "none"
    tokenize: Mapping[str, Any] | None = None
    """How raw rows were tokenised, where that was part of the run."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        told = {**vars(self), "set": dict(self.set), "column": dict(self.column)}
        if self.tokenize is None:
            del told["tokenize"]
        return told


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A strategy with its options and what follows from them."""

    strategy: Strategy
    options: Any
    capacity: int

    def settings(self) -> dict[str, Any]:
        """The options as they stand in the manifest: without paths, of which only the content counts."""
        paths = {field.name for field in dataclasses.fields(self.options) if field.metadata.get("is_path")}
        return {name: value for name, value in vars(self.options).items() if name not in paths}

    def draws(self, config: PackConfig, window: int, purpose: str) -> Draws:
        """The stream of random integers for one purpose in one window."""
        return Draws(f"seed={config.seed}/window={window}/{purpose}")


def choose_strategy(name: str, settings: Mapping[str, str], max_length: int) -> Chosen:
    """Look a strategy up and resolve its options, given as text.

    Raises `ConfigError` for an unknown name (suggesting the nearest), option or value.
    """
    try:
        strategy = find(name)
    except ValueError as error:
        raise ConfigError(f"--strategy: {error}") from None
    options = resolve_options(strategy, settings)
    capacity = strategy.capacity(max_length, options)
    if capacity > MOST_CAPACITY:
        raise ConfigError(f"a pack of strategy {strategy.name!r} would hold {capacity} tokens; at most {MOST_CAPACITY}")
    return Chosen(strategy=strategy, options=options, capacity=capacity)


def resolve_options(strategy: Strategy, settings: Mapping[str, str]) -> Any:
    """The strategy's options dataclass, from text. Raises `ConfigError`."""
    fields = {f.name: f for f in dataclasses.fields(strategy.options)}
    values: dict[str, Any] = {}
    for key, text in settings.items():
        if key not in fields:
            hint = did_you_mean(key, fields) if fields else "; it has none"
            raise ConfigError(f"--set {key}: strategy {strategy.name!r} has no such option{hint}")
        values[key] = _parse(key, text, type(fields[key].default))
    try:
        return strategy.options(**values)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from None


def _parse(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ConfigError(f"--set {key}: {text!r} is neither true nor false")
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"--set {key}: {text!r} is no {kind.__name__}") from None
