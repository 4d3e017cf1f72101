"""What the benchmarks rest on: costs of processes, ratios within a round, exponents, and files that are added to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import results, tables
from benchmarks.__main__ import main
from benchmarks.inputs import CAPACITY, distributions
from benchmarks.measuring import Cost, FailedError, case, exponent, in_turn, of_process
from benchmarks.peers import per_sample
from strategies import pack

SPENDING = """
import subprocess, sys, time
held = bytearray(b"x") * 60_000_000
if len(sys.argv) > 1:
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
else:
    ends = time.process_time() + 0.2
    while time.process_time() < ends: pass
"""


def test_a_process_is_charged_with_its_descendants() -> None:
    alone = of_process([sys.executable, "-c", SPENDING])
    both = of_process([sys.executable, "-c", SPENDING, SPENDING])
    assert alone.anonymous_gb is not None and both.anonymous_gb is not None
    assert 0.06 < alone.anonymous_gb < 0.11 < both.anonymous_gb < 0.2
    assert alone.cpu_seconds is not None and both.cpu_seconds is not None
    assert both.cpu_seconds > 0.2
    assert alone.seconds >= 0.2


def test_a_process_over_its_cap_or_with_another_fault_is_no_figure() -> None:
    with pytest.raises(FailedError, match="MemoryError"):
        of_process([sys.executable, "-c", SPENDING], most_bytes=50_000_000)
    with pytest.raises(FailedError, match="ended with 3"):
        of_process([sys.executable, "-c", "raise SystemExit(3)"])


def test_ratios_are_taken_within_a_round() -> None:
    ours, peers = iter([1.0, 10.0, 2.0]), iter([3.0, 20.0, 8.0])
    called = []

    def cost(name: str, seconds: float) -> Cost:
        called.append(name)
        return Cost(seconds=seconds, cpu_seconds=None if name == "peer" else seconds)

    ways = {"ours": lambda: cost("ours", next(ours)), "peer": lambda: cost("peer", next(peers))}
    found = case(in_turn(ways, 3), samples=5)
    assert called == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert found["times"] == {"peer": {"seconds": {"min": 2.0, "median": 3.0, "max": 4.0}}}
    assert found["ways"]["ours"]["seconds"] == {"min": 1.0, "median": 2.0, "max": 10.0}


def test_exponents_and_their_intervals() -> None:
    sizes = [1e6, 2e6, 5e6, 2e7]
    exact = exponent(sizes, [3e-6 * size**1.04 for size in sizes])
    assert exact["exponent"] == pytest.approx(1.04)
    assert exact["high"] - exact["low"] < 1e-6
    noisy = exponent(sizes, [size * factor for size, factor in zip(sizes, (1.1, 0.9, 1.0, 1.1), strict=True)])
    by_numpy, covariance = np.polyfit(np.log(sizes), np.log(sizes) + np.log([1.1, 0.9, 1.0, 1.1]), 1, cov=True)
    assert noisy["exponent"] == pytest.approx(by_numpy[0])
    assert noisy["high"] - noisy["exponent"] == pytest.approx(4.303 * covariance[0, 0] ** 0.5)


@pytest.mark.parametrize("name", distributions(1))
def test_the_plan_sample_by_sample_has_as_many_packs_as_ours(name: str) -> None:
    lengths = distributions(3000)[name]
    assert per_sample(lengths, CAPACITY) == pack(lengths, CAPACITY).num_packs


def test_a_part_is_measured_kept_beside_the_others_and_not_twice(tmp_path: Path) -> None:
    def bench(*arguments: str) -> str:
        ended = CliRunner().invoke(main, [*arguments, "--scale", "0.001", "--results", str(tmp_path)])
        assert ended.exit_code == 0, ended.output
        return ended.output

    results.keep("plan", "other", {}, {"versions": {}}, tmp_path)
    assert "| best-fit-decreasing | " in bench("plan/sorting", "--rounds", "2")
    assert bench("plan/sorting", "--resume") == "plan/sorting: there already\n\n"
    kept = json.loads(results.path_of("plan", tmp_path).read_text())["parts"]
    assert set(kept) == {"other", "sorting"}
    assert {"machine", "versions", "rounds", "others"} < set(kept["sorting"]["measured"])
    assert kept["sorting"]["cases"]["10,000 samples"]["facts"]["packs"] >= 662


def test_what_cannot_be_measured_is_told(tmp_path: Path) -> None:
    arguments = ["tokenize/long-row", "--results", str(tmp_path)]
    ended = CliRunner().invoke(main, arguments, env={"PACKING_DATA": ""})
    assert ended.exit_code == 1
    assert "not measured: tokenize/long-row" in ended.output
    assert CliRunner().invoke(main, ["plan/nothing"]).exit_code == 2
    assert "--results" in CliRunner().invoke(main, ["plan", "--scale", "0.5"]).output


def test_bars_read_the_figures(tmp_path: Path) -> None:
    ours, imports = (Cost(seconds=seconds, cpu_seconds=1) for seconds in (1.2, 1.0))
    cases = {"ten rows": case({"pack": [ours], "importing numpy, pyarrow, numba": [imports]})}
    results.keep("startup", "small", cases, {"others": 0.5}, tmp_path)
    results.path_of("startup", tmp_path).rename(results.path_of("startup", tmp_path, tables.CORES))
    assert "| 1.2 × (rough) | yes |" in tables.bars(tmp_path)
    assert "| not measured yet | |" in tables.bars(tmp_path)
