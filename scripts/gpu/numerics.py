"""What has to be right: kernels beside a reference, models that keep samples apart, packs beside their samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gpu.made import CAPACITY, MEASURED, TINY, llama, packed
from gpu.report import Report
from pipeline.base.words import first_line
from training.attention.backends import BACKENDS
from training.attention.settings import UNLIMITED, AttentionSettings
from training.checking.families import tiny_config
from training.checking.parity import parity
from training.checking.probe import CLEAN, LEAKS, REFUSES, probe

MOST_ERROR = 0.02
"""Norm of a kernel's error relative to the float32 reference: bfloat16 has 8 bits."""

MUST_BE_CLEAN = ("llama", "mistral", "qwen3", "phi3", "olmo2", "opt", "mixtral")
MAY_REFUSE = ("gemma2", "gpt_oss")  # softcap and sinks are not for every kernel
MUST_BE_SEEN = ("falcon", "mamba")  # leaks

_HEADS = ((8, 8, 64), (8, 2, 64), (4, 4, 128), (16, 4, 128), (4, 2, 96), (4, 2, 36))
"""Query heads, heads of keys and values, head dimension; the last is no multiple of 8."""


def check_kernels(
    report: Report, backends: Sequence[str], device: torch.device, dtype: torch.dtype, *, small: bool
) -> None:
    """Compare every kernel with the reference in float32, forward and backward."""
    report.plan(f"kernel of {name}" for name in backends)
    found = []
    for name in backends:
        worst, wrong = 0.0, ""
        for case in _cases(small):
            where = f"{case['heads']}, window {case['window']}"
            try:
                errors = _errors(name, device, dtype, **case)
            except Exception as error:  # of this kernel alone
                wrong = wrong or f"{type(error).__name__} at {where}: {first_line(error)}"
                continue
            found.append({"backend": name, **case, **errors})
            off = float(np.max(list(errors.values())))  # which keeps NaN
            if not off <= MOST_ERROR:
                wrong = wrong or f"off by {off:.1e} at {where}"
            worst = float(np.max([worst, off]))
        report.check(f"kernel of {name}", not wrong, worst, f"at most {MOST_ERROR}", wrong)
    report.keep("kernels", found)


def _cases(small: bool) -> Iterator[dict[str, Any]]:
    draws = np.random.default_rng(0)
    for heads in _HEADS[1::4] if small else _HEADS:
        for window in (UNLIMITED[0], 63):
            for seed in range(1 if small else 3):
                lengths = [1, *draws.integers(1, 120 if small else 700, 4 if small else 6).tolist(), 1, 2]
                yield {"heads": list(heads), "window": window, "lengths": lengths, "seed": seed}


def _errors(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    heads: Sequence[int],
    window: int,
    lengths: Sequence[int],
    seed: int,
) -> dict[str, float]:
    num_heads, kv_heads, width = heads
    torch.manual_seed(seed)
    total = sum(lengths)
    made = [torch.randn(total, count, width, device=device, dtype=dtype) for count in (num_heads, kv_heads, kv_heads)]
    weights = torch.randn(total, num_heads, width, device=device)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    settings = AttentionSettings(window_size=UNLIMITED if window < 0 else (window, 0))

    def computed(backend: str, precision: torch.dtype) -> list[torch.Tensor]:
        given = [each.detach().to(precision).requires_grad_() for each in made]
        query, key, value = given
        output = BACKENDS[backend].attend(query, key, value, cu_seqlens, max(lengths), settings)
        gradients = torch.autograd.grad((output.float() * weights).sum(), given)
        return [output.detach().float(), *(each.float() for each in gradients)]

    ours, reference = computed(name, dtype), computed("sdpa", torch.float32)
    names = ("output", "query_gradient", "key_gradient", "value_gradient")
    return {
        each: float((one - other).norm() / other.norm())
        for each, one, other in zip(names, ours, reference, strict=True)
    }


def check_probe(report: Report, backends: Sequence[str], device: torch.device, dtype: torch.dtype) -> None:
    """Probe what is known of some families, in the precision of training."""
    cases = [(family, name) for family in (*MUST_BE_CLEAN, *MAY_REFUSE, *MUST_BE_SEEN) for name in backends]
    report.plan(f"probe of {family} by {name}" for family, name in cases)
    findings = []
    for family, name in cases:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32).eval().to(device)
        finding = probe(model, name, autocast=dtype)
        findings.append({"family": family, "backend": name, **asdict(finding)})
        allowed = {CLEAN} if family in MUST_BE_CLEAN else {LEAKS, REFUSES}
        if family in MAY_REFUSE:
            allowed = {CLEAN, REFUSES}
        said = f"{finding.verdict}{f' at {finding.layer}' if finding.layer else ''} {finding.message or ''}".strip()
        right = finding.verdict in allowed
        report.check(f"probe of {family} by {name}", right, finding.verdict, " or ".join(sorted(allowed)), said)
    report.keep("probe", findings)


def check_parity(
    report: Report, backends: Sequence[str], device: torch.device, dtype: torch.dtype, *, small: bool
) -> None:
    """Compare packs with their samples one by one."""
    model = llama(TINY if small else MEASURED, device).eval()
    rows = packed("superni-like", 1 if small else 2, model.config.vocab_size, 256 if small else CAPACITY)
    report.plan(f"parity by {name}" for name in backends)
    comparisons = []
    for name in backends:
        try:
            found = parity(model, rows, name, dtype=dtype)
        except Exception as error:  # of this backend alone
            report.absent(f"parity by {name}", f"{type(error).__name__}: {first_line(error)}")
            continue
        comparisons += [asdict(each) for each in found]
        differ = [
            f"{each.dtype}: losses by {each.loss_difference:.1e} of {each.most_loss:.1e}, gradients by"
            f" {each.gradient_difference:.1e} of {each.most_gradient:.1e}, kernel by {each.kernel_difference}"
            for each in found
            if not each.agrees
        ]
        report.check(f"parity by {name}", not differ, reason="; ".join(differ))
    report.keep("parity", comparisons)
