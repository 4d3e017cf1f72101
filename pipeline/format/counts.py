"""The account of samples, tokens and targets, which balances: what came in was packed, or left out for a reason."""

from __future__ import annotations

import msgspec
from msgspec import structs


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What one reason removed."""

    samples: int = 0
    tokens: int = 0
    targets: int = 0
    samples_affected: int = 0
    """Samples that it touched, lost or not."""

    def __add__(self, other: Loss) -> Loss:
        return Loss(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Losses(msgspec.Struct, frozen=True, kw_only=True):
    """What each reason removed, in the order in which reasons apply: each token counts under the first."""

    padding_removed: Loss
    """Tokens under a zero attention mask."""

    empty: Loss
    """Samples without a token."""

    overlong_dropped: Loss
    """Samples longer than `max_length`."""

    overlong_truncated: Loss
    """Tokens beyond `max_length`."""

    first_token: Loss
    """Targets that are masked because they begin a sample; the tokens stay."""

    no_targets: Loss
    """Samples with nothing to train."""

    cut: Loss
    """Targets that are masked because they begin a later segment of a cut sample; the tokens stay."""

    def __add__(self, other: Losses) -> Losses:
        return Losses(**{reason: getattr(self, reason) + getattr(other, reason) for reason in REASONS})

    def items(self) -> list[tuple[str, Loss]]:
        """Each reason with what it removed."""
        return [(reason, getattr(self, reason)) for reason in REASONS]


REASONS: tuple[str, ...] = Losses.__struct_fields__
"""Why a sample, token or target is left out, in the order in which reasons apply."""

NO_LOSSES = Losses(**dict.fromkeys(REASONS, Loss()))


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What came in, what was packed, and what was left out."""

    samples_in: int = 0
    tokens_in: int = 0
    targets_in: int = 0
    samples_packed: int = 0
    tokens_packed: int = 0
    targets_packed: int = 0
    dropped: Losses = NO_LOSSES

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})

    def with_cut(self, loss: Loss) -> Counts:
        """The account once targets were masked because they begin a later segment."""
        return structs.replace(
            self,
            targets_packed=self.targets_packed - loss.targets,
            dropped=structs.replace(self.dropped, cut=loss),
        )

    def balances(self) -> bool:
        """Whether everything that came in was packed or is counted under a reason."""
        return all(
            getattr(self, f"{what}_in")
            == getattr(self, f"{what}_packed") + sum(getattr(loss, what) for _, loss in self.dropped.items())
            for what in ("samples", "tokens", "targets")
        )
