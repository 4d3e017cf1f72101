"""Our attention inside transformers' models, through their `AttentionInterface`.

With a function of ours no mask is built: where segments begin comes with the batch, for every layer. A model that asks
for something else than attention within segments is refused, because a mask or an option that is left out would train
something else without a word.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from pipeline.base.errors import ConfigError
from pipeline.base.words import first_line
from training.attention.backends import BACKENDS, choose_backend, varlen_attention
from training.attention.settings import UNLIMITED, UnsupportedAttentionError
from training.collator import PackedCollator

log = logging.getLogger(__name__)

MODEL_INPUTS = (
    "input_ids",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "logits_to_keep",
)
"""What of a batch a model is given."""

_REGISTERED_AS = {"flash-attn": "packed_fa2", "torch-varlen": "packed_varlen", "sdpa": "packed_segments"}
"""Names of backends in transformers, which takes every name with "flash" or "sdpa" in it for its own."""

_KNOWN_ARGUMENTS = {
    "cache_position",
    "cos_sin",
    "cu_seq_lens_k",
    "labels",
    "layer_idx",
    "logits_to_keep",
    "max_length_k",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "seq_idx",
    "sliding_window",
    "use_cache",
}
"""Arguments that models hand on to attention functions and that are read, or change nothing."""


def use_backend(model: PreTrainedModel, backend: str) -> bool:
    """Let a model compute attention by one of `attention.BACKENDS`, or auto; whether it does.

    A model that does not take attention from transformers' interface (falcon, bloom) keeps its own. Whether that, or a
    layer that is no attention, keeps samples apart is for `probe` to tell. auto is decided on the model's device, for a
    forward pass in half precision, which kernels want.

    Raises `ConfigError` for an unknown name.
    """
    if backend == "auto":
        backend, _ = _fastest(model, torch.bfloat16)
    if backend not in _REGISTERED_AS:
        backend, _ = choose_backend(backend, next(model.parameters()).device)
    return set_attention(model, _REGISTERED_AS[backend], _attention_by(backend))


def resolve_backend(model: PreTrainedModel, wanted: str, autocast: torch.dtype | None) -> str:
    """The backend to give `use_backend`, chosen for a model on its device; the log says which, and why.

    autocast: precision of the forward pass, where it is not that of the parameters.

    Raises `ConfigError` for one that does not exist, does not run, or has no effect on this model; of auto, the log
    says that it has none.
    """
    device = next(model.parameters()).device
    if not _has_effect(model):
        if wanted != "auto":
            choose_backend(wanted, device)
            raise ConfigError(f"{type(model).__name__} computes attention itself, so --backend {wanted} has no effect")
        log.warning("%s computes attention itself: no backend has an effect on it", type(model).__name__)
        return choose_backend(wanted, device)[0]
    name, why = _fastest(model, autocast) if wanted == "auto" else choose_backend(wanted, device)
    log.info("attention by %s on %s (%s)", name, device, why)
    return name


@cache
def _attention_by(backend: str) -> Callable[..., Any]:
    return partial(attention, backend=backend)  # always the same: compiled models are compiled for it


def set_attention(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> bool:
    """Let a model compute attention by a function with the signature of `attention`; whether it does.

    name: under which transformers knows it, without "flash" and "sdpa".
    """
    AttentionInterface.register(name, function)
    model.set_attn_implementation(name)
    return bool(model.config._attn_implementation == name)


def _has_effect(model: PreTrainedModel) -> bool:
    own = model.config._attn_implementation
    has_effect = use_backend(model, "sdpa")
    model.set_attn_implementation(own)
    return has_effect


def _fastest(model: PreTrainedModel, autocast: torch.dtype | None) -> tuple[str, str]:
    """(name, why): the fastest backend that runs where the model is, and that its layers can use."""
    device = next(model.parameters()).device
    *kernels, reference = BACKENDS.values()
    refused: list[str] = []
    for backend in kernels:
        reason = backend.why_not(device) or _refusal(model, backend.name, autocast)
        if reason is None:
            return backend.name, "; ".join(refused) or "the fastest"
        refused.append(f"{backend.name}: {reason}")
    return reference.name, "; ".join(refused)


def _refusal(model: PreTrainedModel, backend: str, autocast: torch.dtype | None) -> str | None:
    """Why two short samples do not go through a model's layers and back, as they do in training."""
    device = next(model.parameters()).device
    own, training = model.config._attn_implementation, model.training
    ids = torch.arange(7) % model.config.get_text_config().vocab_size
    row = {"input_ids": ids, "labels": ids, "position_ids": [0, 1, 2, 0, 1, 2, 3], "boundaries": [0, 3, 7]}
    batch = {
        name: each.to(device) if isinstance(each, Tensor) else each for name, each in PackedCollator()([row]).items()
    }
    model.train()  # with its dropout, which not all can do
    try:
        use_backend(model, backend)
        with torch.random.fork_rng(), torch.enable_grad(), embedded(model) as inputs:
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                logits = model(**model_inputs(model, batch)).logits
            torch.autograd.grad(logits.float().sum(), inputs[0])
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, ImportError) as error:
        return first_line(error)
    finally:
        model.train(training)
        model.set_attn_implementation(own)
    return None


@contextmanager
def embedded(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What comes out of a model's embedding, as leaves of autograd: gradients are computed of nothing else."""
    leaves: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        leaves.append(leaf)
        return leaf.clone()  # models may change it in place

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield leaves
    finally:
        handle.remove()


@contextmanager
def attention_alone(model: PreTrainedModel) -> Iterator[None]:
    """Attention of the model's own, for samples that run by themselves; afterwards it is what it was.

    transformers' sdpa drops softcap in some versions without a word, so that models with softcap are computed eagerly.
    """
    before = model.config._attn_implementation
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def model_inputs(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's forward takes of a batch of `PackedCollator`, without a cache.

    logits_to_keep: tokens whose logits are wanted. A model that is compiled as a whole is compiled again for each other
    number of them.  # shape: (num_logits,)
    """
    bare, _ = unwrapped(model)
    known = inspect.signature(bare.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    given = {name: batch[name] for name in MODEL_INPUTS if name in batch} | {"use_cache": False}
    return {name: value for name, value in given.items() if takes_all or name in known}


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """(the model inside DistributedDataParallel, DeepSpeed's engine, torch.compile or PEFT; whether it is compiled as a
    whole)."""
    is_compiled = False
    while True:
        if isinstance(inner := getattr(model, "module", None), nn.Module):
            model = inner
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model, is_compiled = inner, True
        elif callable(base := getattr(model, "get_base_model", None)):  # which holds the adapter
            model = base()
        else:
            return model, is_compiled or getattr(model, "_compiled_call_impl", None) is not None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    *,
    backend: str,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: attention within segments by a backend.

    query, key, value: # shape: (1, heads, num_tokens, head_dim)
    Returns (attended, None), attended of shape (1, num_tokens, heads, value_dim).

    Raises `UnsupportedAttentionError` for what it would have to ignore, or the backend cannot do.
    """
    where = type(module).__name__
    if cu_seq_lens_q is None or max_length_q is None:
        raise UnsupportedAttentionError(
            f"{where} is not told where segments begin: the model does not hand on cu_seq_lens, or the batch is not"
            " PackedCollator's"
        )
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise UnsupportedAttentionError(f"{where}: packs are one row, and there is no cache (use_cache=False)")
    _refuse_ignored(where, attention_mask, others)
    window = _window(module, max_length_q, others)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    attended = varlen_attention(
        q,
        k,
        v,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=bool(causal),
        window_size=UNLIMITED if window is None else (window - 1, 0),
        softcap=softcap or 0.0,
        sinks=s_aux,
        backend=backend,
    )
    return attended[None], None


def _refuse_ignored(where: str, attention_mask: Tensor | None, others: Mapping[str, Any]) -> None:
    if attention_mask is not None:
        raise UnsupportedAttentionError(f"{where} got an attention mask, which would be ignored")
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _KNOWN_ARGUMENTS)
    if unknown:
        raise UnsupportedAttentionError(f"{where} asks attention for {', '.join(unknown)}, which would be ignored")


def _window(module: nn.Module, max_length: int, others: Mapping[str, Any]) -> int | None:
    """Tokens that a layer sees at most, itself included; None for all of the segment."""
    config = getattr(module, "config", None)
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is not None and max_length > chunk and _layer_type(module, config) == "chunked_attention":
        raise UnsupportedAttentionError(
            f"{type(module).__name__} attends in chunks of {chunk} tokens, and a segment may have {max_length}: pack"
            f" with --max-length {chunk} at most"
        )
    if "sliding_window" in others:
        given: int | None = others["sliding_window"]
        return given
    window = getattr(config, "sliding_window", None)  # some models leave it to the mask
    if window is None:
        return None  # without a look at the layer's number, for which every layer would be compiled by itself
    return window if _layer_type(module, config) in (None, "sliding_attention") else None


def _layer_type(module: nn.Module, config: Any) -> str | None:
    """full_attention, sliding_attention, chunked_attention, …; None where the model has one kind of layer."""
    types = getattr(config, "layer_types", None)
    index = getattr(module, "layer_idx", None)
    return types[index] if types and index is not None and index < len(types) else None
