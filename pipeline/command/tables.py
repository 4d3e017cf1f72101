"""Results as the command line shows them: a short table, or one JSON object."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.words import counted
from pipeline.packing.segments import REASONS
from strategies import Strategy, all_names, find

if TYPE_CHECKING:
    from pipeline.packing.run import Job, Result
    from pipeline.tokenizing.run import TokenizeResult
    from pipeline.verifying.verify import Verified


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """A result in its two forms."""

    text: str
    value: Mapping[str, Any]


def pack_table(result: Result, output: Path) -> Shown:
    """A published dataset, or one that was there already."""
    manifest = result.manifest
    value = {
        "status": result.status,
        "output": str(output),
        "run_id": manifest["run_id"],
        "seconds": round(result.seconds, 3),
        **_figures(manifest),
    }
    shards = [facts for facts in manifest["files"].values() if "packs" in facts]
    size = sum(facts["bytes"] for facts in manifest["files"].values())
    rows = _figure_rows(manifest, "packed")
    rows.append(("output", f"{output}: {counted(len(shards), 'shard')}, {size / 1e6:,.1f} MB"))
    rows.append(("run", manifest["run_id"]))
    if result.status == "up to date":
        rows.append(("status", "up to date: this run was done before, nothing was written"))
    else:
        tokens = manifest["counts"]["tokens_packed"]
        rows.append(("time", f"{result.seconds:.2f} s, {tokens / result.seconds:,.0f} tokens/s"))
    return Shown(_aligned(rows), value)


def tokenize_table(result: TokenizeResult, output: Path) -> Shown:
    """A tokenised dataset, or one that was there already."""
    manifest, counts = result.manifest, result.manifest["counts"]
    value = {
        "status": result.status,
        "output": str(output),
        "run_id": manifest["run_id"],
        "seconds": round(result.seconds, 3),
        "tokenizer": manifest["tokenizer"],
        "chat_template": manifest["chat_template"],
        "counts": counts,
        **({"splits": manifest["splits"]} if "splits" in manifest else {}),
    }
    shards = [facts for facts in manifest["files"].values() if "samples" in facts]
    size = sum(facts["bytes"] for facts in manifest["files"].values())
    share = counts["targets"] / max(1, counts["tokens"])
    rows = [
        ("tokenised", f"{counts['samples']:,} of {counts['rows']:,} rows, {counts['tokens']:,} tokens"),
        ("targets", f"{counts['targets']:,}, {share:.1%} of the tokens are trained"),
    ]
    rows += [
        (f"  {name}", f"{split['counts']['samples']:,} of {split['counts']['rows']:,} rows")
        for name, split in manifest.get("splits", {}).items()
    ]
    rows += [(f"left out: {reason}", counted(number, "row")) for reason, number in counts["skipped"].items()]
    rows += [
        ("output", f"{output}: {counted(len(shards), 'shard')}, {size / 1e6:,.1f} MB"),
        ("run", manifest["run_id"]),
    ]
    if result.status == "up to date":
        rows.append(("status", "up to date: this run was done before, nothing was written"))
    else:
        rows.append(("time", f"{result.seconds:.2f} s, {counts['tokens'] / result.seconds:,.0f} tokens/s"))
    return Shown(_aligned(rows), value)


def dry_run_table(result: Result, job: Job, sources: Mapping[str, Any]) -> Shown:
    """Every option with where it came from, and the plan's figures."""
    options: dict[str, Any] = {}
    config = job.config.to_json()
    tokenize = config.pop("tokenize", None)
    if tokenize is not None and job.tokenization is not None:
        told = {name: entry and entry["name"] for name, entry in job.tokenization.describe().items()}
        config |= told | {name: tokenize[name] for name in ("format", "map", "on_error", "append_eos")}
        config["train_on"] = tokenize["train_on"] or "what the format has by default"
    resolved = {
        "input": list(job.inputs),
        "output": str(job.output) if job.output else None,
        **config,
        "num_workers": job.num_workers,
        "cache_dir": str(job.cache_dir),
        "overwrite": job.overwrite,
    }
    resolved["set"] = dict(vars(job.chosen.options))
    for name, setting in resolved.items():
        if isinstance(setting, dict):
            options[name] = {key: {"value": v, "source": sources[name][key]} for key, v in setting.items()}
        else:
            options[name] = {"value": setting, "source": sources[name]}
    long = {"samples": result.too_long, "longest": result.longest}
    value = {
        "status": result.status,
        "seconds": round(result.seconds, 3),
        "options": options,
        "too_long": long,
        "plan": _figures(result.manifest),
    }
    rows = []
    for name, option in options.items():
        nested = option if "source" not in option else {"": option}
        for key, entry in nested.items():
            rows.append((f"{name}.{key}" if key else name, f"{_shown(entry['value'])}  ({entry['source']})"))
    plan = _figure_rows(result.manifest, "would pack")
    if result.too_long and job.config.overlong == "error":
        plan.append(
            (
                "too long",
                f"{result.too_long:,} samples, the longest {result.longest:,} tokens: --overlong error would refuse"
                " them; these figures leave them out",
            )
        )
    return Shown(f"{_aligned(rows)}\n\n{_aligned(plan)}\n\ndry run: nothing was written", value)


def strategies_table() -> Shown:
    """Every strategy, ours and installed ones."""
    known: list[Strategy] = []
    for name in all_names():
        try:
            known.append(find(name))
        except ValueError as error:
            log.warning("%s", error)
    blocks = []
    for strategy in known:
        aliases = f" (alias {', '.join(strategy.aliases)})" if strategy.aliases else ""
        lines = [f"{strategy.name}{aliases}", f"  {strategy.summary}; {strategy.when}"]
        lines += [
            f"  --set {name}=...  {told} ({kind}, default {_shown(default)})"
            for name, default, kind, told in _options(strategy)
        ]
        blocks.append("\n".join(lines))
    value = {
        "strategies": [
            {
                "name": strategy.name,
                "aliases": list(strategy.aliases),
                "summary": strategy.summary,
                "when": strategy.when,
                "options": [
                    {"name": name, "type": kind, "default": default, "help": told}
                    for name, default, kind, told in _options(strategy)
                ],
            }
            for strategy in known
        ]
    }
    return Shown("\n\n".join(blocks), value)


def verify_table(result: Verified) -> Shown:
    """What was checked, and what was found wrong."""
    value = dataclasses.asdict(result) | {"ok": not result.problems, "seconds": round(result.seconds, 3)}
    if result.problems:
        told = "\n".join(f"  {problem}" for problem in result.problems)
        return Shown(f"FAILED: {result.directory}\n{told}", value)
    rows = [
        (
            "verified",
            f"{result.directory}: {result.files} files, {result.bytes / 1e6:,.1f} MB, every checksum and invariant",
        ),
        ("content", f"{result.packs:,} packs, {result.segments:,} segments, {result.tokens:,} tokens"),
        ("source", "every token of every sample accounted for" if result.source else "not compared (give --source)"),
        ("time", f"{result.seconds:.2f} s"),
    ]
    return Shown(_aligned(rows), value)


def _options(strategy: Strategy) -> list[tuple[str, Any, str, str]]:
    """(name, default, type, help) of each option."""
    return [
        (field.name, field.default, type(field.default).__name__, field.metadata.get("help", ""))
        for field in dataclasses.fields(strategy.options)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else "-" if value in (None, "") else str(value)


def _figures(manifest: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("capacity", "packs", "fill", "lower_bound", "segments_per_pack", "sum_length_squared", "counts", "report")
    figures = {key: manifest[key] for key in keys}
    if "splits" in manifest:
        figures["splits"] = {name: _figures(split) for name, split in manifest["splits"].items()}
    return figures


def _share(counts: Mapping[str, Any]) -> str:
    return f"{counts['targets_packed'] / max(1, counts['tokens_packed']):.1%}"


def _figure_rows(manifest: Mapping[str, Any], verb: str) -> list[tuple[str, str]]:
    counts, config = manifest["counts"], manifest["config"]
    rows = [
        (
            verb,
            f"{counts['samples_packed']:,} of {counts['samples_in']:,} samples, {counts['tokens_packed']:,} of"
            f" {counts['tokens_in']:,} tokens",
        ),
        ("targets", f"{counts['targets_packed']:,}, {_share(counts)} of the tokens are trained"),
        ("packs", f"{manifest['packs']:,} of {manifest['capacity']:,} tokens, by {config['strategy']}"),
        ("fill", f"{manifest['fill']:.4%} (lower bound {manifest['lower_bound']:,} packs)"),
    ]
    for name, split in manifest.get("splits", {}).items():
        rows.append((f"  {name}", f"{split['packs']:,} packs, fill {split['fill']:.4%}"))
    for reason in REASONS:
        loss = counts["dropped"][reason]
        lost = [counted(loss[f"{what}s"], what) for what in ("sample", "token", "target") if loss[f"{what}s"]]
        if lost:
            of = "" if loss["samples"] else f" in {counted(loss['samples_affected'], 'sample')}"
            masked = reason in ("first_token", "cut")  # the token stays, only its label goes
            rows.append((reason, f"{', '.join(lost)}{of} {'masked' if masked else 'left out'}"))
    for reason, num_rows in manifest.get("skipped_rows", {}).items():
        rows.append((f"  {reason}", f"{counted(num_rows, 'row')} left out, among the empty"))
    return rows + _report_rows(manifest["report"])


_BASELINES = {"random": "random", "best_fit_decreasing": "best-fit-decreasing"}
"""Plans that a strategy may measure beside its own: how their figures' names begin, and how they are called."""


def _report_rows(report: Mapping[str, int | float]) -> list[tuple[str, str]]:
    """What the strategy reported; each figure with those of the baselines."""
    rows = []
    for name, figure in sorted(report.items()):
        if name.startswith(tuple(f"{prefix}_" for prefix in _BASELINES)):
            continue
        beside = [
            f"{told} {_number(key, report[key])}" for p, told in _BASELINES.items() if (key := f"{p}_{name}") in report
        ]
        shown = name.replace("_", " ").replace("in pack", "in-pack")
        rows.append((shown, _number(name, figure) + (f" ({', '.join(beside)})" if beside else "")))
    return rows


def _number(name: str, figure: float) -> str:
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:.4%}" if name.endswith("_rate") else f"{figure:.4f}"


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
