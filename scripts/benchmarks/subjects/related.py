"""Threshold filtering: the time and memory of a plan, and its promises beside the published walk.

Relatedness is measured on instructions of many tasks (a column `task` tells which), embedded by MiniLM and by tokens,
with the same vectors and the same threshold for the walk. Times are those of the plan alone, on vectors made up around
centres.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Case, case, in_turn, of_call, of_process
from benchmarks.parts import Part, Setting, folder_in, removed
from benchmarks.subjects.tokenizing import instructions

EMBEDDERS = {
    "minilm": ["--set", "embedder=sentence-transformers", "--set", "model=minilm"],
    "tokens": ["--set", "embedder=tokens"],
}
CAPACITIES = (2048, 4096)
MODES = {
    "pack": [],
    "path": ["--set", "mode=path"],
    "pack, cosine:0.9": ["--set", "threshold=cosine:0.9"],
}
CLOSE = 0.95

PLAN = """
import json, sys, time
import numpy as np
from strategies import Draws, Request, find
from strategies.related.affinity import quantise
from strategies.contract import PREPARATION_SAMPLES
count, capacity, threads = map(int, sys.argv[1:])
draws = np.random.default_rng(0)
centres = draws.normal(size=(200, 384)).astype(np.float32)
vectors = np.empty((count, 384), np.int16)
for start in range(0, count, 50_000):
    part = vectors[start : start + 50_000]
    noise = draws.normal(size=part.shape).astype(np.float32)
    part[:] = quantise(centres[draws.integers(0, 200, len(part))] + 1.2 * noise)
lengths = np.clip(np.exp(draws.normal(5.2, 0.9, count)), 8, capacity).astype(np.int32)
strategy = find("threshold-filtering")
def plan(vectors, lengths):
    options = strategy.options()
    preparation = strategy.prepare(vectors[:PREPARATION_SAMPLES], len(vectors), options)
    request = Request(lengths=lengths, capacity=capacity, draws=Draws("bench"), options=options, embeddings=vectors,
                      preparation=preparation, num_threads=threads)
    return strategy.place(request)
plan(vectors[:2000], lengths[:2000])  # compiled
wall, cpu = time.perf_counter(), time.process_time()
planned = plan(vectors, lengths)
seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
bound = -(-int(lengths.sum()) // capacity)
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "packs": planned.num_packs, "lower_bound": bound}))
"""


def plan(setting: Setting, rounds: int) -> dict[str, Case]:
    """Plans of 50,000 samples at 2,048 and of a million at 4,096, each in a process, whose memory is told."""
    cases = {}
    for most, capacity in ((50_000, 2048), (1_000_000, 4096)):
        count = setting.samples(most)
        command = [sys.executable, "-c", PLAN, count, capacity, setting.workers]
        costs, told = [], {}
        for _ in range(rounds):
            cost = of_process(command)
            told = json.loads(cost.told)
            costs.append(replace(cost, seconds=told["seconds"], cpu_seconds=told["cpu_seconds"]))
        facts = {"packs": told["packs"], "lower_bound": told["lower_bound"], "vectors_gb": count * 384 * 2 / 1e9}
        cases[f"{count:,} samples at {capacity:,}"] = case({"threshold-filtering": costs}, **facts)
    return cases


def pipeline(*arguments: object) -> dict[str, Any]:
    """A command's result."""
    command = [sys.executable, "-m", "pipeline", *arguments, "--json"]
    result: dict[str, Any] = json.loads(of_process(command, {"HF_HUB_OFFLINE": "1"}).told)
    return result


def tokenized(folder: Path, rows: list[dict[str, str]], tokenizer: Path) -> Path:
    """The instructions as tokenised pairs, with their text."""
    raw, tokens = folder / "raw.jsonl", folder / "tokens"
    with open(raw, "w", encoding="utf-8") as file:
        for row in rows:
            prompt = row["instruction"] + "\n" + row["input"] + "\n"
            file.write(json.dumps({"prompt": prompt, "completion": row["output"]}) + "\n")
    flags = ["--tokenizer", tokenizer, "--append-eos", "--keep-text", "--cache-dir", folder / "cache"]
    pipeline("tokenize", raw, "--output", tokens, *flags)
    return tokens


def embedder(setting: Setting, rounds: int) -> dict[str, Case]:
    """The embedder `tokens` on the instructions, on one thread: its fit, and embedding all of them."""
    from pipeline import RunOptions  # noqa: PLC0415 - after the parts are listed
    from pipeline.base.staging import Staging  # noqa: PLC0415
    from pipeline.embedding.tokens import TokenEmbedder  # noqa: PLC0415
    from pipeline.format.options import InputOptions  # noqa: PLC0415
    from pipeline.reading.columns import Selection  # noqa: PLC0415
    from pipeline.reading.input_rows import open_inputs  # noqa: PLC0415
    from pipeline.reading.inputs import resolve  # noqa: PLC0415
    from pipeline.reading.workspace import Workspace, cache_of, engine_of  # noqa: PLC0415

    with folder_in(setting.tmpfs) as folder:
        tokens = tokenized(folder, instructions(setting), setting.real_data()[1])
        staging, run = Staging(folder / "staging"), RunOptions(num_workers=1, cache_dir=folder / "cache")
        staging.open()
        with engine_of(run) as engine, cache_of(run) as cache:
            inputs = resolve(tokens, InputOptions())
            split = open_inputs(inputs, Selection(), Workspace(engine, cache, staging)).splits[""]
            made = TokenEmbedder()
            fitted = made.fit([split], engine)

            def embed() -> None:
                for first in range(0, split.num_rows, 2048):
                    made.embed(split, first, min(first + 2048, split.num_rows), fitted)

            embed()
            ways = {"embed": partial(of_call, embed), "fit": partial(of_call, lambda: made.fit([split], engine))}
            return {"tokens": case(in_turn(ways, rounds), rows=split.num_rows)}


def groups(folder: Path, tasks: list[str], vectors: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of all pairs of samples in packs, those of one task, and those closer than `CLOSE`."""
    import datasets  # noqa: PLC0415 - slow to import

    names = np.unique(tasks, return_inverse=True)[1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same = close = pairs = 0
    for ids in datasets.load_from_disk(str(folder))["sample_ids"]:
        upper = np.triu_indices(len(ids), 1)
        same += int((names[ids][:, None] == names[ids])[upper].sum())
        close += int(((unit[ids] @ unit[ids].T)[upper] > CLOSE).sum())
        pairs += len(upper[0])
    return {"same_task": same / pairs, f"closer_than_{CLOSE}": close / pairs}


def cached_vectors(cache: Path, embedder: str) -> np.ndarray[Any, Any]:
    """What the pipeline embedded."""
    wanted = "tokens" if embedder == "tokens" else "sentence-transformers"
    (folder,) = [
        path.parent
        for path in cache.glob("embeddings/*/identity.json")
        if json.loads(path.read_text())["embedder"] == wanted
    ]
    parts = [np.load(path)["vectors"] for path in sorted(folder.glob("embedding--*.npz"))]
    return np.concatenate(parts).astype(np.float32)


def relatedness(setting: Setting, rounds: int) -> dict[str, Case]:
    """Every plan on the instructions. What it gives is exact, so that it is measured once."""
    del rounds
    _, tokenizer = setting.real_data()
    rows = instructions(setting)
    tasks = [row["task"] for row in rows]
    figures: dict[str, Any] = {}
    with folder_in(setting.tmpfs) as folder:
        tokens, output = tokenized(folder, rows, tokenizer), folder / "packed"
        shared = ["--cache-dir", folder / "cache"]
        for vectors, chosen in EMBEDDERS.items():
            for capacity in CAPACITIES:
                for name, settings in MODES.items():
                    removed(output)
                    flags = ["--max-length", capacity, "--overlong", "truncate", "--strategy", "tfp"]
                    told = pipeline("pack", tokens, "--output", output, *flags, *chosen, *settings, *shared)
                    figures[f"{vectors}, {capacity}, {name}"] = {
                        **{figure: told[figure] for figure in ("packs", "lower_bound", "fill")},
                        **told["report"],
                        **groups(output, tasks, cached_vectors(folder / "cache", vectors)),
                    }
    for vectors in EMBEDDERS:
        for capacity in CAPACITIES:
            ours, walk = (figures[f"{vectors}, {capacity}, {mode}"] for mode in ("pack", "path"))
            ours["of_the_walk"] = ours["mean_in_pack_similarity"] / walk["mean_in_pack_similarity"]
    return {name: {"facts": facts, "ways": {}, "times": {}} for name, facts in figures.items()}


PARTS = (
    Part(name="plan", measure=plan, rounds=3, minutes=5),
    Part(name="embedder", measure=embedder, rounds=3, minutes=0.5),
    Part(name="relatedness", measure=relatedness, rounds=1, minutes=10),
)
