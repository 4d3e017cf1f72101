"""What the commands print for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def train_table(result: dict[str, Any]) -> str:
    """Of `train`."""
    lines = [
        ("trained", f"{result['steps']:,} steps on {result['device']}, attention by {result['backend']}"),
        ("loss", f"{result['loss']:.4f} in the last step"),
        ("output", f"{result['output']}: model, log.jsonl"),
        ("time", "up to date" if result["up_to_date"] else f"{result['seconds']:.1f} s"),
    ]
    return "\n".join(f"{name:<8} {value}" for name, value in lines)


def probe_table(result: dict[str, Any]) -> str:
    """Of `probe`."""
    header = ("given", "verdict", "others' logits", "others' gradient", "against alone", "where")
    rows = [header, *(_finding(each) for each in [result["found"], *result["ways"]])]
    verdict = {
        "clean": "samples do not see each other, and are as if they were alone",
        "leaks": "samples SEE EACH OTHER: packs cannot be trained like this",
        "looks ahead": "tokens SEE WHAT COMES AFTER THEM: this is no causal language model",
        "differs": "samples do not see each other, but are NOT as if they were alone",
        "refuses": "the model REFUSES packs",
    }[result["verdict"]]
    return aligned(rows) + f"\n{verdict}"


def _finding(found: dict[str, Any]) -> tuple[str, ...]:
    where = found["layer"] or (found["message"] or "")[:100]
    return (found["way"], found["verdict"], *(_small(found[name]) for name in ("logits", "gradient", "alone")), where)


def parity_table(result: dict[str, Any]) -> str:
    """Of `parity`."""
    header = (
        "precision",
        "attention",
        "targets",
        "loss",
        "losses differ by",
        "at most",
        "allowed",
        "gradients by",
        "allowed",
        "verdict",
    )
    rows = [header]
    for each in result["found"]:
        figures = [
            _small(each[name])
            for name in ("mean_difference", "max_difference", "most_loss", "gradient_difference", "most_gradient")
        ]
        verdict = "agrees" if each["agrees"] else "DIFFERS"
        rows.append((each["dtype"], each["backend"], f"{each['targets']:,}", f"{each['loss']:.4f}", *figures, verdict))
    return f"{aligned(rows)}\n{result['samples']:,} samples in {result['packs']:,} packs"


def bench_table(result: dict[str, Any]) -> str:
    """Of `bench`."""
    rows = [("layout", "tokens/s", "targets/s", "× padded", "real tokens", "step", "peak memory", "MFU")]
    for name, each in result["layouts"].items():
        if "failed" in each:
            rows.append((name, "failed: " + each["failed"][:60], *[""] * 6))
            continue
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
            )
        )
    part = result["collating"].get("part_of_step")
    lines = [
        aligned(rows),
        f"{result['samples']:,} samples of {result['tokens']:,} tokens, {result['parameters']:,} parameters,"
        f" {result['precision']}, {result['device']}, attention by {result['backend']}",
    ]
    if part is not None:
        lines.append(f"reading and collating takes {part:.2%} of a packed step")
    return "\n".join(lines)


def _small(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
