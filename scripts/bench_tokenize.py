"""Tokenising against the limit of the tokenizer, and against a per-row map.

Two-turn chats with assistant targets. The limit is `encode_batch` over texts that are rendered already, on all cores.
The peer is `apply_chat_template(..., return_assistant_tokens_mask=True)` a row in `datasets.map` with as many processes
as we have workers. Each measures its own work, without the start of its interpreter, in a process of its own, in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from bench_common import keep, spread

MARKED = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}{%- else -%}"
    "{{- message.content + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
UNMARKED = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")

LIMIT = """
import json, sys, time
from transformers import AutoTokenizer
rows, tokenizer, template = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
chats = [json.loads(line)["messages"] for line in open(rows, "rb").read().split(b"\\n") if line]
texts = tokenizer.apply_chat_template(chats, chat_template=open(template).read(), tokenize=False)
started = time.perf_counter()
encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
print(json.dumps({"seconds": time.perf_counter() - started, "tokens": sum(map(len, encodings))}))
"""

PEER = """
import json, sys, time, datasets
from transformers import AutoTokenizer
rows, tokenizer, template, workers, cache = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
tokenizer.chat_template = open(template).read()
datasets.disable_progress_bars()
dataset = datasets.Dataset.from_json(rows, cache_dir=cache)
def encode(row):
    return tokenizer.apply_chat_template(row["messages"], return_assistant_tokens_mask=True, return_dict=True)
started = time.perf_counter()
mapped = dataset.map(encode, num_proc=int(workers), remove_columns=dataset.column_names)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "tokens": sum(map(len, mapped["input_ids"]))}))
"""


def make_input(folder: Path, source: Path, tokenizer: Path, copies: int) -> None:
    """The instructions of `source` as two-turn chats, a tokenizer with the template's tokens, and both templates."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - after the options are read

    whole = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    whole.save_pretrained(str(folder / "tokenizer"))
    rows = [json.loads(line) for line in source.read_bytes().split(b"\n") if line]
    with open(folder / "chats.jsonl", "w", encoding="utf-8") as file:
        for row in rows * copies:
            prompt = row["instruction"] + "\n" + row["input"]
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    (folder / "marked.jinja").write_text(MARKED)
    (folder / "unmarked.jinja").write_text(UNMARKED)


def told(command: list[str], workers: int) -> dict[str, Any]:
    """What a process that must succeed printed, with the seconds it took as a whole."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": str(workers)}
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures | {"process_seconds": time.perf_counter() - started}


def ours(folder: Path, template: str, workers: int) -> dict[str, Any]:
    """`tokenize` into a new directory."""
    output = folder / "ours"
    shutil.rmtree(output, ignore_errors=True)
    flags = ["--tokenizer", folder / "tokenizer", "--chat-template", folder / template, "--num-workers", workers]
    command = ["-m", "pipeline", "tokenize", folder / "chats.jsonl", "--output", output, *flags, "--json"]
    figures = told([sys.executable, *map(str, command), "--cache-dir", str(folder / "cache")], workers)
    return figures | {"tokens": figures["counts"]["tokens"]}


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("tokenizer", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--copies", default=1, show_default=True, help="How often to repeat the rows.")
@click.option("--workers", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/dev/shm/bench-tokenize"), show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(
    source: Path, tokenizer: Path, rounds: int, copies: int, workers: int, folder: Path, path: Path | None
) -> None:
    """Measure tokenising the JSON lines of SOURCE (instruction, input, output) with TOKENIZER, a tokenizer.json."""
    folder.mkdir(parents=True)
    try:
        make_input(folder, source, tokenizer, copies)
        base = [str(folder / "chats.jsonl"), str(folder / "tokenizer")]
        runs: dict[str, list[dict[str, Any]]] = {}
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "limit": lambda: told([sys.executable, "-c", LIMIT, *base, str(folder / "unmarked.jinja")], workers),
            "ours": lambda: ours(folder, "unmarked.jinja", workers),
            "ours, marked": lambda: ours(folder, "marked.jinja", workers),
            "peer": lambda: told(
                [sys.executable, "-c", PEER, *base, str(folder / "marked.jinja"), str(workers), str(folder / "hf")],
                workers,
            ),
        }
        for _ in range(rounds):
            for name, measure in ways.items():
                runs.setdefault(name, []).append(measure())
                shutil.rmtree(folder / "hf", ignore_errors=True)
    finally:
        shutil.rmtree(folder)
    tokens = {run["tokens"] for measured in runs.values() for run in measured}
    assert len(tokens) == 1, "not the same tokens"
    seconds = {name: [run["seconds"] for run in measured] for name, measured in runs.items()}

    def ratio(one: str, other: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(seconds[one], seconds[other], strict=True)])

    figures = {
        "rows": runs["ours"][0]["counts"]["rows"],
        "tokens": tokens.pop(),
        "workers": workers,
        "seconds": {name: spread(measured) for name, measured in seconds.items()},
        "process_seconds": {name: spread([run["process_seconds"] for run in runs[name]]) for name in runs},
        "of_the_limit": {name: ratio("limit", name) for name in ("ours", "ours, marked")},
        "times_faster_than_peer": {name: ratio("peer", name) for name in ("ours", "ours, marked")},
    }
    keep({"tokenize": figures}, path)


if __name__ == "__main__":
    main()
