"""What tokenising was asked to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.base.errors import ConfigError
from pipeline.base.words import did_you_mean

FORMATS = ("messages", "prompt-completion", "instruction", "text")
TRAIN_ON = ("assistant", "completion", "all")
FIELDS = ("messages", "tools", "prompt", "completion", "instruction", "input", "output", "system", "text")
"""What a row can hold; a column of the same name is taken unless `--map` names another."""


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """The options that change tokens or targets; they enter the run's identity and the manifest."""

    format: str = "auto"
    train_on: str | None = None
    """assistant, completion or all; None is what the format has by default."""

    map: Mapping[str, str] = field(default_factory=dict)
    """Field -> column."""

    on_error: str = "error"
    append_eos: bool = False
    keep_text: bool = False

    def to_json(self) -> dict[str, Any]:
        """As it stands in the manifest."""
        return {**vars(self), "map": dict(self.map)}


def check_fields(mapped: Iterable[str]) -> None:
    """Raise `ConfigError` for a field that there is not."""
    for name in mapped:
        if name not in FIELDS:
            raise ConfigError(f"--map {name}: no such field{did_you_mean(name, FIELDS)}")
