"""What a step costs: floating-point operations, and the part of the device's peak that they are."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Peaks:
    """Operations a second of matrix products, in 10^12, without sparsity."""

    half: float
    """bfloat16 and float16, added up in float32."""

    tf32: float
    single: float


_HOPPER = _Peaks(989.4, 494.7, 66.9)
_HOPPER_NVL = _Peaks(835.5, 417.5, 60.0)
_AMPERE = _Peaks(312.0, 156.0, 19.5)

_PEAKS = {
    "NVIDIA A10": _Peaks(125.0, 62.5, 31.2),
    "NVIDIA A10G": _Peaks(70.0, 35.0, 31.5),
    "NVIDIA A30": _Peaks(165.0, 82.0, 10.3),
    "NVIDIA A40": _Peaks(149.7, 74.8, 37.4),
    "NVIDIA A100 80GB PCIe": _AMPERE,
    "NVIDIA A100-PCIE-40GB": _AMPERE,
    "NVIDIA A100-SXM4-40GB": _AMPERE,
    "NVIDIA A100-SXM4-80GB": _AMPERE,
    "NVIDIA A800-SXM4-80GB": _AMPERE,
    "NVIDIA B200": _Peaks(2250.0, 1125.0, 75.0),
    "NVIDIA GB200": _Peaks(2500.0, 1250.0, 80.0),
    "NVIDIA GeForce RTX 3090": _Peaks(71.0, 35.6, 35.6),
    "NVIDIA GeForce RTX 4090": _Peaks(165.2, 82.6, 82.6),
    "NVIDIA GH200 480GB": _HOPPER,
    "NVIDIA H20": _Peaks(148.0, 74.0, 44.0),
    "NVIDIA H100 80GB HBM3": _HOPPER,  # SXM
    "NVIDIA H100 NVL": _HOPPER_NVL,
    "NVIDIA H100 PCIe": _Peaks(756.0, 378.0, 51.2),
    "NVIDIA H200": _HOPPER,
    "NVIDIA H200 NVL": _HOPPER_NVL,
    "NVIDIA H800": _HOPPER,
    "NVIDIA L4": _Peaks(121.0, 60.5, 30.3),
    "NVIDIA L40": _Peaks(181.0, 90.5, 90.5),
    "NVIDIA L40S": _Peaks(362.0, 183.0, 91.6),
    "NVIDIA RTX 6000 Ada Generation": _Peaks(364.2, 182.1, 91.1),
    "NVIDIA RTX A6000": _Peaks(154.8, 77.4, 38.7),
}
"""By the whole name that a device gives itself; from the makers' datasheets, halved where they count sparsity."""


def peak_flops(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """Operations a second that a device can do at most; None on a CPU, and where that is not known.

    dtype: of matrix products; None for float32, which torch may compute as TF32.
    """
    return None if device.type != "cuda" else peak_of(torch.cuda.get_device_name(device), dtype)


def peak_of(name: str, dtype: torch.dtype | None) -> float | None:
    """The same of a device by its name, which has to be a known one in every letter: an L40 is no L4."""
    peaks = _PEAKS.get(name)
    if peaks is None:
        return None
    if dtype in (torch.bfloat16, torch.float16):
        return peaks.half * 1e12
    if dtype not in (None, torch.float32):
        return None
    matmul: Any = torch.backends.cuda.matmul  # torch's types do not know its precision
    return (peaks.tf32 if matmul.fp32_precision == "tf32" else peaks.single) * 1e12


def why_no_mfu(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why nobody can tell which part of the device's peak is reached; None where that can be told."""
    if device.type != "cuda":
        return f"no peak is known of a {device.type}"
    if peak_flops(device, dtype) is not None:
        return None
    precision = str(dtype or torch.float32).removeprefix("torch.")
    return f"no peak is known of {torch.cuda.get_device_name(device)!r} in {precision}"


def training_flops(model: PreTrainedModel, num_tokens: int, num_targets: int, sum_length_squared: float) -> float:
    """Operations that one forward and backward pass needs (Kaplan et al., 2020, appendix 2.1).

    What is recomputed does not count, nor do logits of tokens that no target stands behind.

    sum_length_squared: over segments; causal attention computes half of each square.

    6 for each parameter in a matrix product and token, 4 if it is frozen, and 6 for each layer, width and pair of
    tokens. Of experts, only those that a token passes through should count; here all do, so mixtures of experts come
    out too high.
    """
    config = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    of_head = 0 if head is None else _per_token(head)
    of_lookup = 0 if model.config.tie_word_embeddings else _per_token(embedding)
    others = _per_token(model) - of_lookup - of_head
    width: int = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs: float = config.num_hidden_layers * width * sum_length_squared
    return float(others * num_tokens + of_head * num_targets + 6 * pairs)


def _per_token(module: nn.Module) -> int:
    """Operations of a module's matrix products, forward and backward, for each token."""
    return sum(each.numel() * (6 if each.requires_grad else 4) for each in module.parameters() if each.ndim > 1)


def peak_memory(device: torch.device) -> int:
    """Most bytes that tensors took on a CUDA device since the last reset; on a CPU, that the process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
