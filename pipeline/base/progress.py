"""How far a run is, told to whoever wants to know: a callback, or bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage of a run is."""

    stage: str
    """What is being done, as "planning"."""

    done: int
    total: int
    """Units of the whole stage; an estimate where the input does not say."""

    unit: str
    """What is counted: tok, row, file or B."""

    ended: bool = False
    """Whether this is the stage's last word, finished or not."""


ProgressCallback = Callable[[Progress], object]
"""It is called from several threads, one call at a time in each stage; what it raises ends the run."""


@contextmanager
def stage(
    callback: ProgressCallback | None, name: str, total: int, unit: str = "tok"
) -> Iterator[Callable[[int], None]]:
    """Tell a callback of a stage; yields what has to be called with the units done since the last call."""
    if callback is None:
        yield lambda _: None
        return
    tell, lock, done = callback, Lock(), 0

    def advance(units: int) -> None:
        nonlocal done
        with lock:
            done += units
            tell(Progress(name, done, total, unit))

    tell(Progress(name, 0, total, unit))
    try:
        yield advance
    finally:
        tell(Progress(name, done, total, unit, ended=True))


class TerminalBars:
    """Bars on stderr with rate and remaining time, one a stage; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[NoReturn]] = {}

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        if not sys.stderr.isatty():
            return
        from tqdm import tqdm  # noqa: PLC0415 - for a terminal alone

        if progress.stage not in self._bars:
            self._bars[progress.stage] = tqdm(
                desc=progress.stage,
                total=progress.total,
                unit=progress.unit,
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
            )
        bar = self._bars[progress.stage]
        bar.update(progress.done - bar.n)
        if progress.ended:
            self._bars.pop(progress.stage).close()
