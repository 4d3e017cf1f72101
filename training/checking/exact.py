"""Float32 that is float32: what a check compares must not depend on how the process rounds matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends  # torch's types do not know all of it
_ROUNDED = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
)
"""What may compute float32 by TF32 or bfloat16, if a process lets it; convolutions on a GPU do unasked."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 in full precision; afterwards all is set as it was."""
    before = [each.fp32_precision for each in _ROUNDED]
    for each in _ROUNDED:
        each.fp32_precision = "ieee"
    try:
        yield
    finally:
        for each, precision in zip(_ROUNDED, before, strict=True):
            each.fp32_precision = precision
