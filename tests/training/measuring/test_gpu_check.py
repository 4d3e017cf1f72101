"""`scripts/gpu_check`, under stand-ins for kernels, and as itself where there is no GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.training.kernels import CALLS, flash_attn_varlen_func, stand_in
from tests.training.runs import ROOT
from training.attention.backends import BACKENDS
from training.options import DENSE, FLATTENED, FLATTENING, LAYOUTS, PACKED, PADDED

CPU, HALF = torch.device("cpu"), torch.bfloat16
MISSING = ("datasets", "dill", "multiprocess", "msgspec")
WITHOUT = f"import sys\nsys.modules |= dict.fromkeys({MISSING!r})\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    modules = ("made", "numerics", "report", "parts", "running", "worth", "__main__")
    return SimpleNamespace(**{name.strip("_"): importlib.import_module(f"gpu.{name}") for name in modules})


def failed(report: Any) -> dict[str, str]:
    return {each.name: each.reason for each in report.checks if each.outcome == "failed"}


def test_all_parts_pass_under_kernels(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash-attn", "torch-varlen")
    monkeypatch.setattr(gpu.numerics, "MUST_BE_CLEAN", ("llama", "mixtral"))  # all are probed by other tests
    report = gpu.report.Report(tmp_path / "found.json", {}, judged=False)
    gpu.numerics.check_kernels(report, list(BACKENDS), CPU, HALF, small=True)
    gpu.numerics.check_probe(report, list(BACKENDS), CPU, HALF)
    gpu.numerics.check_parity(report, list(BACKENDS), CPU, HALF, small=True)
    some = (PADDED, *FLATTENED, PACKED, DENSE)
    gpu.worth.check_bench(report, ["torch-varlen"], CPU, HALF, tmp_path, layouts=some, rounds=1, small=True)
    assert report.failed() == []
    found = json.loads((tmp_path / "found.json").read_text())
    assert (
        {each["backend"] for each in found["kernels"]} == {each["backend"] for each in found["probe"]} == set(BACKENDS)
    )
    assert len(found["parity"]) == 2 * len(BACKENDS)
    ratio = "superni-like by torch-varlen: packed / transformers-flattening"
    (check,) = [each for each in found["checks"] if each["name"] == ratio]
    assert (check["outcome"], check["bar"]) == ("not judged", "at least 1.07")
    assert "unmeasured on a GPU" in check["reason"]
    assert (
        check["value"]
        == found["bench"]["superni-like, torch-varlen"]["ratios"][PACKED][FLATTENING]["tokens_per_second"]["median"]
    )


@pytest.mark.parametrize("fault", ["leaves out", "nan", "raises"])
def test_a_wrong_kernel_is_a_failed_check(
    fault: str, gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any, **named: Any) -> Any:
        if fault == "raises":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        attended = flash_attn_varlen_func(*arguments, **named | ({"window_size": (2, 0)} if fault != "nan" else {}))
        return attended * float("nan") if fault == "nan" else attended

    monkeypatch.setattr("tests.training.kernels.flash_attn_varlen_func", wrong)
    stand_in(monkeypatch, "flash-attn")
    report = gpu.report.Report(tmp_path / "found.json", {})
    gpu.numerics.check_kernels(report, ["flash-attn", "sdpa"], CPU, HALF, small=True)
    (reason,) = failed(report).values()
    assert {"leaves out": "off by ", "nan": "off by nan", "raises": "illegal memory access"}[fault] in reason


def test_what_is_absent_or_below_its_bar_has_failed(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU without flash-attn, where one layout fails and none is fast enough."""
    stand_in(monkeypatch, "torch-varlen")
    bars = gpu.worth.Bars({PADDED: 1e6, FLATTENING: 1e-6, DENSE: 1e-6}, 0.8)
    monkeypatch.setattr(gpu.worth, "BARS", {"gsm8k-like": bars})
    monkeypatch.setattr(gpu.worth, "DATA", {"gsm8k-like": None})
    monkeypatch.setattr("training.measuring.flattening.prepare_fa_kwargs_from_position_ids", lambda _: 1 / 0)
    report = gpu.report.Report(tmp_path / "found.json", {})
    some = (PADDED, FLATTENING, PACKED, DENSE)
    gpu.worth.check_bench(report, ["torch-varlen"], CPU, HALF, tmp_path, layouts=some, rounds=1, small=True)
    why = {name.removeprefix("gsm8k-like by torch-varlen: "): reason for name, reason in failed(report).items()}
    why.pop("loader", None)  # whatever the machine is busy with
    assert why.keys() == {FLATTENING, "packed / padded", "packed / transformers-flattening"}
    assert why[FLATTENING] == "ZeroDivisionError: division by zero"
    assert why["packed / padded"].endswith("is not at least 1000000.0")
    assert why["packed / transformers-flattening"].startswith("absent: transformers-flattening failed: Zero")
    report.plan(["MFU"])
    assert report.failed()[-1] == "MFU: absent: it was not measured"
    on_gpu = gpu.worth._names("gsm8k-like", "torch-varlen", LAYOUTS, torch.device("cuda"))
    assert {"MFU", "memory of padded", "loader"} < {each.rpartition(": ")[2] for each in on_gpu}


def test_a_backend_that_was_asked_for_and_does_not_run_has_failed(gpu: Any, tmp_path: Path) -> None:
    asked = gpu.parts.Asked(backends=["flash-attn"], layouts=LAYOUTS, rounds=1, small=True)
    told = gpu.parts.do("kernels", tmp_path / "found.json", asked).failed()
    assert told == ["flash-attn runs: its kernels need CUDA, not cpu", "kernels: RuntimeError: no backend runs"]


def test_a_part_in_which_a_backend_stopped_running_has_failed(gpu: Any, tmp_path: Path) -> None:
    """What a part before found out is told once; that it is so no more is not dropped for that."""
    ran, stopped = ({"name": "flash-attn runs", "outcome": each} for each in ("passed", "failed"))
    report = gpu.report.Report(tmp_path / "found.json", {})
    for part, found in (("kernels", ran), ("probe", ran), ("bench", stopped | {"reason": "no memory"})):
        gpu.main._merge(report, part, {"checks": [found, {"name": part, "outcome": "passed"}]}, "")
    assert report.failed() == ["flash-attn runs: no memory"]
    assert [each.name for each in report.checks].count("flash-attn runs") == 2


def test_the_command_line(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = ["--json", str(tmp_path / "nowhere" / "found.json")]
    for wrong in (["--only", "tests"], ["--layouts", "padding"], ["--backend", "flash"], nowhere):
        refused = CliRunner().invoke(gpu.main.main, ["--small", *wrong])
        assert refused.exit_code == 2
        assert "there is no" in refused.output
    monkeypatch.setattr(gpu.main, "MOST_SECONDS", 0.2)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'scripts'}")
    path = tmp_path / "found.json"
    late = CliRunner().invoke(gpu.main.main, ["--small", "--only", "probe,train", "--json", str(path)])
    assert late.exit_code == 4
    assert json.loads(path.read_text())["failed"] == [
        f"{part}: absent: it took more than 0.2 s" for part in ("probe", "train")
    ]
    asked = gpu.parts.Asked(backends=[], layouts=LAYOUTS, rounds=1, small=False)
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit) as ended:
            gpu.parts.do("train", None, asked)
        assert ended.value.code == 2


def test_it_trains_under_kernels(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what torchrun starts, where there are no stand-ins: scripts/soak runs that without."""
    stand_in(monkeypatch, "flash-attn")
    report = gpu.report.Report(tmp_path / "found.json", {}, judged=False)
    gpu.running.check_train(report, "flash-attn", CPU, tmp_path, small=True, launch=False)
    assert report.failed() == []
    assert {each.name for each in report.checks} == {
        "train: learns",
        "train: goes on after it was stopped",
        "train: parameters stay in float32",
        "train: gradient checkpointing",
    }
    logs = report.figures["train"]
    assert [line["step"] for line in logs["stopped"]] == list(range(1, gpu.running.STEPS + 1))
    micro_batches, layers = 2 * gpu.running.STEPS, gpu.made.TINY.num_hidden_layers
    assert CALLS["flash-attn deterministic backward"] >= len(logs) * micro_batches * layers
    assert CALLS["flash-attn"] >= (len(logs) + 1) * micro_batches * layers, "forward passes are done again"
    assert CALLS["flash-attn backward"] == 0


@pytest.mark.soak
def test_it_runs_and_trains_where_packages_are_missing(tmp_path: Path) -> None:
    """In a process of its own, and in torchrun's, on an image without what is listed."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    path = tmp_path / "found.json"
    env = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env |= {"PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = [ROOT / "scripts/gpu_check", "--small", "--only", "train", "--json", path]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found["failed"] == []
    assert found["versions"]["torch"] == torch.__version__
    outcomes = {each["name"]: each["outcome"] for each in found["checks"]}
    launched = {"train: torchrun", "train: torchrun --fsdp"}
    assert {*launched, "train: goes on after it was stopped", "train"} < outcomes.keys()
    assert set(outcomes.values()) == {"passed"}
    assert found["train"]["stopped"] == sorted(found["train"]["stopped"], key=lambda line: line["step"])
    assert [line["loss"] for line in found["train"]["stopped"]] == [line["loss"] for line in found["train"]["plain"]]
    blocked = subprocess.run(
        [sys.executable, "-c", "import datasets"], env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert "ModuleNotFoundError" in blocked.stderr
