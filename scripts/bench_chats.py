"""Tokenising chats with reasoning, tools and rewritten history against plain chats of the same words.

All four kinds are made of the same rows and rendered by Qwen3's template as TRL ships it. What is compared is tokens a
second, as whole runs of `tokenize`, in turn, start included; the same a second of CPU stands beside it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from bench_common import keep, spread

_SPECIALS = ["<|im_start|>", "<|im_end|>"]
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


def rows_of(source: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of a kind; those of `expand` are four conversations with reasoning, one after the other."""
    rows = [json.loads(line) for line in source.read_bytes().split(b"\n") if line]
    words = [(row["input"] or row["instruction"], row["instruction"], row["output"]) for row in rows]
    if kind == "expand":
        for first in range(0, len(words), 4):
            yield {"messages": [turn for each in words[first : first + 4] for turn in reasoned(*each)]}
    for each in words if kind != "expand" else ():
        yield {"messages": KINDS[kind](*each)} | ({"tools": [_TOOL]} if kind == "tools" else {})


def measured(command: list[str], workers: int) -> dict[str, float]:
    """Tokens, targets and samples of a run of `tokenize`, its seconds, and those of CPU."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": str(workers)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    counts = json.loads(done.stdout)["counts"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, **{name: counts[name] for name in ("samples", "tokens", "targets")}}


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("tokenizer", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, show_default=True)
@click.option("--workers", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/dev/shm/bench-chats"), show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(source: Path, tokenizer: Path, rounds: int, workers: int, folder: Path, path: Path | None) -> None:
    """Measure chats made of the JSON lines of SOURCE (instruction, input, output) with TOKENIZER, a tokenizer.json."""
    import trl  # noqa: PLC0415 - after the options are read
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    folder.mkdir(parents=True)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in (*KINDS, "expand")}
    try:
        whole = PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), extra_special_tokens=_SPECIALS, eos_token=_SPECIALS[1]
        )
        whole.save_pretrained(str(folder / "tokenizer"))
        for kind in runs:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows_of(source, kind)]
            (folder / f"{kind}.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
        for _ in range(rounds):
            for kind, of_kind in runs.items():
                shutil.rmtree(folder / "out", ignore_errors=True)
                flags = ["--output", folder / "out", "--tokenizer", folder / "tokenizer", "--chat-template", template]
                flags += ["--history", "expand" if kind == "expand" else "whole", "--num-workers", workers, "--json"]
                command = [sys.executable, "-m", "pipeline", "tokenize", folder / f"{kind}.jsonl", *flags]
                of_kind.append(measured([*map(str, command), "--cache-dir", str(folder / "cache")], workers))
    finally:
        shutil.rmtree(folder)

    def speed(kind: str, by: str) -> dict[str, float]:
        """Tokens a second of a kind, in parts of the plain ones'."""
        pairs = zip(runs[kind], runs["plain"], strict=True)
        return spread([run["tokens"] / run[by] / (base["tokens"] / base[by]) for run, base in pairs])

    figures = {
        "workers": workers,
        "kinds": {
            kind: {name: of_kind[0][name] for name in ("samples", "tokens", "targets")}
            for kind, of_kind in runs.items()
        },
        "seconds": {kind: spread([run["seconds"] for run in of_kind]) for kind, of_kind in runs.items()},
        "cpu_seconds": {kind: spread([run["cpu_seconds"] for run in of_kind]) for kind, of_kind in runs.items()},
        "tokens_a_second_to_plain": {kind: speed(kind, "seconds") for kind in runs},
        "tokens_a_cpu_second_to_plain": {kind: speed(kind, "cpu_seconds") for kind in runs},
    }
    keep({"chats": figures}, path)


if __name__ == "__main__":
    main()
