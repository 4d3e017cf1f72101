"""Tokenising chats with reasoning, tools and rewritten history against plain chats of the same words.

All four kinds are made of the same rows and rendered by Qwen3's template as TRL ships it, as whole runs of `tokenize`,
in turn, start included. They have different numbers of tokens, which `facts` tells: times alone do not compare them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measuring import Case, Cost, case, in_turn, spread
from benchmarks.parts import Part, Setting, folder_in
from benchmarks.subjects.tokenizing import instructions, save_tokenizer, tokenize

_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks something up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string", "description": "The words."}}},
    },
}

Turns = list[dict[str, Any]]


def _turn(role: str, content: str, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


def plain(asked: str, thought: str, told: str) -> Turns:
    """A question, and an answer that has the thought in front of it."""
    return [_turn("user", asked), _turn("assistant", f"{thought}\n{told}")]


def reasoned(asked: str, thought: str, told: str) -> Turns:
    """The thought as reasoning."""
    return [_turn("user", asked), _turn("assistant", told, reasoning_content=thought)]


def agentic(asked: str, thought: str, told: str) -> Turns:
    """The thought as what a tool gives back."""
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"what": told}}}
    return [
        _turn("user", asked),
        _turn("assistant", "", tool_calls=[call]),
        _turn("tool", thought),
        _turn("assistant", told),
    ]


KINDS = {"plain": plain, "reasoning": reasoned, "tools": agentic}


def rows_of(rows: list[dict[str, str]], kind: str) -> Iterator[dict[str, Any]]:
    """The rows of a kind; those of `expand` are four conversations with reasoning, one after the other."""
    words = [(row["input"] or row["instruction"], row["instruction"], row["output"]) for row in rows]
    if kind == "expand":
        for first in range(0, len(words), 4):
            yield {"messages": [turn for each in words[first : first + 4] for turn in reasoned(*each)]}
    for each in words if kind != "expand" else ():
        yield {"messages": KINDS[kind](*each)} | ({"tools": [_TOOL]} if kind == "tools" else {})


def kinds(setting: Setting, rounds: int) -> dict[str, Case]:
    """Every kind, with its tokens a second to those of plain chats."""
    import trl  # noqa: PLC0415 - slow to import

    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    rows, ways = instructions(setting), {}
    with folder_in(setting.tmpfs) as folder:
        save_tokenizer(folder, setting.real_data()[1])
        for kind in (*KINDS, "expand"):
            lines = [json.dumps(row, ensure_ascii=False) for row in rows_of(rows, kind)]
            (folder / f"{kind}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
            history = "expand" if kind == "expand" else "whole"
            flags = ("--chat-template", template, "--history", history)
            ways[kind] = partial(tokenize, folder, folder / f"{kind}.jsonl", setting.workers, *flags)
        costs = in_turn(ways, rounds)
    counts = {kind: json.loads(of_kind[0].told)["counts"] for kind, of_kind in costs.items()}

    def speed(kind: str, measure: str) -> dict[str, float]:
        def rate(cost: Cost, of: str) -> float:
            return float(counts[of]["tokens"] / getattr(cost, measure))

        pairs = zip(costs[kind], costs["plain"], strict=True)
        return spread([rate(run, kind) / rate(base, "plain") for run, base in pairs])

    facts = {
        "counts": {kind: {name: counts[kind][name] for name in ("samples", "tokens", "targets")} for kind in costs},
        "tokens_a_second_to_plain": {kind: speed(kind, "seconds") for kind in costs},
        "tokens_a_cpu_second_to_plain": {kind: speed(kind, "cpu_seconds") for kind in costs},
    }
    return {f"{len(rows):,} conversations": case(costs, **facts, workers=setting.workers)}


PARTS = (Part(name="kinds", measure=kinds, rounds=3, minutes=6),)
