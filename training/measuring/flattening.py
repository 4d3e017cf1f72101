"""Who computes attention in the layouts of transformers: the same kernels as in ours, where that is possible."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.utils.import_utils import is_flash_attn_2_available

from training.attention.interface import attention, set_attention
from training.attention.settings import UnsupportedAttentionError
from training.options import FLATTENED


def attend_as_transformers(model: PreTrainedModel, layout: str, backend: str) -> str:
    """Let a model compute a layout of transformers; returns whose kernels do.

    With flash-attn that is transformers' own `flash_attention_2`. Where transformers has no such path, because the
    package is not there, flattened batches go to the kernels of `backend` all the same, which get what that path would
    give them; whatever is left the model computes by itself, and then flattened batches have a mask of T × T.
    """
    if backend == "flash-attn" and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
        return backend
    if backend != "sdpa" and layout in FLATTENED:
        name = f"flattened_{backend.replace('-', '_').replace('flash', 'fa')}"
        if not set_attention(model, name, partial(_attention_of_flattened, backend=backend)):
            raise UnsupportedAttentionError(f"{type(model).__name__} computes attention itself")
        return backend
    return f"transformers' {model.config._attn_implementation}"


def _attention_of_flattened(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers does it: told where samples begin, or finding it in the positions, in each layer, which waits for
    the device."""
    if cu_seq_lens_q is None:
        if position_ids is None:
            raise UnsupportedAttentionError(f"{type(module).__name__} is given neither boundaries nor positions")
        (cu_seq_lens_q, _), (longest, _) = prepare_fa_kwargs_from_position_ids(position_ids)
        max_length_q = int(longest)
    return attention(
        module,
        query,
        key,
        value,
        attention_mask,
        cu_seq_lens_q=cu_seq_lens_q,
        max_length_q=max_length_q,
        position_ids=position_ids,
        **others,
    )
