"""The options of the command line that need more than a click type: sizes, key=value pairs, job files."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import click
import yaml

_UNITS = {"": 1, "B": 1}
for _power, _prefix in enumerate("KMGT", 1):
    _UNITS[f"{_prefix}B"] = _UNITS[_prefix] = 1000**_power
    _UNITS[f"{_prefix}IB"] = 1024**_power


class Size(click.ParamType[int]):
    """Bytes, as in 512MB (powers of 1000) or 512MiB (powers of 1024)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes, from text."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
        if match is None or match[2].upper() not in _UNITS:
            self.fail(f"{value!r} is no size; write for instance 512MB or 1GiB", param, ctx)
        size = int(float(match[1]) * _UNITS[match[2].upper()])
        if size < 1:
            self.fail("a size must be at least one byte", param, ctx)
        return size


def pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE texts of a repeated flag as a mapping; a later one wins."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{flag} {text}: write it as KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def load_job(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Callback of `--config`: its values become defaults of the other options.

    `set` and `column` stay mappings, kept in `ctx.meta` to be merged with the flags key by key.
    """
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            job = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.UsageError(f"--config {path}: cannot be read ({' '.join(str(error).split())})") from None
    if job is None:
        job = {}
    if not isinstance(job, dict):
        raise click.UsageError(f"--config {path}: a mapping of option names to values is needed")
    known = {p.name: p for p in ctx.command.params if p.name and p is not param and p.name != "help"}
    names = {"input" if name == "inputs" else name: name for name in known}
    defaults: dict[str, Any] = {}
    for key, value in job.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(sorted(names))})"
            raise click.UsageError(f"--config {path}: unknown key {key!r}{hint}")
        if key in ("set", "column"):
            if not isinstance(value, Mapping):
                raise click.UsageError(f"--config {path}: {key!r} must be a mapping")
            ctx.meta[f"job.{key}"] = {str(k): _text(v) for k, v in value.items()}
        elif key == "input":
            defaults[names[key]] = value if isinstance(value, list) else [value]
        elif isinstance(value, list | dict):
            raise click.UsageError(f"--config {path}: {key!r} must be a single value")
        elif value is not None:
            defaults[names[key]] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def merged(ctx: click.Context, name: str, texts: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """A KEY=VALUE option from file and flags, key by key; also where each came from."""
    file = ctx.meta.get(f"job.{name}", {})
    flags = pairs(f"--{name}", texts)
    return {**file, **flags}, {**dict.fromkeys(file, "file"), **dict.fromkeys(flags, "flag")}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def source_of(ctx: click.Context, name: str) -> str:
    """Where an option's value came from: default, file or flag."""
    source = ctx.get_parameter_source(name)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return "file"
    return "flag" if source is click.core.ParameterSource.COMMANDLINE else "default"
