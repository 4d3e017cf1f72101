"""The same bits in every run. On a CPU they are anyway; on a GPU kernels add as their blocks happen to end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.base.errors import ConfigError
from pipeline.base.words import first_line


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let torch, and the backends of attention with it, use deterministic algorithms alone; then all is as it was.

    It has to begin before CUDA does: cuBLAS reads how much memory it may use only then.

    Raises `ConfigError` where a model needs an operation that has no such algorithm.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" in str(error):
            raise ConfigError(f"--deterministic: {first_line(error)}") from error
        raise
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned_only)
