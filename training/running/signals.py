"""Ctrl-C and SIGTERM, heard between steps: a step that is broken off half-way cannot be gone on from."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.base.errors import Termination

log = logging.getLogger(__name__)


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect signals instead of being interrupted by them; a third one interrupts."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def keep(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 2:
            raise KeyboardInterrupt if number == signal.SIGINT else Termination
        log.info("finishing what is being done, so that it can be gone on from; a third signal stops at once")

    before = {number: signal.signal(number, keep) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
