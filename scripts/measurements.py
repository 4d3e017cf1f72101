"""The parts of the documents that tell what was measured, out of the files of benchmarks/results."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.results import RESULTS, parts_in, path_of
from benchmarks.tables import CORES, table
from demo_table import Outcome, comparison


def results(name: str) -> Any:
    """One file of measurements."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def measured_on(machine: dict[str, Any]) -> str:
    """The machine in words."""
    return f"Measured on {machine['cores']} cores of an {machine['processor']} with {machine['memory_gib']:.0f} GiB"


def demo() -> str:
    """The comparison at the end of scripts/demo."""
    strategies = results("demo-python-3.11.7")["strategies"]
    lines = comparison([Outcome(strategy=name, **figures) for name, figures in strategies.items()]).splitlines()
    return "\n".join(["```", *lines[: len(strategies) + 1], "```"])


def console(name: str, first: int = 0, end: int | None = None) -> str:
    """A command on the demo's dataset, with what it printed, or with some of its lines."""
    shown = results("demo-python-3.11.7")["consoles"][name]
    lines = [*["…"][: first > 0], *shown["output"][first:end], *["…"][: end is not None]]
    return "\n".join(["```console", f"$ {shown['command']}", *lines, "```"])


def measured(subject: str, part: str) -> dict[str, Any]:
    """The cases of a part of `scripts/bench`, by name."""
    cases: dict[str, Any] = parts_in(path_of(subject, RESULTS, CORES))[part]["cases"]
    return cases


def speed() -> str:
    """How fast things are, and how much memory they take."""
    plans, by_hand = measured("plan", "sorting"), results("by-hand")
    reference, large_plan = plans["1,000,000 samples"], plans["10,000,000 samples"]
    in_order = measured("plan", "strategies")["first-fit"]
    job, disk = measured("job", "arrow")["1,000,000 samples"], measured("job", "disk")["1,000,000 samples"]
    verify = measured("verify", "reference")["1,000,000 samples, as processes"]["ways"]
    small, large = measured("related", "plan").values()
    chats = measured("tokenize", "chats")["16,212 two-turn chats, the work alone"]
    larger = measured("job", "larger")["4,000,000 samples"]
    first = by_hand["first_job"]["compiled_seconds"] - by_hand["first_job"]["cached_seconds"]
    argsort, trl = '`np.argsort(lengths, kind="stable")`', "TRL bfd, all rows"
    rows = [
        (
            "plan of 10 M lengths, best-fit-decreasing",
            f"{_taken(large_plan, 2)}, {_of(large_plan, 'np.argsort, stable')} {argsort}",
        ),
        (
            "plan of 1 M lengths, first-fit",
            f"{_taken(in_order, 2)}, {_of(in_order, 'np.argsort, stable')} the argsort",
        ),
        (
            "packs on the reference",
            "{packs:,}, lower bound {lower_bound:,}, fill {fill:.5f}".format(**reference["facts"]),
        ),
        (
            "whole job as a process, on tmpfs",
            f"{_taken(job)}, {_x(job['times'][trl]['seconds'])} faster than TRL {by_hand['trl_peer']['version']}"
            ' `pack_dataset(…, "bfd")` over the whole dataset and `save_to_disk`'
            f" ({_s(job['ways'][trl]['seconds'], 0)}), while also writing labels, positions and boundaries",
        ),
        (
            "whole job on disk, fsynced",
            f"{_of(disk, 'cp -r of the output, sync')} `cp -r` of its own output and `sync`",
        ),
        (
            "verify; with every token compared",
            f"{_s(verify['verify']['seconds'])}; {_s(verify['verify --source']['seconds'])}",
        ),
        (
            "`threshold-filtering`, a million samples × 384 dimensions, vectors given",
            f"{_taken(large, 0)}, {large['facts']['packs'] / large['facts']['lower_bound'] - 1:.2%} over the lower"
            f" bound; 50,000 in {_taken(small)}",
        ),
        ("peak anonymous memory", f"{_peak(job):.2f} GB; {_peak(larger):.2f} GB at 4 M samples"),
        (
            f"`tokenize`, {chats['facts']['rows']:,} two-turn chats, GPT-2's tokenizer",
            f"{_taken(chats)}, {_x(chats['times']['encode_batch alone']['seconds'], 2)} the tokens/s of `encode_batch`"
            " alone over texts already rendered;"
            f" {_x(chats['times']['apply_chat_template in datasets.map']['seconds'])} faster than a per-row"
            " `apply_chat_template` in `datasets.map` (two workers each)",
        ),
        ("first run after an installation", f"about {first:.0f} s more, once, to compile the inner loops"),
    ]
    machine = parts_in(path_of("plan", RESULTS, CORES))["sorting"]["measured"]["machine"]
    return f"{measured_on(machine)}.\n\n{table(('', ''), rows)}"


def _first_way(case: dict[str, Any]) -> dict[str, Any]:
    way: dict[str, Any] = next(iter(case["ways"].values()))
    return way


def _taken(case: dict[str, Any], digits: int = 1) -> str:
    return _s(_first_way(case)["seconds"], digits)


def _peak(case: dict[str, Any]) -> float:
    return float(_first_way(case)["anonymous_gb"]["median"])


def _of(case: dict[str, Any], other: str) -> str:
    """How many times another's seconds the first way's are."""
    return f"{1 / case['times'][other]['seconds']['median']:.2f} ×"


def relatedness() -> str:
    """What threshold filtering reaches, beside other plans of the same samples."""
    figures, found = measured("related", "relatedness"), []
    for vectors, called in (("minilm", "all-MiniLM-L6-v2"), ("tokens", "tokens")):
        for capacity in (2048, 4096):
            ours, walk = (figures[f"{vectors}, {capacity}, {mode}"]["facts"] for mode in ("pack", "path"))
            found += [
                (f"{called}, {capacity:,}", "shuffled", "", *_similarity(ours, "shuffled_")),
                ("", "best-fit-decreasing", "", *_similarity(ours, "best_fit_decreasing_")),
                ("", "published walk", f"{walk['fill']:.2%}", *_similarity(walk)),
            ]
            similarity, conflicts = _similarity(ours)
            gain = f"**{similarity}** ({ours['of_the_walk']:.2f} × the walk)"
            found.append(("", "`threshold-filtering`", f"{ours['fill']:.2%}", gain, conflicts))
    header = ("vectors, capacity", "plan", "fill", "mean similarity in packs", "pairs in conflict")
    machine = parts_in(path_of("related", RESULTS, CORES))["relatedness"]["measured"]["machine"]
    return f"{measured_on(machine)}.\n\n{table(header, found)}"


def _similarity(figures: dict[str, Any], prefix: str = "") -> tuple[str, str]:
    similarity, conflicts = (figures[f"{prefix}{name}"] for name in ("mean_in_pack_similarity", "conflict_rate"))
    return f"{similarity:.3f}", f"{conflicts:.2%}"


def cosine_limit() -> str:
    """What a cosine as the threshold gives."""
    figures = measured("related", "relatedness")["minilm, 2048, pack, cosine:0.9"]["facts"]
    by_chance = results("by-hand")["pairs_of_one_task_shuffled"]["share"]
    return (
        "With `threshold=cosine:0.9` and all-MiniLM-L6-v2 at 2,048 the mean similarity is"
        f" {figures['mean_in_pack_similarity']:.2f},\n{figures['same_task']:.0%} of the pairs in packs are of one task"
        f" (shuffled: {by_chance:.0%}), and {figures['closer_than_0.95']:.3%} of them are closer than 0.95."
    )


def related_time() -> str:
    """How long embedding and planning of related samples take."""
    by_hand, embedder = results("by-hand"), measured("related", "embedder")["tokens"]
    small, large = measured("related", "plan").values()
    model = by_hand["sentence_embedder"]["rows_a_second"]
    rate = embedder["facts"]["rows"] / _first_way(embedder)["seconds"]["median"]
    rows = [
        ("plan of 50,000 samples × 384 dimensions at 2,048", _taken(small)),
        (
            "plan of a million at 4,096",
            f"{_taken(large, 0)}, {_peak(large):.1f} GB at most,"
            f" {large['facts']['vectors_gb']:.1f} of them the vectors",
        ),
        (
            "`embedder=tokens`, on one core",
            f"{round(rate, -4):,.0f} rows a second after a fit of {_s(embedder['ways']['fit']['seconds'])}",
        ),
        (
            "all-MiniLM-L6-v2, on both cores, timed by hand",
            f"{model['bfloat16'][0]} to {model['bfloat16'][1]} rows a second in bfloat16, {model['float32'][0]} in"
            " float32",
        ),
    ]
    return table(("", ""), rows)


def layouts() -> str:
    """What training in each layout came to on a CPU."""
    layouts_of = results("training-2-cores")
    shown = {
        "padded": "padded to the longest",
        "length-grouped": "length-grouped",
        "transformers-flattening": "flattened by transformers",
        "minibatch": "flattened by ours",
        "packed": "packed",
    }
    rows = []
    for name, words in shown.items():
        cells = [words]
        for data in ("superni", "gsm8k"):
            figures = layouts_of[data]["layouts"][name]
            ratio = figures.get("times_padded")
            cells += [f"{figures['tokens_per_second']:.0f}", _x(ratio) if ratio else ""]
        rows.append(cells)
    return table(("layout", "`superni` (short, heavy tail; 7 % targets)", "", "`gsm8k` (even; 65 % targets)", ""), rows)


def wrong_settings(trainer: str) -> str:
    """Losses of one step with settings of a trainer that train something else."""
    losses = results("by-hand")[f"{trainer}_settings"]["losses"]
    rows = [(each["setting"], f"{each['loss']:.3f}" if each["loss"] else "not run", each["because"]) for each in losses]
    return table(("setting", "loss", "because"), rows)


def _s(seconds: dict[str, float], digits: int = 1) -> str:
    return f"{seconds['median']:.{digits}f} s"


def _x(ratio: dict[str, float], digits: int = 1) -> str:
    return f"{ratio['median']:.{digits}f} ×"
