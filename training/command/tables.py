"""Results as the command line shows them: a short table, and one JSON object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import ExitCode
from pipeline.base.words import aligned, counted

if TYPE_CHECKING:
    from training.checking.commands import ParityResult, ProbeResult
    from training.checking.probe import Finding
    from training.running.output import TrainResult

View = tuple[str, Mapping[str, Any]]
"""A result in its two forms."""


def train_table(result: TrainResult) -> View:
    """A run that is done, or was done before."""
    rows = [
        ("trained", f"{counted(result.steps, 'step')} on {result.device}, attention by {result.backend}"),
        ("loss", "no number in the log" if result.loss is None else f"{result.loss:.4f} in the last step"),
        ("output", f"{result.output}: model, log.jsonl"),
    ]
    if result.skipped_steps:
        rows.append(("skipped", f"{counted(result.skipped_steps, 'step')}, whose gradient is infinite or no number"))
    if result.evaluation is not None:
        scored = result.evaluation
        rows.append(
            (
                "evaluation",
                f"{scored}, of {counted(scored.targets, 'target')} in {counted(scored.samples, 'sample')}",
            )
        )
    if result.status == "up_to_date":
        rows.append(("status", "up to date: this run was done before, nothing was written"))
    else:
        rows.append(("time", f"{result.seconds:.1f} s"))
    return aligned(rows), {**dataclasses.asdict(result), "output": str(result.output)}


def probe_table(result: ProbeResult) -> View:
    """What was found of a model."""
    header = ("given", "verdict", "others' logits", "others' gradient", "against alone", "kernel", "where")
    rows = [header, *(_finding(each) for each in (result.finding, *result.ways))]
    value = {**_ending(result.passed), "verdict": result.finding.verdict, **dataclasses.asdict(result)}
    return f"{aligned(rows)}\n{_VERDICTS[result.finding.verdict]}", value


_VERDICTS = {
    "clean": "samples do not see each other, and are as if they were alone",
    "leaks": "samples SEE EACH OTHER: packs cannot be trained like this",
    "looks ahead": "tokens SEE WHAT COMES AFTER THEM: this is no causal language model",
    "differs": "samples do not see each other, but are NOT as if they were alone",
    "refuses": "the model REFUSES packs",
}


def _ending(passed: bool) -> dict[str, Any]:
    """How a check ended, for its JSON object."""
    return {
        "status": "passed" if passed else "failed",
        "exit_code": int(ExitCode.DONE if passed else ExitCode.CHECK),
    }


def _finding(finding: Finding) -> tuple[str, ...]:
    where = finding.layer or (finding.message or "")[:100]
    figures = (finding.logits, finding.gradient, finding.alone, finding.kernel)
    return (finding.way, finding.verdict, *map(_small, figures), where)


def parity_table(result: ParityResult) -> View:
    """Packs beside their samples, in every precision."""
    header = (
        "precision",
        "attention",
        "targets",
        "loss",
        "losses differ by at most",
        "judged",
        "allowed",
        "gradients by",
        "allowed",
        "kernel by",
        "verdict",
    )
    rows: list[tuple[str, ...]] = [header]
    for each in result.comparisons:
        differences = (each.max_difference, each.loss_difference, each.most_loss)
        gradients = (each.gradient_difference, each.most_gradient)
        verdict = "agrees" if each.agrees else "DIFFERS"
        figures = map(_small, (*differences, *gradients, each.kernel_difference))
        rows.append((each.dtype, each.backend, f"{each.targets:,}", f"{each.loss:.4f}", *figures, verdict))
    value = {**_ending(result.passed), **dataclasses.asdict(result)}
    compared = f"{counted(result.samples, 'sample')} in {counted(result.packs, 'pack')}"
    return f"{aligned(rows)}\n{compared}", value


def bench_table(result: dict[str, Any]) -> str:
    """What was measured of each layout."""
    rows = [
        ("layout", "tokens/s", "targets/s", "× padded", "real tokens", "step", "peak memory", "MFU", "attention by")
    ]
    lines = []
    for name, each in result["layouts"].items():
        if "failed" in each:
            rows.append((name, "failed", *[""] * 7))
            lines.append(f"{name} failed: {each['failed']}")
            continue
        if each["micro_batches"] > 1:
            lines.append(f"{name}: out of memory, and measured in {each['micro_batches']} micro-batches a step")
        ratio, peak, mfu = each.get("times_padded"), each.get("peak_memory_bytes"), each.get("mfu")
        rows.append(
            (
                name,
                f"{each['tokens_per_second']:,.0f}",
                f"{each['targets_per_second']:,.0f}",
                f"{ratio['median']:.2f}" if ratio else "",
                f"{each['real_tokens']:.1%}",
                f"{each['step_seconds'] * 1000:,.1f} ms",
                f"{peak / 1e9:.1f} GB" if peak else "",
                f"{mfu:.1%}" if mfu else "",
                each["attention"],
            )
        )
    part = result["collating"].get("part_of_step")
    lines = [
        aligned(rows),
        *lines,
        *_ratio_lines(result["ratios"]),
        f"{result['samples']:,} samples with {result['tokens']:,} tokens in all, {result['parameters']:,} parameters,"
        f" {result['precision']}, {result['device']}, attention by {result['backend']}",
    ]
    if part is not None:
        lines.append(f"reading and collating takes {part:.2%} of a packed step")
    if result["no_mfu"] is not None:
        lines.append(f"MFU is not given: {result['no_mfu']}")
    return "\n".join(lines)


def _ratio_lines(ratios: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What of ours is how many times as fast as what is not, and why that is not said."""
    lines = []
    for name, others in ratios.items():
        given = [
            f"{each['tokens_per_second']['median']:.2f} × {other}"
            for other, each in others.items()
            if "not_given" not in each
        ]
        lines += [f"{name}: {', '.join(given)}"] if given else []
        lines += [f"{name} / {other}: {each['not_given']}" for other, each in others.items() if "not_given" in each]
    return lines


def _small(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"
