"""What can go wrong, by exit code. The message is for the person who reads it: what, where, the way out."""

from __future__ import annotations


class PipelineError(Exception):
    """Ends the run with one message and `exit_code`; never with a traceback."""

    exit_code = 70


class ConfigError(PipelineError):
    """Usage, configuration, or an output that is in the way."""

    exit_code = 2


class DataError(PipelineError):
    """Something in the input: fixed by changing the data, or what is read of it."""

    exit_code = 3


class StorageError(PipelineError):
    """Full disk, missing permission, I/O error. Finished work is kept for resuming."""

    exit_code = 74


class BusyError(PipelineError):
    """Another run holds the lock, or a passing fault outlived its retries."""

    exit_code = 75


class StrategyError(PipelineError):
    """A strategy broke its contract: a bug, of ours or of whoever wrote the strategy."""

    exit_code = 70


class Terminated(KeyboardInterrupt):
    """SIGTERM; handled like Ctrl-C, with an exit code of its own."""
