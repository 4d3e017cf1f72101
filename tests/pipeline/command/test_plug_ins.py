"""Strategies of other packages, from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.base.digests import canonical_json
from pipeline.format.manifest import hash_of_rest
from tests.conftest import Run

PACKAGE = """
import numpy as np
from dataclasses import dataclass, field
from strategies import Plan, Strategy
from strategies.by_length import next_fit

@dataclass(frozen=True, kw_only=True)
class Options:
    backwards: bool = field(default=True, metadata={"help": "last sample first"})

def place(request):
    count = len(request.lengths)
    order = np.arange(count)[::-1] if request.options.backwards else np.arange(count)
    return Plan(segment=order.astype(np.int64), pack_offsets=np.arange(count + 1), report={"seen": count})

def broken(request):
    return Plan(segment=np.zeros(len(request.lengths), np.int64), pack_offsets=np.arange(len(request.lengths) + 1))

def backwards(num_samples, draws, options):
    return np.arange(num_samples, dtype=np.int64)[::-1].copy()

def failing(request):
    raise RuntimeError("out of luck")

def empty(request):
    return None

SOLO = Strategy(name="solo", place=place, summary="alone, last first", when="to test", options=Options)
BROKEN = Strategy(name="broken", place=broken, summary="loses samples", when="never")
FAILING = Strategy(name="failing", place=failing, summary="raises", when="never")
EMPTY = Strategy(name="empty", place=empty, summary="gives nothing", when="never")
TAPE = Strategy(name="tape", place=next_fit.place, stream_order=backwards, summary="cuts, last first", when="to test")
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the package is installed."""
    metadata = tmp_path / "site" / "elsewhere-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    points = [f"{name} = elsewhere:{name.upper()}\n" for name in ("solo", "broken", "failing", "empty", "tape")]
    (metadata / "entry_points.txt").write_text("[pipeline.strategies]\n" + "".join(points) + "gone = nowhere:GONE\n")
    (tmp_path / "site" / "elsewhere.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    sys.modules.pop("elsewhere", None)


@pytest.mark.usefixtures("site")
def test_a_strategy_of_another_package_packs(run: Run, tmp_path: Path, source: Path) -> None:
    pack = ["pack", source, "--output", tmp_path / "out", "--max-length", 60, "--strategy"]
    ended = run(*pack, "solo", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["packs"] == ended.json["counts"]["samples_packed"]
    assert ended.json["report"] == {"seen": ended.json["packs"]}
    ended = run(*pack, "solo", "--max-segments", 4)
    assert (ended.code, "'solo' keeps to no cap on the segments of a pack" in ended.err) == (2, True), ended.err
    ended = run(*pack, "gone")
    assert ended.code == 2
    assert "nowhere" in ended.err
    ended = run(*pack, "broken", "--overwrite")
    assert ended.code == 70
    assert "strategy 'broken' broke its contract" in ended.err


@pytest.mark.usefixtures("site")
def test_strategies_of_other_packages_are_listed_with_their_options_and_their_faults(run: Run) -> None:
    ended = run("strategies")
    assert ended.code == 0
    assert "--set backwards=...  last sample first (bool, default true)" in ended.out
    assert "'gone' cannot be loaded from nowhere:GONE" in ended.out


def test_samples_that_an_uninstalled_strategy_cut_are_compared_with_their_source(
    run: Run, tmp_path: Path, source: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run("pack", source, "--output", out, "--max-length", 20, "--strategy", "tape").code == 0
    monkeypatch.delitem(sys.modules, "elsewhere")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(site)])
    assert run("pack", source, "--max-length", 20, "--strategy", "tape", "--dry-run").code == 2, "it is not installed"
    ended = run("verify", out, "--source", source)
    assert ended.code == 0, ended.out
    assert "strategy tape is not installed here" in ended.err

    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["cuts_stream"] is True
    manifest["cuts_stream"] = False
    manifest["self"] = hash_of_rest(manifest)
    (out / "manifest.json").write_bytes(canonical_json(manifest))
    assert run("verify", out, "--source", source).code == 4, "what the manifest says decides"


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("name", "told"),
    [("failing", "RuntimeError: out of luck"), ("empty", "must return a Plan"), ("broken", "stands in")],
)
def test_a_plug_in_that_fails_is_named(run: Run, tmp_path: Path, source: Path, name: str, told: str) -> None:
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 60, "--strategy", name)
    assert ended.code == 70, ended.err
    assert repr(name) in ended.err and told in ended.err
    assert "bug of ours" not in ended.err and "Traceback" not in ended.err
