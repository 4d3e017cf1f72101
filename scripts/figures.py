"""Writes the parts of README and docs that come from measurements or from the code, between marks in the text.

A part stands between `<!-- scripts/figures: NAME -->` and `<!-- end -->`; `PARTS` says what is written there.
Measurements are read from benchmarks/results, and nothing is measured here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from demo_table import Outcome, comparison

from pipeline.command.main import commands as pipeline_commands
from strategies.registry import BUILT_IN
from training.command.main import commands as training_commands

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PART = re.compile(r"(<!-- scripts/figures: ([\w -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def results(name: str) -> Any:
    """One file of measurements."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("".join(f"| {cell} " if cell else "| " for cell in cells) + "|" for cells in lines)


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


def strategies() -> str:
    """The strategies, when to use which."""
    rows = [(", ".join(f"`{name}`" for name in one.names), one.summary, one.when) for one in BUILT_IN]
    return table(("name", "what it does", "when to use it"), rows)


def speed() -> str:
    """How fast things are, and how much memory they take."""
    plans, job, tokenize, related = (results(f"{name}-2-cores") for name in ("plan", "job", "tokenize", "related"))
    by_hand = results("by-hand")
    sorted_bins, reference = plans["best-fit-decreasing 10,000,000"], plans["best-fit-decreasing 1,000,000"]
    in_order = plans["first-fit 1,000,000"]
    peer, copy = job["peer"], job["copy"]
    tokens, large = tokenize["tokenize"], related["plan"]["1000000 samples, 4096"]
    first = by_hand["first_job"]["compiled_seconds"] - by_hand["first_job"]["cached_seconds"]
    argsort = '`np.argsort(lengths, kind="stable")`'
    rows = [
        (
            "plan of 10 M lengths, best-fit-decreasing",
            f"{_s(sorted_bins['seconds'], 2)}, {_x(sorted_bins['ratio'], 2)} {argsort}",
        ),
        ("plan of 1 M lengths, first-fit", f"{_s(in_order['seconds'], 2)}, {_x(in_order['ratio'], 2)} the argsort"),
        (
            "packs on the reference",
            f"{reference['packs']:,}, lower bound {reference['lower_bound']:,}, fill {reference['fill']:.5f}",
        ),
        (
            "whole job as a process, on tmpfs",
            f"{_s(peer['seconds'])}, {_x(peer['times_faster'])} faster than TRL {by_hand['trl_peer']['version']}"
            ' `pack_dataset(…, "bfd")` over the whole dataset and `save_to_disk`'
            f" ({_s(peer['peer_seconds'], 0)}), while also writing labels, positions and boundaries",
        ),
        ("whole job on disk, fsynced", f"{_x(copy['ratio'], 2)} `cp -r` of its own output and `sync`"),
        (
            "verify; with every token compared",
            f"{_s(peer['verify_seconds'])}; {peer['verify_source_seconds']:.1f} s",
        ),
        (
            "`threshold-filtering`, a million samples × 384 dimensions, vectors given",
            f"{_s(large['seconds'], 0)}, {large['packs'] / large['lower_bound'] - 1:.2%} over the lower bound;"
            f" 50,000 in {_s(related['plan']['50000 samples, 2048']['seconds'])}",
        ),
        (
            "peak anonymous memory",
            f"{job['memory']['1,000,000']:.2f} GB; {job['memory']['4,000,000']:.2f} GB at 4 M samples",
        ),
        (
            f"`tokenize`, {tokens['rows']:,} two-turn chats, GPT-2's tokenizer",
            f"{_s(tokens['seconds']['ours'])}, {_x(tokens['of_the_limit']['ours'], 2)} the tokens/s of `encode_batch`"
            f" alone over texts already rendered; {_x(tokens['times_faster_than_peer']['ours'])} faster than a per-row"
            " `apply_chat_template` in `datasets.map` (two workers each)",
        ),
        ("first run after an installation", f"about {first:.0f} s more, once, to compile the inner loops"),
    ]
    return f"{measured_on(plans['machine'])}.\n\n{table(('', ''), rows)}"


def relatedness() -> str:
    """What threshold filtering reaches, beside other plans of the same samples."""
    figures, found = results("related-2-cores"), []
    for vectors, called in (("minilm", "all-MiniLM-L6-v2"), ("tokens", "tokens")):
        for capacity in (2048, 4096):
            ours, walk = (figures["relatedness"][f"{vectors}, {capacity}, {mode}"] for mode in ("pack", "path"))
            found += [
                (f"{called}, {capacity:,}", "shuffled", "", *_similarity(ours, "shuffled_")),
                ("", "best-fit-decreasing", "", *_similarity(ours, "best_fit_decreasing_")),
                ("", "published walk", f"{walk['fill']:.2%}", *_similarity(walk)),
            ]
            similarity, conflicts = _similarity(ours)
            gain = f"**{similarity}** ({ours['of_the_walk']:.2f} × the walk)"
            found.append(("", "`threshold-filtering`", f"{ours['fill']:.2%}", gain, conflicts))
    header = ("vectors, capacity", "plan", "fill", "mean similarity in packs", "pairs in conflict")
    return f"{measured_on(figures['machine'])}.\n\n{table(header, found)}"


def _similarity(figures: dict[str, Any], prefix: str = "") -> tuple[str, str]:
    similarity, conflicts = (figures[f"{prefix}{name}"] for name in ("mean_in_pack_similarity", "conflict_rate"))
    return f"{similarity:.3f}", f"{conflicts:.2%}"


def cosine_limit() -> str:
    """What a cosine as the threshold gives."""
    figures = results("related-2-cores")["relatedness"]["minilm, 2048, pack, cosine:0.9"]
    by_chance = results("by-hand")["pairs_of_one_task_shuffled"]["share"]
    return (
        "With `threshold=cosine:0.9` and all-MiniLM-L6-v2 at 2,048 the mean similarity is"
        f" {figures['mean_in_pack_similarity']:.2f},\n{figures['same_task']:.0%} of the pairs in packs are of one task"
        f" (shuffled: {by_chance:.0%}), and {figures['closer_than_0.95']:.3%} of them are closer than 0.95."
    )


def related_time() -> str:
    """How long embedding and planning of related samples take."""
    figures, by_hand = results("related-2-cores"), results("by-hand")
    small, large = (figures["plan"][name] for name in ("50000 samples, 2048", "1000000 samples, 4096"))
    fit, model = figures["token_embedder"], by_hand["sentence_embedder"]["rows_a_second"]
    vectors = by_hand["vectors_of_a_million"]["gb"]
    rows = [
        ("plan of 50,000 samples × 384 dimensions at 2,048", _s(small["seconds"])),
        (
            "plan of a million at 4,096",
            f"{_s(large['seconds'], 0)}, {large['peak_gb']:.1f} GB at most, {vectors} of them the vectors",
        ),
        (
            "`embedder=tokens`, on one core",
            f"{round(fit['rows_a_second'], -4):,.0f} rows a second after a fit of {fit['fit_seconds']:.1f} s",
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
    measured = results("training-2-cores")
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
            figures = measured[data]["layouts"][name]
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


def flags(group: click.Group, name: str) -> str:
    """The arguments and flags of a command, from its own help."""
    rows = []
    for param in group.commands[name].params:
        if isinstance(param, click.Argument):
            rows.append((f"`{param.metavar}`", "required", "What the command reads."))
        elif isinstance(param, click.Option):
            rows.append(_flag(param))
    return table(("flag", "default", "what it does"), rows)


def _flag(option: click.Option) -> tuple[str, str, str]:
    """A flag's row. A default in the help's text is that of a flag whose own default is None."""
    told, _, in_help = (option.help or "").partition(" [default: ")
    if isinstance(option.type, click.Choice):
        told = f"{told} One of {', '.join(f'`{choice}`' for choice in option.type.choices)}."
    if option.multiple or option.required:
        default = "required" if option.required else ""
    elif in_help:
        default = in_help.rstrip("]")
    elif option.is_flag:
        default = "on" if option.default is True else "off"
    else:
        default = str(option.show_default) if isinstance(option.show_default, str) else _text(option.default)
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    value = "" if isinstance(option.type, click.Choice) else value
    return f"`{'/'.join([*option.opts, *option.secondary_opts])}{value}`", default, _marked(told)


def _marked(told: str) -> str:
    """A text of the code with its flags in marks."""
    return re.sub(r"--[a-z-]+[a-z]", r"`\g<0>`", told)


def _text(default: Any) -> str:
    if isinstance(default, str):
        return f"`{default}`"
    return f"{default:,}" if isinstance(default, int) else f"{default:g}" if isinstance(default, float) else ""


def forms() -> str:
    """The public forms of rows, and what becomes of each."""
    folder = ROOT / "tests" / "pipeline" / "tokenizing" / "rows" / "forms"
    known = json.loads((folder / "forms.json").read_text(encoding="utf-8"))
    parts = []
    for group, names in groupby(known, key=lambda name: known[name]["group"]):
        rows = [_form(known[name], folder / f"{name}.jsonl") for name in names]
        parts.append(f"### {group}\n\n{table(('form', 'columns', 'what becomes of it'), rows)}")
    return "\n\n".join(parts)


def _form(form: dict[str, Any], file: Path) -> tuple[str, str, str]:
    first = json.loads(file.read_text(encoding="utf-8").partition("\n")[0])
    given = f"`{' '.join(form['flags'])}`: " if form["flags"] else ""
    if "refused" in form:
        told = f"{given}refused: {form['refused']}"
    else:
        trained = ", ".join(f"`{text}`" for text in form["trained"][0]).replace("\n", "\\n")
        told = f"{given}**read** as {form['reads']}; trained: {trained}"
    name = form["called"] + (f" ({form['of']})" if form["of"] else "")
    return _cell(name), ", ".join(f"`{column}`" for column in first), _cell(told)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("### ", "\\#\\#\\# ")


PARTS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "console pack": partial(console, "pack"),
    "console related": partial(console, "related", 2, 9),
    "strategies": strategies,
    "forms": forms,
    "speed": speed,
    "relatedness": relatedness,
    "cosine limit": cosine_limit,
    "related time": related_time,
    "layouts": layouts,
    **{f"{name} settings": partial(wrong_settings, name) for name in ("trainer", "trl")},
    **{
        f"flags {name}": partial(flags, pipeline_commands, name)
        for name in ("tokenize", "pack", "verify", "strategies")
    },
    **{f"flags {name}": partial(flags, training_commands, name) for name in ("train", "probe", "parity", "bench")},
}
"""What is written where, by the name in the mark."""


def renewed(page: str) -> str:
    """The text of a page with its parts written anew. Raises `KeyError` for a name that no part has."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[4]}", page)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; name the pages that would change, and exit with 1.")
@click.argument("pages", nargs=-1, type=click.Path(path_type=Path, exists=True))
def main(check: bool, pages: tuple[Path, ...]) -> None:
    """Write the parts of PAGES, README.md and docs/*.md where none is named."""
    stale = []
    for page in pages or (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        if renewed(text) != text:
            stale.append(page)
            if not check:
                page.write_text(renewed(text), encoding="utf-8")
    for page in stale:
        print(f"{page}: {'is not what scripts/figures writes' if check else 'written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
