"""python -m pipeline: the commands. What they do lives elsewhere and is imported when one is called."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipeline.base.errors import ConfigError, PipelineError, Terminated
from pipeline.base.words import did_you_mean
from pipeline.command.flags import (
    column_options,
    input_options,
    options,
    publish_options,
    reads_and_writes,
    run_options,
    tokenize_options,
)
from pipeline.command.options import Size, merged, source_of

if TYPE_CHECKING:
    from pipeline.reading.inputs import Input
    from pipeline.tokenizing.tokenization import Tokenization

log = logging.getLogger("pipeline")

EXIT_BUG = 70
EXIT_STORAGE = 74
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tightpack", prog_name="tightpack")
def cli() -> None:
    """Tokenise and pack datasets for training, offline: full packs, no token lost, boundaries kept."""


@cli.command()
@reads_and_writes("--show")
@click.option("--tokenizer", required=True, metavar="PATH_OR_ID", help="Directory, tokenizer.json or Hub id.")
@options(tokenize_options)
@click.option("--keep-text", is_flag=True, help="Keep what the user said in a column `text`, for embedding.")
@options(input_options, publish_options, run_options)
@click.pass_context
def tokenize(ctx: click.Context, /, **values: Any) -> None:
    """Turn raw rows (chats, prompts with completions, instructions, text) into tokens and targets, for `pack`."""
    from pipeline.base.engine import available_cores
    from pipeline.command.tables import tokenize_table
    from pipeline.reading.files import default_cache_dir
    from pipeline.tokenizing.run import TokenizeJob
    from pipeline.tokenizing.run import tokenize as tokenize_job

    tokenization = _tokenization(ctx, values, values["keep_text"])
    assert tokenization is not None
    job = TokenizeJob(
        inputs=values["inputs"],
        tokenization=tokenization,
        num_workers=values["num_workers"] or available_cores(),
        cache_dir=values["cache_dir"] or default_cache_dir(),
        split=values["split"],
        subset=values["subset"],
        revision=values["revision"],
        output=values["output"],
        overwrite=values["overwrite"],
    )
    if values["show"]:
        _show(job.resolve(), job.tokenization, job.cache_dir, values)
    elif job.output is None:
        raise ConfigError("--output DIR is missing; only --show works without it")
    if job.output is not None:
        _print(tokenize_table(tokenize_job(job), job.output), values["as_json"])


@cli.command()
@reads_and_writes("--dry-run or --show")
@click.option(
    "--max-length",
    type=click.IntRange(1, 1 << 24),
    required=True,
    metavar="TOKENS",
    help="Longest sample, and tokens a pack may hold.",
)
@click.option(
    "--strategy", default="best-fit-decreasing", show_default=True, metavar="NAME", help="See the command `strategies`."
)
@click.option("--set", "set", multiple=True, metavar="KEY=VALUE", help="Option of the strategy. Repeatable.")
@click.option(
    "--overlong",
    type=click.Choice(["error", "drop", "truncate", "split"]),
    default="error",
    show_default=True,
    help="What to do with samples over --max-length.",
)
@click.option("--keep-untrainable", is_flag=True, help="Keep samples that have no target.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of every random draw.")
@click.option(
    "--pack-order",
    type=click.Choice(["shuffle", "plan"]),
    default="shuffle",
    show_default=True,
    help="Order of the packs: seeded, or as planned.",
)
@options(input_options, column_options)
@click.option("--tokenizer", metavar="PATH_OR_ID", help="Tokenise raw INPUTs with it first; then these apply:")
@options(tokenize_options)
@click.option(
    "--window-samples",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Most samples planned together.",
)
@click.option(
    "--window-tokens",
    type=click.IntRange(1, 1 << 40),
    default=1 << 29,
    show_default=True,
    help="Most tokens planned together.",
)
@click.option(
    "--shard-size", type=Size(), default="512MB", show_default=True, help="Bytes of a shard before compression."
)
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4", "zstd"]),
    default="none",
    show_default=True,
    help="Of the shards' buffers.",
)
@click.option("--dry-run", is_flag=True, help="Show the resolved options and the plan; write nothing.")
@options(publish_options, run_options)
@click.pass_context
def pack(ctx: click.Context, /, **values: Any) -> None:
    """Pack INPUTs, tokenised or (with --tokenizer) raw: dataset directories, .parquet, .arrow, .jsonl[.gz|.zst], .json,
    quoted globs, URLs, or a Hub id."""
    from pipeline.base.engine import available_cores
    from pipeline.command.tables import dry_run_table, pack_table
    from pipeline.packing.config import PackConfig, choose_strategy
    from pipeline.packing.run import Job, plan_only
    from pipeline.packing.run import pack as pack_job
    from pipeline.reading.files import default_cache_dir

    if ctx.meta.get("job.set") and source_of(ctx, "strategy") == "flag":
        log.info("`set` of the job file is for its own strategy and has no effect beside --strategy")
        ctx.meta["job.set"] = {}
    settings, set_sources = merged(ctx, "set", values["set"])
    column, column_sources = merged(ctx, "column", values["column"])
    _check_roles(column)
    chosen = choose_strategy(values["strategy"], settings, values["max_length"])
    wanted = chosen.strategy.embedding and chosen.strategy.embedding(chosen.options)
    tokenization = _tokenization(ctx, values, keep_text=bool(wanted and wanted.embedder == "sentence-transformers"))
    if tokenization and wanted and (wanted.embedder == "column" or wanted.column not in ("", "text")):
        raise ConfigError(
            f"--set: column {wanted.column!r} is not kept where raw rows are tokenised; raw rows are embedded by their"
            " tokens, or with embedder=sentence-transformers by their prompts"
        )
    if tokenization and column:
        raise ConfigError("--column names columns of tokenised input; with --tokenizer name those of raw rows by --map")
    fields = {name: values[name] for name in vars(PackConfig(max_length=1)) if name in values}
    fields |= {"strategy": chosen.strategy.name, "set": chosen.settings(), "column": column}
    fields["tokenize"] = tokenization and tokenization.config()
    cache_dir = values["cache_dir"] or default_cache_dir()
    job = Job(
        inputs=values["inputs"],
        config=PackConfig(**fields),
        chosen=chosen,
        tokenization=tokenization,
        num_workers=values["num_workers"] or available_cores(),
        cache_dir=cache_dir,
        output=values["output"],
        overwrite=values["overwrite"],
    )
    if chosen.strategy.stream_order is not None and source_of(ctx, "overlong") != "default":
        log.warning("--overlong has no effect: strategy %s cuts the stream of tokens", chosen.strategy.name)
    if tokenization and values["show"]:
        from pipeline.reading.inputs import resolve

        chosen_inputs = {name: values[name] for name in ("split", "subset", "revision")}
        _show(resolve(job.inputs, **chosen_inputs), tokenization, cache_dir, values)
        if job.output is None and not values["dry_run"]:
            return
    if values["dry_run"]:
        result = plan_only(job)
        sources: dict[str, Any] = {name: source_of(ctx, name) for name in values if name != "inputs"}
        sources |= {
            "input": source_of(ctx, "inputs"),
            "set": {name: set_sources.get(name, "default") for name in vars(chosen.options)},
            "column": column_sources,
            "map": merged(ctx, "map", _pairs_of(values["map"]))[1],
        }
        _print(dry_run_table(result, job, sources), values["as_json"])
        return
    if job.output is None:
        raise ConfigError("--output DIR is missing; only --dry-run and --show work without it")
    _print(pack_table(pack_job(job), job.output), values["as_json"])


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--source",
    multiple=True,
    metavar="INPUT",
    help="Compare every token with the input it came from. Repeatable, in the order packed.",
)
@click.option("--tokenizer", metavar="PATH_OR_ID", help="For a --source of raw rows that were packed with it.")
@click.option("--chat-template", type=click.Path(path_type=Path), metavar="FILE", help="The same for its template.")
@options(run_options)
def verify(directory: Path, source: tuple[str, ...], **values: Any) -> None:
    """Check a packed dataset: checksums, every invariant of the format, and with --source every token."""
    from pipeline.base.engine import available_cores
    from pipeline.command.tables import verify_table
    from pipeline.reading.files import default_cache_dir
    from pipeline.verifying.verify import SourceGiven
    from pipeline.verifying.verify import verify as verify_dataset

    if values["tokenizer"] and not source:
        raise ConfigError("--tokenizer has no effect without --source")
    result = verify_dataset(
        directory,
        SourceGiven(inputs=source, tokenizer=values["tokenizer"], chat_template=values["chat_template"]),
        num_workers=values["num_workers"] or available_cores(),
        cache_dir=values["cache_dir"] or default_cache_dir(),
    )
    _print(verify_table(result), values["as_json"])
    if result.problems:
        sys.exit(4)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def strategies(as_json: bool) -> None:
    """List the strategies, when to use which, and their options."""
    from pipeline.command.tables import strategies_table

    _print(strategies_table(), as_json)


_WITH_EXTRA = {
    "faiss": "'tightpack[related]'",
    "sklearn": "'tightpack[related]'",
    "sentence_transformers": "'tightpack[embed]'",
    "torch": "'tightpack[embed]'",
}
"""What to install for modules that some options need."""

_NEED_TOKENIZER = ("format", "train_on", "chat_template", "map", "on_error", "append_eos", "show")


def _tokenization(ctx: click.Context, values: dict[str, Any], keep_text: bool) -> Tokenization | None:
    """The tokenizer with its options, loaded; None where the input is tokenised."""
    if values["tokenizer"] is None:
        given = [name for name in _NEED_TOKENIZER if source_of(ctx, name) != "default" or ctx.meta.get(f"job.{name}")]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} is for raw rows and has no effect without --tokenizer")
        return None
    from pipeline.tokenizing.options import TokenizeOptions, check_fields
    from pipeline.tokenizing.tokenization import Tokenization

    mapped, _ = merged(ctx, "map", _pairs_of(values["map"]))
    check_fields(mapped)
    options = TokenizeOptions(
        format=values["format"],
        train_on=values["train_on"],
        map=mapped,
        on_error=values["on_error"],
        append_eos=values["append_eos"],
        keep_text=keep_text,
    )
    tokenization = Tokenization(values["tokenizer"], values["chat_template"], options)
    gc.freeze()  # or every collection would walk all of transformers, a tenth of the time
    return tokenization


def _pairs_of(texts: tuple[str, ...]) -> list[str]:
    return [pair for text in texts for pair in text.split(",")]


def _show(inputs: list[Input], tokenization: Tokenization, cache_dir: Path, values: dict[str, Any]) -> None:
    """Print samples: to stdout, where they are asked for, but not into a JSON object."""
    from pipeline.reading.files import FileCache
    from pipeline.tokenizing.show import first_samples

    to_stderr = values["as_json"]
    color = (sys.stderr if to_stderr else sys.stdout).isatty() and not os.environ.get("NO_COLOR")
    with FileCache(cache_dir) as cache:
        click.echo(first_samples(inputs, tokenization, cache, values["show"], color), err=to_stderr)


def _check_roles(column: dict[str, str]) -> None:
    from pipeline.reading.columns import ROLES

    for role in column:
        if role not in ROLES:
            raise ConfigError(f"--column {role}: no such role{did_you_mean(role, ROLES)}")


def _print(shown: Any, as_json: bool) -> None:
    try:
        click.echo(json.dumps(shown.value) if as_json else shown.text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has seen enough; what was done stays done, and keeps its exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> NoReturn:
    """Run a command; every way it can end has its exit code, and a user's mistake is one message."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.addHandler(to_stderr)
    log.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Not cli.main(), which would take a KeyboardInterrupt for its own.
        with cli.make_context("python -m pipeline", sys.argv[1:]) as ctx:
            cli.invoke(ctx)
        gc.freeze()  # or the collections at exit would walk all of the compiler, a fifth of a second
        sys.exit(0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except PipelineError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        kept = "; ".join(getattr(error, "__notes__", []))
        terminated = isinstance(error, Terminated)
        _fail(
            ("terminated" if terminated else "interrupted") + (f"; {kept}" if kept else ""),
            EXIT_TERMINATED if terminated else EXIT_INTERRUPTED,
        )
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("pipeline", "strategies"):
            _report_bug(error)
        _fail(
            f"{error.name} is not installed for {sys.executable}; use the environment that has it, or pip install"
            f" {_WITH_EXTRA.get(str(error.name).partition('.')[0], '.')}",
            2,
        )
    except OSError as error:
        _fail(": ".join(str(part) for part in (error.filename, error.strerror or error) if part), EXIT_STORAGE)
    except Exception as error:
        _report_bug(error)


def _report_bug(error: Exception) -> NoReturn:
    text = "".join(traceback.format_exception(error))
    if log.isEnabledFor(logging.DEBUG):
        click.echo(text, err=True)
    with tempfile.NamedTemporaryFile("w", prefix="tightpack-bug-", suffix=".log", delete=False) as file:
        file.write(" ".join(sys.argv) + "\n" + text)
    _fail(f"a bug of ours: {type(error).__name__}: {error}; please report it with {file.name}", EXIT_BUG)


def _fail(message: str, code: int) -> NoReturn:
    log.error(message)
    sys.exit(code)


def _terminate(*_: object) -> NoReturn:
    raise Terminated
