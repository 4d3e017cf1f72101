"""Tokenising against the limit of the tokenizer, and against a per-row map.

Two-turn chats with assistant targets. The limit is `encode_batch` over texts that are rendered already, on all cores.
The peer is `apply_chat_template(..., return_assistant_tokens_mask=True)` a row in `datasets.map` with as many processes
as we have workers. Each is a process of its own, in turn; the work alone, as each tells it, stands beside the whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.measuring import Case, Cost, case, in_turn, of_process
from benchmarks.parts import Part, Setting, folder_in, removed

MARKED = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\\n' -}}{%- if message.role == 'assistant' -%}"
    "{%- generation -%}{{- message.content + '<|im_end|>' -}}{%- endgeneration -%}{%- else -%}"
    "{{- message.content + '<|im_end|>' -}}{%- endif -%}{{- '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
UNMARKED = MARKED.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
SPECIALS = ["<|im_start|>", "<|im_end|>"]

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


def tokenize(folder: Path, rows: Path, workers: int, *flags: object) -> Cost:
    """`tokenize` into a new directory, with the tokenizer that stands in the folder; tells its JSON."""
    output = folder / "out"
    removed(output)
    shared = ["--output", output, "--tokenizer", folder / "tokenizer", "--num-workers", workers]
    command = [sys.executable, "-m", "pipeline", "tokenize", rows, *shared, "--cache-dir", folder / "cache", "--json"]
    return of_process([*command, *flags], environment(workers))


def environment(workers: int) -> dict[str, str]:
    """As many threads for the tokenizers library, and no look at the Hub."""
    return {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": str(workers)}


def save_tokenizer(folder: Path, tokenizer: Path) -> None:
    """The tokenizer with the special tokens of the templates, as transformers saves it."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - slow to import

    whole = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer), extra_special_tokens=SPECIALS, eos_token=SPECIALS[1])
    whole.save_pretrained(str(folder / "tokenizer"))


def instructions(setting: Setting) -> list[dict[str, str]]:
    """The rows of the source, at the scale."""
    lines = setting.real_data()[0].read_bytes().split(b"\n")
    rows = [json.loads(line) for line in lines if line]
    return rows[: max(100, round(len(rows) * setting.scale))]


def chats(setting: Setting, rounds: int) -> dict[str, Case]:
    """The instructions as two-turn chats."""
    workers = setting.workers
    with folder_in(setting.tmpfs) as folder:
        save_tokenizer(folder, setting.real_data()[1])
        rows, marked, unmarked = folder / "chats.jsonl", folder / "marked.jinja", folder / "unmarked.jinja"
        with open(rows, "w", encoding="utf-8") as file:
            for row in instructions(setting):
                prompt = row["instruction"] + "\n" + row["input"]
                turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]
                file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        marked.write_text(MARKED)
        unmarked.write_text(UNMARKED)

        def script(text: str, *arguments: object) -> Cost:
            removed(folder / "hf")
            return of_process(
                [sys.executable, "-c", text, rows, folder / "tokenizer", *arguments], environment(workers)
            )

        ours = partial(tokenize, folder, rows, workers)
        ways: dict[str, Callable[[], Cost]] = {
            "tokenize": lambda: ours("--chat-template", unmarked),
            "tokenize, template with marks": lambda: ours("--chat-template", marked),
            "encode_batch alone": lambda: script(LIMIT, unmarked),
            "apply_chat_template in datasets.map": lambda: script(PEER, marked, workers, folder / "hf"),
        }
        costs = in_turn(ways, rounds)
    told = {name: [json.loads(cost.told) for cost in of_way] for name, of_way in costs.items()}
    counts = {each["tokens"] if "tokens" in each else each["counts"]["tokens"] for way in told.values() for each in way}
    assert len(counts) == 1, f"not the same tokens: {counts}"
    work = {
        name: [
            replace(cost, seconds=each["seconds"], cpu_seconds=None, anonymous_gb=None)
            for cost, each in zip(of_way, told[name], strict=True)
        ]
        for name, of_way in costs.items()
    }
    facts = {"rows": told["tokenize"][0]["counts"]["rows"], "tokens": counts.pop(), "workers": workers}
    name = f"{facts['rows']:,} two-turn chats"
    return {f"{name}, as processes": case(costs, **facts), f"{name}, the work alone": case(work, **facts)}


def long_row(setting: Setting, rounds: int) -> dict[str, Case]:
    """8 MB of text in one row, and the same text in rows of 2,000 characters."""
    size = max(100_000, round(7_990_000 * setting.scale))  # the most that a row may have is 8 MB
    text = "\n".join(row["instruction"] + " " + row["input"] for row in instructions(setting))
    text = (text * (size // len(text) + 1))[: size - 100]  # the row has some bytes round it
    pieces = [text[first : first + 2000] for first in range(0, len(text), 2000)]
    with folder_in(setting.tmpfs) as folder:
        save_tokenizer(folder, setting.real_data()[1])
        for name, texts in (("one", [text]), ("many", pieces)):
            lines = [json.dumps({"text": each}, ensure_ascii=False) for each in texts]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        ways = {
            "one row": partial(tokenize, folder, folder / "one.jsonl", setting.workers),
            "short rows": partial(tokenize, folder, folder / "many.jsonl", setting.workers),
        }
        costs = in_turn(ways, rounds)
    tokens = {name: json.loads(of_way[0].told)["counts"]["tokens"] for name, of_way in costs.items()}
    return {f"{size / 1e6:g} MB of text": case(costs, tokens=tokens)}


PARTS = (
    Part(name="chats", measure=chats, rounds=5, minutes=5),
    Part(name="long-row", measure=long_row, rounds=3, minutes=2),
)
