"""How many segments a forward pass may have before FlashAttention's kernels write past their memory.

Its backward pass keeps gradients of queries in rows of 128 tokens for each segment and counts their numbers in 32 bits:
(tokens + 128 · segments) · heads · head dimension, rounded up to 32, has to stay below 2³¹. Beyond it a run crashes, or
goes on with damaged gradients.
"""

from __future__ import annotations

from typing import Any

from training.shapes import BLOCK

_MOST_NUMBERS = 2**31
_ROUNDED_TO = 32
_HEADS = ("num_attention_heads", "swa_num_attention_heads", "num_attention_heads_per_layer")
_DIMENSIONS = ("head_dim", "global_head_dim", "swa_head_dim", "qk_head_dim", "v_head_dim")


def numbers_per_token(config: Any) -> int:
    """Numbers that the queries of a token have in a layer's kernel: of the widest layer, each head rounded up.

    config: of a model, as transformers has it.
    """
    config = config.get_text_config()
    heads = max(_numbers(config, _HEADS), default=1)
    dimensions: list[int] = [*_numbers(config, _DIMENSIONS), -(-config.hidden_size // heads)]
    if rotary := getattr(config, "qk_rope_head_dim", None):
        dimensions.append(rotary + config.qk_nope_head_dim)
    return heads * -(-max(dimensions) // _ROUNDED_TO) * _ROUNDED_TO


def most_segments(config: Any, num_tokens: int) -> int:
    """Segments that a forward pass of so many tokens may have; below 1 if there may not be so many tokens.

    config: of a model, as transformers has it.
    """
    return ((_MOST_NUMBERS - 1) // numbers_per_token(config) - num_tokens) // BLOCK


def _numbers(config: Any, names: tuple[str, ...]) -> list[int]:
    """What a configuration has of some numbers, which may be lists by layer."""
    values = [getattr(config, name, None) for name in names]
    return [number for value in values for number in (value if isinstance(value, list | tuple) else [value]) if number]
