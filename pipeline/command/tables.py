"""Results as the command line shows them: a short table, and one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from pipeline.base.errors import ExitCode
from pipeline.base.words import aligned, counted
from pipeline.format.counts import Counts
from pipeline.format.figures import Figures, Report
from pipeline.format.manifest import PackManifest
from pipeline.format.records import FileEntry, Tally
from strategies import Strategy, all_strategies

if TYPE_CHECKING:  # one command's table does not wait for what other commands import
    from pipeline.packing.run import PackResult
    from pipeline.packing.share import ShareResult
    from pipeline.tokenizing.run import TokenizeResult
    from pipeline.verifying.verify import VerifyResult

View = tuple[str, Mapping[str, Any]]
"""A result in its two forms."""

Row = tuple[str, str]


def pack_table(result: PackResult) -> View:
    """A published dataset, or one that was there already."""
    manifest = result.manifest
    value = {
        "status": result.status,
        "output": str(result.output),
        "run_id": manifest.run_id,
        "seconds": round(result.seconds, 3),
        **_figures(manifest),
    }
    rows = _figure_rows(manifest, "packed")
    rows += _published_rows(result, manifest.run_id, manifest.files.values(), manifest.counts.tokens_packed)
    return aligned(rows), value


def share_table(result: ShareResult) -> View:
    """What one of several processes that share a run did."""
    value = {**vars(result), "output": str(result.output), "seconds": round(result.seconds, 3)}
    if result.status == "up_to_date":
        return f"up to date: run {result.run_id} is published", value
    rows = [
        ("share", f"task {result.task_index} of {result.task_count}, of run {result.run_id}"),
        ("windows", f"{result.windows:,} of {result.all_windows:,}"),
        ("written", f"{counted(result.shards, 'shard')}: {counted(result.packs, 'pack')}, {result.tokens:,} tokens"),
        ("published", "nothing yet: --finish does, once all tasks have done their shares"),
        ("seconds", f"{result.seconds:.1f}"),
    ]
    return aligned(rows), value


def tokenize_table(result: TokenizeResult) -> View:
    """A tokenised dataset, or one that was there already."""
    manifest, counts = result.manifest, result.manifest.counts
    content = msgspec.to_builtins(manifest)
    value = {
        "status": result.status,
        "output": str(result.output),
        "run_id": manifest.run_id,
        "seconds": round(result.seconds, 3),
        **{key: content[key] for key in ("tokenizer", "chat_template", "counts", "splits") if key in content},
    }
    rows = _tally_rows(counts)
    splits = {} if manifest.splits is UNSET else manifest.splits
    rows += [(f"  {name}", f"{split.counts.samples:,} {_of_rows(split.counts)}") for name, split in splits.items()]
    rows += [(f"left out: {reason}", counted(number, "row")) for reason, number in counts.dropped.items()]
    rows += _published_rows(result, manifest.run_id, manifest.files.values(), counts.tokens)
    return aligned(rows), value


def _tally_rows(counts: Tally) -> list[Row]:
    """What raw rows became, but for those left out."""
    share = counts.targets / max(1, counts.tokens)
    rows = [("tokenised", f"{counts.samples:,} {_of_rows(counts)}, {counts.tokens:,} tokens")]
    if counts.turns:
        rows.append(("turns", f"{counts.turns_trained:,} trained, of {counts.turns:,} in all"))
    rows.append(("targets", f"{counts.targets:,}, {share:.1%} of the tokens are trained"))
    rows += [
        (f"  {kind}", f"{number:,} ({number / counts.targets:.1%})") for kind, number in counts.targets_by_kind.items()
    ]
    if counts.reasoning_left_out:
        rows.append(("left out: reasoning", f"of {counted(counts.reasoning_left_out, 'turn')}"))
    return rows


def _of_rows(counts: Tally) -> str:
    """Whether the samples are rows, or more than there are usable rows, as some give several."""
    left = counts.rows - sum(counts.dropped.values())
    return f"{'of' if counts.samples == left else 'samples from'} {counts.rows:,} rows"


def _published_rows(
    result: PackResult | TokenizeResult, run_id: str, files: Iterable[FileEntry], num_tokens: int
) -> list[Row]:
    """Where the result is, and how long it took."""
    files = list(files)
    shards = counted(sum(entry.is_shard for entry in files), "shard")
    rows = [
        ("output", f"{result.output}: {shards}, {sum(entry.bytes for entry in files) / 1e6:,.1f} MB"),
        ("run", run_id),
    ]
    if result.status == "up_to_date":
        return [*rows, ("status", "up to date: this run was done before, nothing was written")]
    return [*rows, ("time", f"{result.seconds:.2f} s, {num_tokens / result.seconds:,.0f} tokens/s")]


def dry_run_table(result: PackResult, options: Mapping[str, Any]) -> View:
    """The plan's figures. options: each with its value and its source, see `--dry-run`."""
    overlong = {"samples": result.overlong.samples, "longest": result.overlong.longest}
    value = {
        "status": result.status,
        "seconds": round(result.seconds, 3),
        "options": options,
        "overlong": overlong,
        "plan": _figures(result.manifest),
    }
    rows = []
    for name, option in options.items():
        parts = option if "source" not in option else {"": option}
        for key, part in parts.items():
            rows.append((f"{name}.{key}" if key else name, f"{_shown(part['value'])}  ({part['source']})"))
    plan = _figure_rows(result.manifest, "would pack")
    if result.overlong.samples and result.manifest.config.overlong == "error":
        plan.append(
            (
                "too long",
                f"{result.overlong.samples:,} samples, the longest {result.overlong.longest:,} tokens: --overlong"
                " error would refuse them; these figures leave them out",
            )
        )
    return f"{aligned(rows)}\n\n{aligned(plan)}\n\ndry run: nothing was written", value


def strategies_table() -> View:
    """Every strategy, ours and installed ones, and those that cannot be used."""
    usable, broken = all_strategies()
    blocks = []
    for strategy in usable:
        aliases = f" (alias {', '.join(strategy.aliases)})" if strategy.aliases else ""
        lines = [f"{strategy.name}{aliases}", f"  {strategy.summary}; {strategy.when}"]
        lines += [
            f"  --set {option['name']}=...  {option['help']} ({option['type']}, default {_shown(option['default'])})"
            for option in _options(strategy)
        ]
        blocks.append("\n".join(lines))
    blocks += [f"{one.name}: broken ({one.entry_point})\n  {one.reason}" for one in broken]
    value = {
        "strategies": [
            {
                "name": strategy.name,
                "aliases": list(strategy.aliases),
                "summary": strategy.summary,
                "when": strategy.when,
                "options": _options(strategy),
            }
            for strategy in usable
        ],
        "broken": [dataclasses.asdict(one) for one in broken],
    }
    return "\n\n".join(blocks), value


def verify_table(result: VerifyResult) -> View:
    """What was checked, and what was found wrong."""
    value = {
        "status": result.status,
        "exit_code": int(ExitCode.CHECK if result.problems else ExitCode.DONE),
        "ok": not result.problems,
        **dataclasses.asdict(result),
        "directory": str(result.directory),
        "seconds": round(result.seconds, 3),
    }
    if result.problems:
        problems = "\n".join(f"  {problem}" for problem in result.problems)
        return f"FAILED: {result.directory}\n{problems}", value
    content = f"{result.packs:,} packs, {result.segments:,} segments, {result.tokens:,} tokens"
    source = "every token of every sample accounted for" if result.source else "not compared (give --source)"
    if not result.packs and result.samples:
        content, source = f"{result.samples:,} samples, {result.tokens:,} tokens", "not compared"
    rows = [
        (
            "verified",
            f"{result.directory}: {result.files} files, {result.bytes / 1e6:,.1f} MB, every checksum and invariant",
        ),
        ("content", content),
        ("source", source),
        ("time", f"{result.seconds:.2f} s"),
    ]
    return aligned(rows), value


def _options(strategy: Strategy) -> list[dict[str, Any]]:
    return [
        {
            "name": field.name,
            "type": type(field.default).__name__,
            "default": field.default,
            "help": field.metadata.get("help", ""),
        }
        for field in dataclasses.fields(strategy.options)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else "-" if value in (None, "") else str(value)


def _figures(manifest: PackManifest) -> dict[str, Any]:
    content = msgspec.to_builtins(manifest)
    figures: dict[str, Any] = {name: content[name] for name in Figures.__struct_fields__}
    figures |= {name: content[name] for name in ("tokenized",) if name in content}
    if "splits" in content:
        figures["splits"] = {
            split: {name: entry[name] for name in Figures.__struct_fields__}
            for split, entry in content["splits"].items()
        }
    return figures


def _figure_rows(manifest: PackManifest, verb: str) -> list[Row]:
    counts = manifest.counts
    share = counts.targets_packed / max(1, counts.tokens_packed)
    rows = [] if manifest.tokenized is UNSET else _tally_rows(manifest.tokenized)
    rows += [
        (
            verb,
            f"{counts.samples_packed:,} of {counts.samples_in:,} samples, {counts.tokens_packed:,} of"
            f" {counts.tokens_in:,} tokens",
        ),
        ("targets", f"{counts.targets_packed:,}, {share:.1%} of the tokens are trained"),
        ("packs", f"{manifest.packs:,} of {manifest.capacity:,} tokens, by {manifest.config.strategy}"),
        ("fill", f"{manifest.fill:.4%} (lower bound {manifest.lower_bound:,} packs)"),
    ]
    if manifest.config.max_segments is not None:
        per_pack = manifest.segments_per_pack
        allowed = f"{manifest.config.max_segments:,} allowed"
        rows.append(("segments", f"{per_pack.mean:.1f} a pack on average, {per_pack.max:,} at most ({allowed})"))
    if manifest.splits is not UNSET:
        for name, split in manifest.splits.items():
            rows.append((f"  {name}", f"{split.packs:,} packs, fill {split.fill:.4%}"))
    rows += _loss_rows(counts)
    if manifest.dropped_rows is not UNSET:
        for reason, num_rows in manifest.dropped_rows.items():
            rows.append((f"  {reason}", f"{counted(num_rows, 'row')} left out, among the empty"))
    return rows + _report_rows(manifest.report)


def _loss_rows(counts: Counts) -> list[Row]:
    """What was left out or masked, by reason."""
    rows = []
    for reason, loss in counts.dropped.items():
        numbers = (("sample", loss.samples), ("token", loss.tokens), ("target", loss.targets))
        lost = [counted(number, what) for what, number in numbers if number]
        if lost:
            of = "" if loss.samples else f" in {counted(loss.samples_affected, 'sample')}"
            masked = reason in ("first_token", "cut")  # the token stays, only its label goes
            rows.append((reason, f"{', '.join(lost)}{of} {'masked' if masked else 'left out'}"))
    return rows


_BASELINES = {"shuffled": "shuffled", "best_fit_decreasing": "best-fit-decreasing"}
"""Plans that a strategy may measure beside its own: how their figures' names begin, and how they are called."""


def _report_rows(report: Report) -> list[Row]:
    """What the strategy reported; each figure with those of the baselines."""
    rows = []
    for name, figure in sorted(report.items()):
        if name.startswith(tuple(f"{prefix}_" for prefix in _BASELINES)):
            continue
        others = [
            f"{baseline} {_number(key, report[key])}"
            for prefix, baseline in _BASELINES.items()
            if (key := f"{prefix}_{name}") in report
        ]
        shown = name.replace("_", " ").replace("in pack", "in-pack")
        rows.append((shown, _number(name, figure) + (f" ({', '.join(others)})" if others else "")))
    return rows


def _number(name: str, figure: float) -> str:
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:.4%}" if name.endswith("_rate") else f"{figure:.4f}"
