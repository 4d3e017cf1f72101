"""Options that come from a job file as well as from flags, and where each came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from pipeline.base.words import did_you_mean, in_one_line


def pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    """KEY=VALUE texts of a repeated flag as a mapping; a later one wins."""
    mapping = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{flag} {text}: write it as KEY=VALUE")
        mapping[key.strip()] = value.strip()
    return mapping


def load_job(ctx: click.Context, param: click.Parameter, path: str | None) -> str | None:
    """Callback of `--config`: the file's values become defaults of the other options.

    `set` and `column` stay mappings, kept in `ctx.meta` to be merged with the flags key by key.
    """
    if path is None:
        return None
    import yaml

    where = f"--config {path}"
    try:
        job = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise click.UsageError(f"{where}: cannot be read ({in_one_line(error)})") from None
    if job is None:
        job = {}
    if not isinstance(job, dict):
        raise click.UsageError(f"{where}: a mapping of option names to values is needed")
    known = {_name_in_file(p): p for p in ctx.command.params if p is not param}
    defaults: dict[str, Any] = {}
    seen: dict[str, Any] = {}
    for written, value in job.items():
        key = str(written).replace("-", "_")
        if key not in known:
            raise click.UsageError(f"{where}: unknown key {written!r}{did_you_mean(key, known)}")
        if key in seen:
            raise click.UsageError(f"{where}: {seen[key]!r} and {written!r} are the same option")
        seen[key] = written
        option = known[key]
        if key in ("set", "column", "map", "resources"):
            as_flag = key == "map" and isinstance(value, str)
            ctx.meta[f"job.{key}"] = pairs("map", value.split(",")) if as_flag else _texts(where, key, value)
        else:
            _require_type(where, key, value, option)
            defaults[str(option.name)] = [value] if key == "input" and isinstance(value, str) else value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def _name_in_file(param: click.Parameter) -> str:
    """The long flag with underscores; `input` for the argument."""
    return "input" if isinstance(param, click.Argument) else param.opts[0].lstrip("-").replace("-", "_")


def _require_type(where: str, key: str, value: Any, option: click.Parameter) -> None:
    """Raise unless a YAML value has the type that the option needs: nothing is guessed."""
    if isinstance(option, click.Argument):
        fits = isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
        wanted = "a text or a list of texts"
    elif isinstance(option, click.Option) and option.is_flag:
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(option.type, type(click.INT)):
        fits, wanted = type(value) is int, "an integer"
    elif isinstance(option.type, type(click.FLOAT)):
        fits, wanted = type(value) in (int, float), "a number"
    elif option.type.name == "size":
        fits, wanted = type(value) is int or isinstance(value, str), "a size"
    else:
        fits, wanted = isinstance(value, str), "a text"
    if not fits:
        raise click.UsageError(f"{where}: {key!r} must be {wanted}, not {value!r}")


def _texts(where: str, key: str, value: Any) -> dict[str, str]:
    """The mapping of `set` or `column`, as flags would have it."""
    if not isinstance(value, Mapping):
        raise click.UsageError(f"{where}: {key!r} must be a mapping")
    for name, setting in value.items():
        if not isinstance(setting, str | int | float | bool):
            raise click.UsageError(f"{where}: {key}.{name} must be a single value, not {setting!r}")
    return {str(k): str(v).lower() if isinstance(v, bool) else str(v) for k, v in value.items()}


def merged(ctx: click.Context, name: str, texts: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """A KEY=VALUE option from file and flags, key by key; also where each came from."""
    file = ctx.meta.get(f"job.{name}", {})
    flags = pairs(f"--{name.replace('_', '-')}", texts)
    return {**file, **flags}, {**dict.fromkeys(file, "file"), **dict.fromkeys(flags, "flag")}


def source_of(ctx: click.Context, name: str) -> str:
    """Where an option's value came from: default, file or flag."""
    source = ctx.get_parameter_source(name)
    if source is click.core.ParameterSource.DEFAULT_MAP:
        return "file"
    return "flag" if source is click.core.ParameterSource.COMMANDLINE else "default"
