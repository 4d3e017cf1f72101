"""What a step costs: floating-point operations, and the part of the device's peak that they are."""

from __future__ import annotations

import resource

import torch
from transformers import PreTrainedModel

_PEAK_BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
"""Dense bfloat16 operations a second, by the makers' datasheets; the first name that occurs in a device's counts."""


def peak_flops(device: torch.device) -> float | None:
    """Operations a second that a device can do at most, in bfloat16; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_BF16.items() if part in name), None)


def training_flops(model: PreTrainedModel, num_tokens: int, num_targets: int, sum_length_squared: float) -> float:
    """Operations that one forward and backward pass needs (Kaplan et al., 2020, appendix 2.1).

    What is recomputed does not count, nor do logits of tokens that no target stands behind.

    sum_length_squared: over segments; causal attention computes half of each square.

    6 for each parameter in a matrix product and token, and 6 for each layer, width and pair of tokens. Of experts, only
    those that a token passes through should count; here all do, so mixtures of experts come out too high.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    of_head = 0 if head is None else sum(each.numel() for each in head.parameters() if each.ndim > 1)
    embedding = model.get_input_embeddings()
    of_lookup = 0 if model.config.tie_word_embeddings else sum(each.numel() for each in embedding.parameters())
    others = sum(each.numel() for each in model.parameters() if each.ndim > 1) - of_lookup - of_head
    width: int = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    pairs: float = config.num_hidden_layers * width * sum_length_squared
    return 6.0 * (others * num_tokens + of_head * num_targets + pairs)


def peak_memory(device: torch.device) -> int:
    """Most bytes that tensors took on a CUDA device since the last reset; on a CPU, that the process ever took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
