"""Writes the parts of README and docs that come from measurements or from the code, between marks in the text.

A part stands between `<!-- scripts/figures: NAME -->` and `<!-- end -->`; `PARTS` says what is written there.
Measurements are read from benchmarks/results, and nothing is measured here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from benchmarks.parts import SUBJECTS
from benchmarks.tables import bars, subject, table
from measurements import console, cosine_limit, demo, layouts, related_time, relatedness, speed, wrong_settings
from pipeline.command.main import commands as pipeline_commands
from strategies.registry import BUILT_IN
from training.command.main import commands as training_commands

ROOT = Path(__file__).resolve().parents[1]
PART = re.compile(r"(<!-- scripts/figures: ([\w -]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def strategies() -> str:
    """The strategies, when to use which."""
    rows = [(", ".join(f"`{name}`" for name in one.names), one.summary, one.when) for one in BUILT_IN]
    return table(("name", "what it does", "when to use it"), rows)


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
    "bars": bars,
    **{f"bench {name}": partial(subject, name) for name in SUBJECTS},
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
