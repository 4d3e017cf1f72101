"""Threshold filtering against its promises: fill, relatedness and conflicts beside the published walk; time; memory.

On instructions of many tasks (a column `task` tells which), embedded by MiniLM and by tokens, with the same vectors and
the same threshold for the walk. Times are those of the plan alone, on vectors made up around centres.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_common import keep, spread

EMBEDDERS = {
    "minilm": ["--set", "embedder=sentence-transformers", "--set", "model=minilm"],
    "tokens": ["--set", "embedder=tokens"],
}
CLOSE = 0.95

PLAN = """
import json, resource, sys, time
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
started = time.perf_counter()
planned = plan(vectors, lengths)
seconds = time.perf_counter() - started
bound = -(-int(lengths.sum()) // capacity)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"seconds": seconds, "packs": planned.num_packs, "lower_bound": bound, "peak_gb": peak}))
"""


def pipeline(*arguments: object) -> dict[str, Any]:
    """A command's result."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def groups(folder: Path, tasks: list[str], vectors: np.ndarray[Any, Any]) -> dict[str, float]:
    """Of all pairs of samples in packs, those of one task, and those closer than `CLOSE`."""
    import datasets  # noqa: PLC0415 - after the options are read

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


def relatedness(folder: Path, source: Path, tokenizer: Path) -> dict[str, Any]:
    """Every plan on the instructions."""
    rows = [json.loads(line) for line in source.read_bytes().split(b"\n") if line]
    raw, tokens, cache = folder / "raw.jsonl", folder / "tokens", folder / "cache"
    with open(raw, "w", encoding="utf-8") as file:
        for row in rows:
            prompt = row["instruction"] + "\n" + row["input"] + "\n"
            file.write(json.dumps({"prompt": prompt, "completion": row["output"]}) + "\n")
    shared = ["--cache-dir", cache]
    pipeline("tokenize", raw, "--output", tokens, "--tokenizer", tokenizer, "--append-eos", "--keep-text", *shared)
    figures: dict[str, Any] = {}
    for embedder, chosen in EMBEDDERS.items():
        for capacity in (2048, 4096):
            for name, settings in {
                "pack": [],
                "path": ["--set", "mode=path"],
                "pack, cosine:0.9": ["--set", "threshold=cosine:0.9"],
            }.items():
                output = folder / "packed"
                shutil.rmtree(output, ignore_errors=True)
                flags = ["--max-length", capacity, "--overlong", "truncate", "--strategy", "tfp", *chosen, *settings]
                told = pipeline("pack", tokens, "--output", output, *flags, *shared)
                tasks = [row["task"] for row in rows]
                figures[f"{embedder}, {capacity}, {name}"] = {
                    "packs": told["packs"],
                    "lower_bound": told["lower_bound"],
                    "fill": told["fill"],
                    **told["report"],
                    **groups(output, tasks, cached_vectors(cache, embedder)),
                }
    for embedder in EMBEDDERS:
        for capacity in (2048, 4096):
            ours, walk = (figures[f"{embedder}, {capacity}, {mode}"] for mode in ("pack", "path"))
            ours["of_the_walk"] = ours["mean_in_pack_similarity"] / walk["mean_in_pack_similarity"]
    return figures


def token_rate(tokens: Path, folder: Path) -> dict[str, float]:
    """Rows a second that the embedder `tokens` embeds, once fitted, on one thread."""
    from pipeline.base.engine import LocalEngine  # noqa: PLC0415 - after the options are read
    from pipeline.base.staging import Staging  # noqa: PLC0415
    from pipeline.embedding.tokens import TokenEmbedder  # noqa: PLC0415
    from pipeline.format.options import InputOptions  # noqa: PLC0415
    from pipeline.reading.cache import FileCache  # noqa: PLC0415
    from pipeline.reading.columns import Selection  # noqa: PLC0415
    from pipeline.reading.input_rows import open_inputs  # noqa: PLC0415
    from pipeline.reading.inputs import resolve  # noqa: PLC0415
    from pipeline.reading.workspace import Workspace  # noqa: PLC0415

    staging = Staging(folder / "staging")
    staging.open()
    with LocalEngine(1) as engine, FileCache(folder / "cache") as cache:
        work = Workspace(engine, cache, staging)
        split = open_inputs(resolve(tokens, InputOptions()), Selection(), work).splits[""]
        embedder = TokenEmbedder()
        started = time.perf_counter()
        fitted = embedder.fit([split], engine)
        fit = time.perf_counter() - started
        embedder.embed(split, 0, split.num_rows, fitted)  # compiled
        started = time.perf_counter()
        for first in range(0, split.num_rows, 2048):
            embedder.embed(split, first, min(first + 2048, split.num_rows), fitted)
        seconds = time.perf_counter() - started
    return {"fit_seconds": fit, "rows_a_second": split.num_rows / seconds}


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("tokenizer", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, show_default=True, help="Of the plans that are timed.")
@click.option("--workers", default=len(os.sched_getaffinity(0)), show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/dev/shm/bench-related"), show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path))
def main(source: Path, tokenizer: Path, rounds: int, workers: int, folder: Path, path: Path | None) -> None:
    """Measure on the JSON lines of SOURCE (task, instruction, input, output) with TOKENIZER, a tokenizer.json."""
    folder.mkdir(parents=True)
    try:
        figures = relatedness(folder, source, tokenizer)
        rate = token_rate(folder / "tokens", folder)
    finally:
        shutil.rmtree(folder)
    timed: dict[str, Any] = {}
    for count, capacity in ((50_000, 2048), (1_000_000, 4096)):
        command = [sys.executable, "-c", PLAN, str(count), str(capacity), str(workers)]
        runs = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(rounds)]
        timed[f"{count} samples, {capacity}"] = runs[0] | {"seconds": spread([run["seconds"] for run in runs])}
    keep({"relatedness": figures, "token_embedder": rate, "plan": timed, "workers": workers}, path)


if __name__ == "__main__":
    main()
