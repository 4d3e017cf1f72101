"""The command line of `scripts/gpu_check`: parts, each in a process of its own, and one report of them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

from gpu.report import Check, Report
from pipeline.base.errors import ExitCode
from training.options import LAYOUTS, ModelOptions

PARTS = ("kernels", "probe", "parity", "bench", "train")

MOST_SECONDS = 480
"""What a part may take."""

_NAMES = {"only": PARTS, "layouts": LAYOUTS, "backend": get_args(get_type_hints(ModelOptions)["backend"])[1:]}
"""What a list of names may hold; `auto` is no backend."""


def _some(_: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names out of a list, in its order."""
    if value is None:
        return ()
    known, asked = _NAMES[str(param.name)], value.split(",")
    for each in asked:
        if each not in known:
            raise click.BadParameter(f"there is no {each!r}, but {', '.join(known)}")
    return tuple(each for each in known if each in asked)


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Keep the figures in this file.")
@click.option("--only", callback=_some, metavar="PART,...", help=f"Do some parts alone, of {', '.join(PARTS)}.")
@click.option("--backend", callback=_some, metavar="NAME,...", help="Ask for these backends. [default: all that run]")
@click.option("--layouts", callback=_some, metavar="NAME,...", help="bench: measure some layouts. [default: all]")
@click.option("--rounds", default=3, show_default=True, help="bench: let the layouts take turns so often.")
@click.option("--small", is_flag=True, help="Try the script itself, with a tiny model and few packs.")
def main(
    path: Path | None,
    only: tuple[str, ...],
    backend: tuple[str, ...],
    layouts: tuple[str, ...],
    rounds: int,
    small: bool,
) -> None:
    """Check and measure what needs a GPU.

    Exits with 4 if a check fails, a planned figure is absent, or one is beyond its bar; with 2 where there is no GPU
    (unless --small). Each part has a process of its own, and eight minutes at most.
    """
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"there is no directory {path.parent}", param_hint="--json")
    asked = {"backends": backend, "layouts": layouts or LAYOUTS, "rounds": rounds, "small": small}
    report = Report(path, {})
    for part in only or PARTS:
        _do(report, part, asked)
    report.write()
    failed, figures = report.failed(), report.figures
    for each in failed:
        print(f"FAILED {each}")
    print(f"{figures['seconds']:.0f} s on {figures.get('device')}, auto chooses {figures.get('auto')}")
    for reason in {each.reason for each in report.checks if each.outcome == "not judged"}:
        print(reason)
    print(f"{len(failed)} checks failed" if failed else "all checks passed")
    sys.exit(ExitCode.CHECK if failed else ExitCode.DONE)


def _do(report: Report, part: str, asked: Mapping[str, Any]) -> None:
    """Do a part in a process of its own: a kernel that fails may leave a GPU's process unusable.

    Ends this one, too, where that ends with 2: there is nothing to check here.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.json"
        command = [sys.executable, "-m", "gpu.parts", part, str(path), json.dumps(asked)]
        try:
            code = subprocess.run(command, timeout=MOST_SECONDS, check=False).returncode
            ended = f"it ended with {code}"
        except subprocess.TimeoutExpired:
            code, ended = ExitCode.CHECK, f"it took more than {MOST_SECONDS} s"
        found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if code == ExitCode.USAGE:
        sys.exit(ExitCode.USAGE)
    _merge(report, part, found, ended)


def _merge(report: Report, part: str, found: dict[str, Any], ended: str) -> None:
    """Take over what a part has found, and what it planned and did not come to."""
    known = {each.name for each in report.checks}
    checks = [Check(**each) for each in found.pop("checks", [])]
    # That a backend runs is found out in every part, and told once; a failure is told by the part's name, too.
    report.checks += [each for each in checks if each.name not in known or each.outcome == "failed"]
    missing = found.pop("planned", []) + ([] if part in {each.name for each in checks} else [part])
    for name in missing:
        report.absent(name, ended)
    report.figures |= {name: each for name, each in found.items() if name not in ("failed", "seconds")}
    report.write()


if __name__ == "__main__":
    main()
