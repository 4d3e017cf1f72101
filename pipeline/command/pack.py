"""`python -m pipeline pack`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.errors import ConfigError
from pipeline.base.harness import Decorator, EagerCommand, end_with, flag, flags, print_result, result_options
from pipeline.base.options import EngineOptions
from pipeline.command.flags import (
    ENGINE_FLAGS,
    INPUT_FLAGS,
    PUBLISH_FLAGS,
    RUN_FLAGS,
    TOKENIZE_FLAGS,
    Size,
    input_and_output,
    pairs_flag,
    size_text,
)
from pipeline.command.job_file import merged, source_of
from pipeline.command.metrics import METRICS_FLAGS, pack_figures, watch_of
from pipeline.command.raw_rows import load, replacing, run_options, show_samples, split_pairs, tokenize_options
from pipeline.format.options import PackOptions

if TYPE_CHECKING:
    from pipeline.format.manifest import PackManifest

log = logging.getLogger(__name__)

_PACK_FLAGS: list[Decorator] = [
    flag(PackOptions, "max_length", "Let a sample, and a pack, have so many tokens at most.", metavar="TOKENS"),
    flag(PackOptions, "strategy", "Place samples by this strategy; see the command `strategies`.", metavar="NAME"),
    pairs_flag("set", "Set an option of the strategy. It may be repeated."),
    flag(PackOptions, "overlong", "Choose what becomes of samples over --max-length."),
    flag(
        PackOptions,
        "max_segments",
        "Let a pack hold so many segments (samples, or parts of them) at most. [default: as many as fit]",
        metavar="N",
    ),
    flag(PackOptions, "keep_untrainable", "Keep samples that have no target."),
    flag(PackOptions, "seed", "Draw everything that is random from this seed."),
    flag(PackOptions, "pack_order", "Shuffle the packs by the seed, or leave them as planned."),
]

_COLUMN_FLAGS: list[Decorator] = [
    pairs_flag(
        "column",
        "Name the column that has a role: input_ids, attention_mask, and one of labels, completion_mask,"
        " assistant_masks, loss_mask. It may be repeated.",
        "ROLE=NAME",
    ),
    flag(PackOptions, "unpack", "Take packed rows apart: each segment is a sample, as the column says that tells."),
]

_TOKENIZER_FLAG: list[Decorator] = [
    click.option(
        "--tokenizer",
        metavar="PATH_OR_ID",
        help="Tokenise raw INPUTs with this directory, tokenizer.json or Hub id first.",
    )
]

_SHARD_FLAGS: list[Decorator] = [
    flag(PackOptions, "window_samples", "Plan so many samples together at most.", metavar="N"),
    flag(PackOptions, "window_tokens", "Plan so many tokens together at most.", metavar="N"),
    flag(PackOptions, "shard_size", "Let a shard have so many bytes before compression.", size_text, type=Size()),
    flag(PackOptions, "compression", "Compress the shards' buffers."),
    click.option("--dry-run", is_flag=True, help="Show the resolved options and the plan, and write nothing."),
]


@click.command(cls=EagerCommand)
@flags(
    input_and_output("--dry-run, --show or --show-row"),
    _PACK_FLAGS,
    INPUT_FLAGS,
    _COLUMN_FLAGS,
    _TOKENIZER_FLAG,
    TOKENIZE_FLAGS,
    _SHARD_FLAGS,
    PUBLISH_FLAGS,
    RUN_FLAGS,
    ENGINE_FLAGS,
    METRICS_FLAGS,
)
@result_options
@click.pass_context
def pack(ctx: click.Context, /, **values: Any) -> None:
    """Pack INPUTs, tokenised or (with --tokenizer) raw, into full rows.

    An INPUT is a dataset directory, a .parquet, .arrow, .jsonl[.gz|.zst] or .json file, a quoted glob, a URL, or a Hub
    id.
    """
    from pipeline.command.tables import dry_run_table, pack_table, share_table
    from pipeline.packing.run import dry_run
    from pipeline.packing.run import pack as run_pack

    options, engine = _pack_options(ctx, values), _engine_options(ctx, values)
    watch = watch_of(ctx)
    if values["output"] is None or values["dry_run"]:
        watch.leave_metrics()
    tokenizer = load(values["tokenizer"])
    if values["show"] or values["show_row"]:
        show_samples(values, options, options.tokenize, tokenizer)
    elif values["output"] is None and not values["dry_run"]:
        raise ConfigError("--output DIR is missing; only --dry-run, --show and --show-row work without it")
    more: dict[str, Any] = {
        "tokenizer": tokenizer,
        "chat_template": values["chat_template"],
        "run": run_options(values),
        "progress": watch,
        **replacing(values),
    }
    if values["dry_run"]:
        if engine.is_share or engine.finish:
            raise ConfigError("--dry-run is of a whole run: leave out --task-index, --task-count and --finish")
        if engine.engine != "local":
            log.info("--dry-run plans on this machine, whatever --engine says")
        planned = dry_run(values["inputs"], options, output=values["output"], **more)
        shown = _with_sources(ctx, values, options, planned.manifest)
        print_result(*dry_run_table(planned, shown), values["as_json"])
    elif engine.is_share:
        from pipeline.packing.share import pack_share

        watch.leave_metrics()
        shared = pack_share(values["inputs"], values["output"], options, engine, **more)
        watch.done(shared.status, {}, run_id=shared.run_id)
        print_result(*share_table(shared), values["as_json"])
        if shared.status == "up_to_date":
            end_with(values["unchanged_exit_code"])
    elif values["output"] is not None:
        result = run_pack(values["inputs"], values["output"], options, engine=engine, **more)
        watch.done(result.status, pack_figures(result.manifest), run_id=result.manifest.run_id)
        print_result(*pack_table(result), values["as_json"])
        if result.status == "up_to_date":
            end_with(values["unchanged_exit_code"])


def _pack_options(ctx: click.Context, values: dict[str, Any]) -> PackOptions:
    """The options that decide bytes, from file and flags."""
    if ctx.meta.get("job.set") and source_of(ctx, "strategy") == "flag":
        log.info("`set` of the job file is for its own strategy and has no effect beside --strategy")
        ctx.meta["job.set"] = {}
    names = {field.name for field in dataclasses.fields(PackOptions)} - {"set", "column", "tokenize"}
    return PackOptions(
        **{name: values[name] for name in names},
        set=merged(ctx, "set", values["set"])[0],
        column=merged(ctx, "column", values["column"])[0],
        tokenize=tokenize_options(ctx, values),
    )


def _engine_options(ctx: click.Context, values: dict[str, Any]) -> EngineOptions:
    """Who does the tasks."""
    names = {field.name for field in dataclasses.fields(EngineOptions)} - {"resources"}
    return EngineOptions(
        **{name: values[name] for name in names}, resources=merged(ctx, "resources", values["resources"])[0]
    )


def _with_sources(
    ctx: click.Context, values: dict[str, Any], options: PackOptions, manifest: PackManifest
) -> dict[str, Any]:
    """Each option with its value and where it came from; options with parts by their parts."""
    from pipeline.packing.setup import configure

    run = run_options(values).resolved()
    resolved: dict[str, Any] = {"input": list(values["inputs"]), "output": _text(values["output"])}
    resolved |= {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    resolved |= {"strategy": manifest.config.strategy, "set": vars(configure(options).options)}
    if resolved.pop("tokenize") is not None:
        resolved |= {key: entry.name for key, entry in manifest.identity({}).origin.items() if key in values}
        names = ("format", "map", "on_error", "append_eos", "train_on")
        resolved |= {name: getattr(options.tokenize, name) for name in names}
        resolved["train_on"] = resolved["train_on"] or "what the format has by default"
    resolved |= {name: values[name] for name in ("engine", "ray_address")}
    resolved["resources"] = merged(ctx, "resources", values["resources"])[0]
    resolved |= {"num_workers": run.num_workers, "cache_dir": str(run.cache_dir), "rehash": run.rehash}
    resolved |= replacing(values) | {"unchanged_exit_code": values["unchanged_exit_code"]}
    resolved["metrics_file"] = _text(values["metrics_file"])
    sources: dict[str, Any] = {name: source_of(ctx, name) for name in values} | {"input": source_of(ctx, "inputs")}
    for name in ("set", "column", "map", "resources"):
        given = merged(ctx, name, split_pairs(values[name]) if name == "map" else values[name])[1]
        sources[name] = {key: given.get(key, "default") for key in resolved.get(name, ())}
    return {
        name: {key: {"value": part, "source": sources[name][key]} for key, part in value.items()}
        if isinstance(value, Mapping)
        else {"value": value, "source": sources[name]}
        for name, value in resolved.items()
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
