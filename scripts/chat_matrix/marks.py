"""Templates with generation marks over many chats: targets equal transformers' mask."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from chat_matrix.cells import Bench, samples_of


def followed(trial: Mapping[str, Bench], chats: Path) -> str:
    """A table: rows of `messages`, and in how many targets are those of the marks, with TRL's variant and without.

    chats: JSON lines.
    """
    rows = [json.loads(line) for line in chats.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = ["| template | rows | targets by its marks | refused | without marks: the same text | explained |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, bench in trial.items():
        if not (bench.family.folder / f"{name}_training.jinja").exists():
            continue
        counts, others = compared(bench, rows)
        told = (counts[key] for key in ("rows", "equal", "refused", "same text", "explained"))
        lines.append(f"| `{name}` | {' | '.join(map(str, told))} |")
        lines += [f"{name}: {count} × {other}" for other, count in others.most_common(10)]
    return "\n".join(lines)


def compared(bench: Bench, rows: list[dict[str, object]]) -> tuple[Counter[str], Counter[str]]:
    """Counts of rows by what became of them, and what differs, in words."""
    counts, others = Counter[str](), Counter[str]()
    marked_bench = bench.with_marks()
    judge = bench.judge
    for row in rows:
        turns = judge.family.messages(row["messages"])  # type: ignore[arg-type]
        counts["rows"] += 1
        block = marked_bench.encoded(row, {})
        try:
            wanted = judge.marked(turns, None)
        except Exception as error:  # a template is a program: anything can come out of it
            wanted = None
            if not block.faults:
                others[f"transformers refuses it: {error}"] += 1
        if block.faults or wanted is None:
            counts["refused"] += 1
            if wanted is not None:
                others[block.faults[0].detail[-120:]] += 1
            continue
        (ids, targets, _), *_ = samples_of(block)
        differences = judge.differences(ids, targets, wanted)
        if differences == Counter():
            counts["equal"] += 1
        else:
            others["other ids" if differences is None else f"marks: {dict(differences)}"[:160]] += 1
        plain = bench.encoded(row, {})
        if not plain.faults and plain.input_ids.tolist() == wanted["input_ids"]:
            counts["same text"] += 1
            (ids, targets, _), *_ = samples_of(plain)
            unexplained = judge.unexplained(judge.differences(ids, targets, wanted))
            counts["explained"] += not unexplained
            others.update(f"without marks: {one!r}" for one in unexplained)
    return counts, others
