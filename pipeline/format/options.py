"""The options that change bytes, with their defaults and the rules they keep; a manifest records them as `config`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pipeline.base.errors import ConfigError
from pipeline.base.options import Options, Range
from pipeline.base.words import did_you_mean

TOKENS = "input_ids"
TARGETS = ("labels", "completion_mask", "assistant_masks", "loss_mask")
ATTENTION = "attention_mask"
ROLES = (TOKENS, *TARGETS, ATTENTION)
"""What a column of a tokenised input can be for; a column of the same name is taken unless `column` names another."""

TEMPLATE_KWARGS = "chat_template_kwargs"
FIELDS = (
    *("messages", "tools", "prompt", "completion", "instruction", "input", "output", "system", "history"),
    *("reasoning", "text"),
    TEMPLATE_KWARGS,
    *("id", "parent", "role", "rank", "deleted"),
)
"""What a raw row can hold; a column of the same name is taken unless `map` names another."""

TEMPLATE_OWN = (
    *("conversations", "messages", "tools", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)
"""What nobody can tell a chat template, because it follows from the row or decides how it is rendered."""

KEYS = ("role", "content")
"""What `keys` can name in a turn."""

SPEAKERS = ("system", "user", "assistant", "tool")
"""The roles to which `roles` can map other names."""


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """Which part of the inputs is read."""

    split: str | None = None
    """This split alone, as a dataset without splits."""

    subset: str | None = None
    """Configuration of a Hub dataset."""

    revision: str | None = None
    """Revision of a Hub dataset."""


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions(Options):
    """How raw rows become tokens and targets."""

    format: Literal["auto", "messages", "prompt-completion", "instruction", "text", "tree"] = "auto"
    """What a row is; auto tells by the columns and the first rows."""

    paths: Literal["all", "best"] = "all"
    """Which paths of a dialogue tree are samples: every one, or that of the best-ranked replies."""

    train_on: Literal["assistant", "last", "completion", "all"] | None = None
    """Which tokens are targets; None takes what the format has by default."""

    history: Literal["whole", "expand", "as-rendered"] = "whole"
    """What becomes of a chat whose earlier turns the template renders otherwise once they are history."""

    reasoning: Literal["auto", "mask", "drop"] = "auto"
    """Whether reasoning is a target where the template writes it, is no target, or is taken out beforehand."""

    reasoning_inline: bool = False
    """Put reasoning in front of the content, in marks, where the template has no place for it."""

    reasoning_marks: str = "<think>,</think>"
    """Between which reasoning stands that is inline in front of the content."""

    tool_calls: Literal["train", "mask"] = "train"
    """Whether tool calls are targets."""

    inserted: Literal["auto", "train", "mask"] = "auto"
    """Whether what a template inserts into a turn is a target; auto: what follows the generation prompt."""

    turn_end: Literal["error", "next", "none"] = "error"
    """What ends a turn for which the template writes no special token."""

    unsaid: Literal["error", "allow"] = "error"
    """What becomes of chats whose tools or system turn the template leaves out."""

    special_in_text: Literal["warn", "error", "split"] = "warn"
    """What becomes of samples in whose words special tokens stand; split encodes these as plain text."""

    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is told besides, such as enable_thinking."""

    template_date: str | None = None
    """The day, as 2026-11-20, that templates read for the clock; needed where one does."""

    keys: Mapping[str, str] = field(default_factory=dict)
    """role or content -> the key of a turn that holds it."""

    roles: Mapping[str, str] = field(default_factory=dict)
    """Role -> the speakers, divided by |, that the data calls otherwise."""

    map: Mapping[str, str] = field(default_factory=dict)
    """Field -> the column that holds it."""

    on_error: Literal["error", "drop"] = "error"
    """What becomes of rows that cannot be used."""

    max_row_bytes: Annotated[int, Range(1)] = 8_000_000
    """Bytes that a row may have, in the texts and other values of the columns that are read; see `tokenizing.sizes`."""

    append_eos: bool = False
    """Put the end token after texts, pairs and turns that have none."""

    keep_text: bool = False
    """Keep what the user said in a column `text`."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that an option cannot have, and a field that there is not."""
        super().__post_init__()
        for name in self.map:
            if name not in FIELDS:
                raise ConfigError(f"--map {name}: no such field{did_you_mean(name, FIELDS)}")
        for name in self.keys:
            if name not in KEYS:
                raise ConfigError(f"--keys {name}: no such key{did_you_mean(name, KEYS)}")
        for name in self.roles:
            if name not in SPEAKERS:
                raise ConfigError(f"--roles {name}: no such role{did_you_mean(name, SPEAKERS)}")
        for name in self.template_kwargs:
            if name in TEMPLATE_OWN:
                raise ConfigError(f"--template-kwargs {name}: templates have it from us, and cannot be told otherwise")
        opening, _, closing = self.reasoning_marks.partition(",")
        if not opening.strip() or not closing.strip() or "," in closing or opening == closing:
            raise ConfigError(
                f"--reasoning-marks {self.reasoning_marks}: two marks are needed that differ and have no comma, as in"
                " <think>,</think>"
            )
        choices = {"reasoning": self.reasoning, "tool-calls": self.tool_calls, "inserted": self.inserted}
        for name, value in choices.items():
            if value == "mask" and self.train_on == "all":
                raise ConfigError(f"--{name} mask has no effect: --train-on all trains everything")
        if self.append_eos and self.turn_end != "error":
            raise ConfigError(
                f"--turn-end {self.turn_end} has no effect: --append-eos puts the end token after every turn that has"
                " none; give one of the two"
            )
        if self.template_date is not None and not _is_day(self.template_date):
            raise ConfigError(f"--template-date {self.template_date}: a day is needed, as in 2026-11-20")


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class PackOptions(InputOptions):
    """How samples are packed."""

    max_length: Annotated[int, Range(1, 1 << 24)]
    """Tokens of the longest sample, and what a pack may hold (for `minibatch`: batch_size times as much)."""

    strategy: str = "best-fit-decreasing"
    set: Mapping[str, Any] = field(default_factory=dict)
    """Options of the strategy; in a manifest all of them."""

    overlong: Literal["error", "drop", "truncate", "split"] = "error"
    """What becomes of samples that are longer than `max_length`."""

    max_segments: Annotated[int | None, Range(1, 1 << 30)] = None
    """Segments that a pack may hold; None where nothing but tokens bounds them."""

    keep_untrainable: bool = False
    """Keep samples that have no target."""

    seed: int = 0
    """Seed of every random draw."""

    pack_order: Literal["shuffle", "plan"] = "shuffle"
    """Whether packs are shuffled, by the seed, or stand as planned."""

    column: Mapping[str, str] = field(default_factory=dict)
    """Role -> the column of a tokenised input that has it; see `ROLES`."""

    unpack: bool = False
    """Take packed rows of a tokenised input apart: each segment is a sample."""

    window_samples: Annotated[int, Range(1)] = 1 << 20
    """Samples that are planned together, at most."""

    window_tokens: Annotated[int, Range(1, 1 << 40)] = 1 << 29
    """Tokens that are planned together, at most."""

    shard_size: Annotated[int, Range(1)] = 512_000_000
    """Bytes of a shard before compression, at most, unless a single pack has more."""

    compression: Literal["none", "lz4", "zstd"] = "none"
    """Compression of the shards' buffers."""

    tokenize: TokenizeOptions | None = None
    """How raw rows are tokenised; None for inputs that are tokenised."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value that an option cannot have, and a role that there is not."""
        super().__post_init__()
        for role in self.column:
            if role not in ROLES:
                raise ConfigError(f"--column {role}: no such role{did_you_mean(role, ROLES)}")
