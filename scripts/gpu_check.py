"""The GPU's part of the tests: numerics of the attention kernels, probe, parity in bfloat16, and what packing is worth.

Nothing is read from disk, so that it runs where there is neither data nor `datasets`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pipeline.base.errors import ExitCode
from pipeline.base.words import aligned
from strategies import pack
from training.attention.backends import BACKENDS, choose_backend
from training.attention.settings import UNLIMITED, AttentionSettings
from training.checking.families import tiny_config
from training.checking.parity import parity
from training.checking.probe import CLEAN, LEAKS, REFUSES, probe
from training.command.tables import bench_table
from training.measuring.bench import Measurement, bench
from training.measuring.versions import machine

CAPACITY = 4096
MOST_ERROR = 0.02
"""Norm of a kernel's error relative to the float32 reference: bfloat16 has 8 bits."""

MUST_BE_CLEAN = ("llama", "mistral", "qwen3", "phi3", "olmo2", "opt")
MAY_REFUSE = ("gemma2", "gpt_oss")  # softcap and sinks are not for every kernel
MUST_BE_SEEN = ("falcon", "mamba")  # leaks

DATA = {
    # log of the median, log's spread, longest, part that is trained: as the datasets' tokens are spread
    "superni-like": (np.log(110), 0.75, 4096, 0.1),
    "gsm8k-like": (np.log(168), 0.37, 600, 0.65),
}


def kernels(device: torch.device, dtype: torch.dtype, small: bool) -> list[dict[str, Any]]:
    """Forward and backward of every backend that runs, beside the reference in float32."""
    errors = []
    draws = np.random.default_rng(0)
    for name, backend in BACKENDS.items():
        if backend.why_not(device) is not None:
            continue
        for heads, kv_heads, width in ((8, 8, 64), (8, 2, 64), (4, 4, 128), (16, 4, 128), (4, 2, 96)):
            for window in (UNLIMITED, (63, 0)):
                for trial in range(1 if small else 3):
                    lengths = np.concatenate([[1], draws.integers(1, 200 if small else 700, 6), [1, 2]])
                    settings = AttentionSettings(window_size=window)
                    error = _errors(name, lengths, (heads, kv_heads, width), settings, device, dtype, trial)
                    errors.append({"backend": name, "heads": [heads, kv_heads, width], "window": window[0], **error})
    return errors


def _errors(
    name: str,
    lengths: np.ndarray[Any, Any],
    shape: tuple[int, int, int],
    settings: AttentionSettings,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> dict[str, float]:
    heads, kv_heads, width = shape
    torch.manual_seed(seed)
    total = int(lengths.sum())
    made = [torch.randn(total, count, width, device=device, dtype=dtype) for count in (heads, kv_heads, kv_heads)]
    weights = torch.randn(total, heads, width, device=device)
    cu_seqlens = torch.tensor([0, *lengths.cumsum()], dtype=torch.int32, device=device)

    def computed(backend: str, precision: torch.dtype) -> list[torch.Tensor]:
        given = [each.detach().to(precision).requires_grad_() for each in made]
        query, key, value = given
        output = BACKENDS[backend].attend(query, key, value, cu_seqlens, int(lengths.max()), settings)
        gradients = torch.autograd.grad((output.float() * weights).sum(), given)
        return [output.detach().float(), *(each.float() for each in gradients)]

    ours, reference = computed(name, dtype), computed("sdpa", torch.float32)
    names = ("output", "query_gradient", "key_gradient", "value_gradient")
    return {
        each: float((one - other).norm() / other.norm())
        for each, one, other in zip(names, ours, reference, strict=True)
    }


def probes(device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Tiny models of some families, by every backend that runs."""
    findings = []
    for family in (*MUST_BE_CLEAN, *MAY_REFUSE, *MUST_BE_SEEN):
        for name, backend in BACKENDS.items():
            if backend.why_not(device) is None:
                torch.manual_seed(0)
                config = tiny_config(family)
                model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().to(device)
                findings.append({"family": family, "backend": name, **asdict(probe(model, name))})
    return findings


def llama(small: bool) -> PreTrainedModel:
    """A Llama of 349 million parameters, or a tiny one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256 if small else 32_000,
        hidden_size=64 if small else 1024,
        intermediate_size=128 if small else 2816,
        num_hidden_layers=2 if small else 24,
        num_attention_heads=4 if small else 16,
        num_key_value_heads=2 if small else 8,
        max_position_embeddings=CAPACITY,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def packed(kind: str, num_packs: int, vocabulary: int, capacity: int) -> list[dict[str, Any]]:
    """Full packs of random tokens, of samples as long as a dataset's."""
    center, spread, longest, trained = DATA[kind]
    draws = np.random.default_rng(0)
    drawn = np.exp(draws.normal(center, spread, num_packs * capacity // 60))
    lengths = np.clip(drawn, 4, min(longest, capacity)).astype(np.int32)
    plan = pack(lengths, capacity, "best-fit-decreasing")
    bounds = plan.pack_offsets
    chosen = draws.permutation(plan.num_packs)[:num_packs]
    return [
        _pack(lengths[plan.segment[bounds[each] : bounds[each + 1]]], draws, vocabulary, trained) for each in chosen
    ]


def _pack(lengths: np.ndarray[Any, Any], draws: np.random.Generator, vocabulary: int, trained: float) -> dict[str, Any]:
    boundaries = np.cumsum([0, *lengths]).astype(np.int32)
    ids = draws.integers(3, vocabulary, boundaries[-1]).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    of_segment = np.repeat(lengths, lengths)
    labels = np.where(positions >= np.maximum((1 - trained) * of_segment, 1), ids, -100).astype(np.int32)
    counts = np.add.reduceat(labels != -100, boundaries[:-1]).astype(np.int32)
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "boundaries": boundaries,
        "target_counts": counts,
    }


@dataclass
class Report:
    """What was measured, written after every step: a run that is cut short has measured that much."""

    path: Path | None
    figures: dict[str, Any]
    failed: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def keep(self, step: str, figures: Any) -> None:
        """Add a step's figures to the file."""
        self.figures[step] = figures
        self.figures["failed"], self.figures["seconds"] = self.failed, time.perf_counter() - self.started
        if self.path is not None:
            self.path.write_text(json.dumps(self.figures, indent=1) + "\n")
        print(f"[{self.figures['seconds']:6.1f} s] {step}", flush=True)


def check_kernels(report: Report, device: torch.device, dtype: torch.dtype, small: bool) -> None:
    """Compare every kernel with the reference."""
    errors = kernels(device, dtype, small)
    for each in errors:
        worst = max(value for key, value in each.items() if key not in ("backend", "heads", "window"))
        if not worst <= MOST_ERROR:
            report.failed.append(f"kernel {each['backend']} {each['heads']} window {each['window']}: {worst:.1e}")
    report.keep("kernels", errors)


def check_probes(report: Report, device: torch.device, dtype: torch.dtype) -> None:
    """Probe what is known of some families."""
    findings = probes(device, dtype)
    for each in findings:
        allowed = {CLEAN} if each["family"] in MUST_BE_CLEAN else {LEAKS, REFUSES}
        if each["family"] in MAY_REFUSE:
            allowed = {CLEAN, REFUSES}
        if each["verdict"] not in allowed:
            report.failed.append(f"probe {each['family']} by {each['backend']}: {each['verdict']}")
    report.keep("probe", findings)


def check_parity(report: Report, model: PreTrainedModel, backends: list[str], dtype: torch.dtype, small: bool) -> None:
    """Compare packs with their samples one by one."""
    comparisons = []
    for name in backends:
        rows = packed("superni-like", 1 if small else 2, model.config.vocab_size, 512 if small else CAPACITY)
        for comparison in parity(model.eval(), rows, name, dtype=dtype):
            comparisons.append(asdict(comparison))
            if not comparison.agrees:
                report.failed.append(f"parity {comparison.dtype} by {comparison.backend}")
    report.keep("parity", comparisons)


def measure(
    report: Report, model: PreTrainedModel, backends: list[str], dtype: torch.dtype, small: bool, rounds: int
) -> None:
    """Train every layout of the same samples."""
    measured: dict[str, Any] = {}
    for kind in DATA:
        for name in [each for each in backends if each != "sdpa"] or backends:
            capacity = 256 if small else CAPACITY
            rows = packed(kind, 4 if small else 16, model.config.vocab_size, capacity)
            measurement = Measurement(
                packs_per_forward=1 if small else 2, rounds=rounds, backend=name, autocast=dtype, capacity=capacity
            )
            figures = bench(model.train(), rows, measurement)
            measured[f"{kind}, {name}"] = figures
            report.keep("bench", measured)
            print(bench_table(machine(model.device) | figures), flush=True)


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), help="Keep the figures in this file.")
@click.option("--small", is_flag=True, help="Try the script itself, with a tiny model and few packs.")
@click.option("--rounds", default=3, show_default=True, help="Let the layouts take turns so often.")
def main(path: Path | None, small: bool, rounds: int) -> None:
    """Check and measure; exits with 4 if a check fails, with 2 where there is no GPU (unless --small)."""
    transformers.logging.set_verbosity_error()
    if not torch.cuda.is_available() and not small:
        print("there is no GPU; --small tries the script itself on a CPU", file=sys.stderr)
        sys.exit(2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    backends = {name: backend.why_not(device) or "runs" for name, backend in BACKENDS.items()}
    running = [name for name, state in backends.items() if state == "runs"]
    report = Report(path, machine(device) | {"small": small, "backends": backends})
    check_kernels(report, device, dtype, small)
    check_probes(report, device, dtype)
    model = llama(small)
    model.to(device)  # type: ignore[arg-type]
    check_parity(report, model, running, dtype, small)
    measure(report, model, running, dtype, small, rounds)
    print(aligned(list(backends.items())))
    ended = "; ".join(report.failed) or "all checks passed"
    print(f"auto chooses {choose_backend('auto', device)[0]}; {report.figures['seconds']:.0f} s; {ended}")
    sys.exit(ExitCode.CHECK if report.failed else ExitCode.DONE)


if __name__ == "__main__":
    main()
