"""What every command line of ours has: its flags, how it begins, what it prints, and how it ends.

A command ends with an exit code of its kind (`ExitCode`) and, where it failed, one message on stderr; with `--json`
also one object on stdout that says the same. A traceback is shown on request alone.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import click

from pipeline.base.errors import ExitCode, StorageError, Termination, TightpackError
from pipeline.base.options import Options, OptionType, default_of, option_types
from pipeline.base.process.log import LOGGERS, LogFormat, begin_log, log_as_json, log_more, log_to_file, logs_json

log = logging.getLogger(__name__)

_OURS = ("pipeline", "strategies", "training")
_AS_JSON = "tightpack.json"
_AT_END = "tightpack.at-end"

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A command line."""

    name: str
    """How it is called, as "python -m pipeline"."""

    extras: Mapping[str, str]
    """Module -> the extra that installs it; other modules come with every installation."""

    fault: Callable[[Exception], str | None] | None = None
    """What to say of an error that is neither one of ours nor a bug, such as too little memory; None of others."""

    rank: int | None = None
    """The number of this process among those that torchrun started, if it did. The first alone prints results."""


def flag(
    options: type[Options], name: str, help_text: str, shown: Callable[[Any], str] | None = None, **more: Any
) -> Decorator:
    """The flag of an option: its name, type, choices and default stand in the options' dataclass.

    shown: the default as the help text shows it. more: what click is told besides, such as a `metavar`.
    """
    field = next(field for field in dataclasses.fields(options) if field.name == name)
    default = default_of(field)
    kind = option_types(options)[name]
    settings: dict[str, Any] = {"help": help_text}
    if default is dataclasses.MISSING:
        settings["required"] = True
    elif default is not None:
        settings |= {"default": default, "show_default": shown(default) if shown else True}
    text = f"--{name.replace('_', '-')}"
    if kind.kinds != (bool,):
        settings["type"] = _click_type(kind)
    elif default:
        text, settings["show_default"] = f"{text}/--no-{name.replace('_', '-')}", True
    else:
        settings |= {"is_flag": True, "show_default": False}
    return click.option(text, name, **{**settings, **more})


def _click_type(kind: OptionType) -> Any:
    if kind.choices:
        return click.Choice(kind.choices)
    least, most, above, below = kind.range.least, kind.range.most, kind.range.above, kind.range.below
    if kind.kinds == (float,):
        bounds = (least if above is None else above, most if below is None else below)
        return click.FloatRange(*bounds, min_open=above is not None, max_open=below is not None)
    if kind.kinds == (int,):
        lowest, highest = (None if bound is None else int(bound) for bound in (least, most))
        return int if lowest is None and highest is None else click.IntRange(lowest, highest)
    return click.Path(path_type=Path) if kind.kinds == (Path,) else str


def flags(*groups: list[Decorator]) -> Decorator:
    """Give a command groups of flags, in their order."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for group in reversed(groups):
            for option in reversed(group):
                command = option(command)
        return command

    return decorate


def _note_json(ctx: click.Context, _: click.Parameter, on: bool) -> bool:
    ctx.meta[_AS_JSON] = on
    return on


def _log_to(_: click.Context, __: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    try:
        log_to_file(path)
    except OSError as error:
        raise StorageError(f"--log-file {path}: {error.strerror}") from None


def _log_as(ctx: click.Context, _: click.Parameter, form: LogFormat) -> None:
    if form == "json":
        program = ctx.find_object(Program)
        log_as_json(None if program is None else program.rank)


def _log_more(_: click.Context, __: click.Parameter, on: bool) -> None:
    if on:
        log_more()


def result_options(command: Command) -> Command:
    """Give a command the options about what it prints: `--json`, `--log-file`, `--log-format` and `--debug`."""
    options = [
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            is_eager=True,
            callback=_note_json,
            help="Print one JSON object instead of a table.",
        ),
        click.option(
            "--log-file",
            expose_value=False,
            is_eager=True,
            callback=_log_to,
            metavar="FILE",
            help="Write the log to this file as well.",
        ),
        click.option(
            "--log-format",
            type=click.Choice(typing.get_args(LogFormat)),
            default="text",
            show_default=True,
            expose_value=False,
            is_eager=True,
            callback=_log_as,
            help="Log for people, or as one JSON object a line.",
        ),
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_log_more,
            help="Log more, and show the traceback of a bug.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def end_with(code: ExitCode | int) -> NoReturn:
    """End the command with an exit code, without a message."""
    click.get_current_context().exit(code)


def print_result(text: str, value: Mapping[str, Any], as_json: bool) -> None:
    """Print a result in one of its two forms, on the first rank alone. Raises `StorageError` where that fails."""
    program = click.get_current_context().find_object(Program)
    if program is None or not program.rank:
        _print(json.dumps(value) if as_json else text)


def _print(text: str) -> None:
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()  # whoever read this has seen enough; what was done stays done, and keeps its exit code
    except OSError as error:
        _close_stdout()
        raise StorageError(f"the result cannot be printed: {error.strerror}") from error


def _close_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class EagerCommand(click.Command):
    """A command that heeds its eager flags, which say how and where its end is told, even where others are wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse. Raises `click.UsageError`."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            self._heed_eager(ctx, given)
            raise

    def _heed_eager(self, ctx: click.Context, args: list[str]) -> None:
        parser = self.make_parser(ctx)
        parser.ignore_unknown_options = True
        eager = [param for param in self.params if param.is_eager and param.name]
        try:
            values, _, order = parser.parse_args(list(args))
        except click.UsageError:  # the last flag lacks its value
            return self._heed_eager(ctx, args[:-1])
        for param in click.core.iter_params_for_processing(order, eager):
            if ctx.get_parameter_source(str(param.name)) is None:  # it was not reached
                with suppress(click.UsageError, TightpackError):
                    param.handle_parse_result(ctx, values, [])
        return None


def at_end(ctx: click.Context, call: Callable[[int], None]) -> None:
    """Have `call` called with the exit code, however the command ends; what it raises is told, and ends one that was
    done with an exit code of its own."""
    ctx.meta.setdefault(_AT_END, []).append(call)


def run(commands: click.Group, program: Program) -> NoReturn:
    """Run a command; every way in which it can end has its exit code."""
    begin_log(program.rank)
    signal.signal(signal.SIGTERM, _terminate)
    meta: dict[str, Any] = {}
    try:
        # Not commands.main(), which would take a KeyboardInterrupt for its own.
        with commands.make_context(program.name, sys.argv[1:], obj=program) as ctx:
            meta = ctx.meta
            commands.invoke(ctx)
        gc.freeze()  # or the collections at exit would walk all of the compiler, a fifth of a second
        code = int(ExitCode.DONE)
    except click.exceptions.Exit as end:
        code = end.exit_code
    except (Exception, KeyboardInterrupt) as error:
        code = _tell(error, program, as_json=meta.get(_AS_JSON) or "--json" in sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: None)  # it is ending
    sys.exit(_finish(code, meta, program))


def _finish(code: int, meta: Mapping[str, Any], program: Program) -> int:
    """Make the calls of `at_end`; returns the exit code, which is that of a failed call where all went well before."""
    for call in meta.get(_AT_END, ()):
        try:
            call(code)
        except Exception as error:
            failed = _tell(error, program, as_json=False)
            code = code or failed
    return code


def _tell(error: Exception | KeyboardInterrupt, program: Program, *, as_json: bool) -> int:
    """Say how a command failed; returns the exit code."""
    message, code = _ending(error, program)
    fields: dict[str, Any] = {"exit_code": int(code)}
    if isinstance(error, click.UsageError):
        fields["usage"] = error.ctx.get_usage() if error.ctx else ""
        if not logs_json():
            error.show()
    logging.getLogger(LOGGERS[0]).error(message, extra=fields)
    if as_json and not program.rank:
        with suppress(StorageError):  # it was said on stderr
            _print(json.dumps({"status": "error", "exit_code": int(code), "message": message}))
    return int(code)


def _terminate(*_: object) -> NoReturn:
    raise Termination


def _ending(error: Exception | KeyboardInterrupt, program: Program) -> tuple[str, ExitCode]:
    """What to say of an error, and the exit code."""
    if isinstance(error, click.ClickException):
        return error.format_message(), ExitCode.USAGE
    if isinstance(error, TightpackError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        terminated = isinstance(error, Termination)
        what = "; ".join(["terminated" if terminated else "interrupted", *getattr(error, "__notes__", [])])
        return what, ExitCode.TERMINATED if terminated else ExitCode.INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and str(error.name).partition(".")[0] not in _OURS:
        extra = program.extras.get(str(error.name).partition(".")[0])
        install = f"'tightpack[{extra}]'" if extra else "tightpack"
        what = f"{error.name} is not installed for {sys.executable}; use the environment that has it"
        return f"{what}, or pip install {install}", ExitCode.USAGE
    if isinstance(error, OSError):
        told = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
        return told, ExitCode.STORAGE
    fault = program.fault(error) if program.fault is not None else None
    return (_report_bug(error), ExitCode.BUG) if fault is None else (fault, ExitCode.USAGE)


def _report_file() -> IO[str]:
    return tempfile.NamedTemporaryFile(
        "w", prefix="tightpack-bug-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    )


def _report_bug(error: Exception) -> str:
    """Write a report; returns what to say of it."""
    text = "".join(traceback.format_exception(error))
    if logs_json():
        log.debug("traceback", extra={"traceback": text})
    elif log.isEnabledFor(logging.DEBUG):
        click.echo(text, err=True)
    what = f"a bug of ours: {type(error).__name__}: {error}; please report it"
    try:
        with _report_file() as file:
            file.write(" ".join(sys.argv) + "\n" + text)
    except OSError as fault:
        return f"{what} with what --debug shows (no log could be written: {fault.strerror})"
    return f"{what} with {file.name}"
