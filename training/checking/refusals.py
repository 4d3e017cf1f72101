"""What a model does not do with packs, told as its own refusal: it is no bug of ours, and something can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from torch import nn

from pipeline.base.errors import CheckError, TightpackError
from pipeline.base.words import first_line

_OURS = ("training", "pipeline")


@contextmanager
def refusals_told(model: nn.Module) -> Iterator[None]:
    """While a model computes: raise `CheckError` for what is raised in it, such as for packs without their kernels."""
    try:
        yield
    except TightpackError:
        raise
    except (TypeError, ValueError, NotImplementedError, ImportError, AttributeError, IndexError) as error:
        if _raised_in(error.__traceback__) in _OURS:
            raise
        raise CheckError(
            f"{type(model).__name__} refuses packs: {first_line(error)} ({type(error).__name__}; see `python -m"
            " training probe --model … --all`)"
        ) from error


def _raised_in(traceback: TracebackType | None) -> str:
    """The package whose code raised."""
    name = ""
    while traceback is not None:
        name, traceback = str(traceback.tb_frame.f_globals.get("__name__", "")), traceback.tb_next
    return name.partition(".")[0]
