"""Requests that are made side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

AT_ONCE = 8
"""How many requests for whole objects are made at a time."""


def side_by_side(task: Callable[[str], None], names: Iterable[str]) -> None:
    """Do a task for all names, some at once; where one fails, those that have not begun are left undone.

    An interruption waits for none of them: a store that does not answer would keep the process.
    """
    left, failed = list(names)[::-1], list[BaseException]()

    def work() -> None:
        while not failed:
            try:
                name = left.pop()
            except IndexError:
                return
            try:
                task(name)
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=work, name="store", daemon=True) for _ in range(min(AT_ONCE, len(left)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as interruption:
        failed.append(interruption)
        raise
    if failed:
        raise failed[0]
