"""What can go wrong, by exit code. A message is for the person who reads it: what, where, and the way out."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends."""

    DONE = 0
    USAGE = 2
    DATA = 3
    CHECK = 4
    BUG = 70
    STORAGE = 74
    BUSY = 75
    INTERRUPTED = 130
    TERMINATED = 143


class TightpackError(Exception):
    """Ends a command with one message and `exit_code`, never with a traceback."""

    exit_code = ExitCode.BUG


class ConfigError(TightpackError):
    """Usage or configuration is wrong, or an output is in the way."""

    exit_code = ExitCode.USAGE


class DataError(TightpackError):
    """The input cannot be used: it is fixed by changing the data, or what is read of it."""

    exit_code = ExitCode.DATA


class CheckError(TightpackError):
    """A check failed: what was asked for would not train what was packed."""

    exit_code = ExitCode.CHECK


class StrategyError(TightpackError):
    """A strategy broke its contract, which is a bug, of ours or of whoever wrote the strategy."""


class StorageError(TightpackError):
    """A disk is full, a permission is missing, or input or output failed. Finished work is kept for resuming."""

    exit_code = ExitCode.STORAGE


class BusyError(TightpackError):
    """Another run holds the lock, or a passing fault outlived its retries."""

    exit_code = ExitCode.BUSY


class Termination(KeyboardInterrupt):
    """SIGTERM arrived; it is handled like Ctrl-C and has an exit code of its own."""
