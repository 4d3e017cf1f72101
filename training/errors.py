"""What can go wrong, by exit code. The message is for the person who reads it: what, where, the way out."""

from __future__ import annotations


class TrainingError(Exception):
    """Ends a command with one message and `exit_code`; never with a traceback."""

    exit_code = 70


class ConfigError(TrainingError):
    """Usage, configuration, a model or an output that is in the way."""

    exit_code = 2


class ShardError(TrainingError):
    """Shards that are not what `python -m pipeline pack` writes, or do not fit the model."""

    exit_code = 3


class CheckError(TrainingError):
    """A check failed: training as asked for would not train what was packed."""

    exit_code = 4


class StorageError(TrainingError):
    """Full disk, missing permission, I/O error."""

    exit_code = 74


class BusyError(TrainingError):
    """Another run writes the same output."""

    exit_code = 75


class LostRankError(TrainingError):
    """Another rank of the same run has ended."""

    exit_code = 75


class UnsupportedAttentionError(ValueError):
    """Something a model asks of attention that the backend cannot do. It is never left out silently."""


def first_line(error: BaseException) -> str:
    """What an exception says in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
