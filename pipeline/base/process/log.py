"""The log of a command, on stderr and in a file: text for people, or one JSON object a line for what collects logs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["text", "json"]

LOGGERS = ("pipeline", "training")

_SAID_ELSEWHERE = ("run_id", "status", "usage")
"""Fields of records that a person at a terminal does not need: the result on stdout, or what click shows, says it."""

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and the fields that it was given (`extra`).

    Once one record had a `run_id`, all later ones have it.
    """

    def __init__(self, rank: int | None) -> None:
        super().__init__()
        self._of_all: dict[str, object] = {} if rank is None else {"rank": rank}

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            name: value
            for name, value in vars(record).items()
            if name not in _OF_EVERY_RECORD and not name.startswith("_")  # which libraries add for themselves
        }
        self._of_all |= {name: value for name, value in fields.items() if name == "run_id"}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._of_all,
            **fields,
        }
        return json.dumps(value, ensure_ascii=False, default=str)


class _ToStderr(logging.StreamHandler[TextIO]):
    """As text without what is said elsewhere."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_for_people = not isinstance(self.formatter, JsonLines)
        if is_for_people and any(hasattr(record, field) for field in _SAID_ELSEWHERE):
            return False
        return bool(super().filter(record))


class _ToFile(logging.FileHandler):
    """A file of its own; where it cannot be written, as on a full disk, the others are told once, and it ends."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Instead of the traceback that logging prints."""
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)
        logging.getLogger(LOGGERS[0]).warning("--log-file %s ends here: %s", self.baseFilename, sys.exception())


def begin_log(rank: int | None) -> None:
    """Log to stderr, as text; of several ranks the first alone tells more than errors."""
    handler = _ToStderr(sys.stderr)
    prefix = "" if rank is None else f"rank {rank}: "
    handler.setFormatter(logging.Formatter(f"%(levelname)s: {prefix}%(message)s"))
    logging.captureWarnings(False)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.ERROR if rank else logging.INFO)


def log_to_file(path: str) -> None:
    """Log to a file as well, in the form that stderr has. Raises `OSError`."""
    handler = _ToFile(path, encoding="utf-8", errors="backslashreplace")
    current = _handlers()[0].formatter
    is_json = isinstance(current, JsonLines)
    handler.setFormatter(current if is_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)


def log_as_json(rank: int | None) -> None:
    """Turn the log into JSON lines, with what libraries log and warn of."""
    formatter = JsonLines(rank)
    for handler in _handlers():
        handler.setFormatter(formatter)
    of_others = logging.StreamHandler(sys.stderr)
    of_others.setFormatter(formatter)
    of_others.addFilter(lambda record: record.name.partition(".")[0] not in LOGGERS)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(of_others)


def logs_json() -> bool:
    """Whether the log is JSON lines."""
    return any(isinstance(handler.formatter, JsonLines) for handler in _handlers())


def log_more() -> None:
    """Log what helps to find a fault, too."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)


def _handlers() -> list[logging.Handler]:
    return logging.getLogger(LOGGERS[0]).handlers
