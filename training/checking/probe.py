"""Does one sample see another? Asked of the model itself.

Several segments stand in one row, as they do in training. Then

1. the tokens of one segment are changed: the logits of all others must stay as they are; as must, when the last token
   alone is changed, those of the tokens before it;
2. the logits of one segment are differentiated: no other segment's embeddings may have a part in them;
3. every segment runs alone, with the model's own attention: its logits must be those it has in the row.

The first two find leaks, whatever layer they come from: attention, a convolution, a recurrent state. The third finds
what is not a leak and still wrong: positions that do not restart, a window that is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.words import first_line
from training.attention.backends import BACKENDS
from training.attention.interface import attention_alone, model_inputs, use_backend
from training.collator import PackedCollator
from training.step import precision, to_device

SEGMENTS = (6, 1, 9, 12)
"""Tokens of each segment of the row. The third is the one whose gradient is followed: others stand on either side."""

_WATCHED = 2

CLEAN, LEAKS, AHEAD, DIFFERS, REFUSES = "clean", "leaks", "looks ahead", "differs", "refuses"

_MOST_LOGITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Change of logits, as a part of their standard deviation, that is rounding."""

_MOST_GRADIENT = 1e-6
"""Part of the gradient, in others, that is rounding: it is exactly zero where samples are kept apart."""

_MOST_ALONE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Difference to a segment that runs alone, as a part of the logits' standard deviation, that is rounding."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one way to give a model packs comes to."""

    way: str
    """What the model was given, and what computed its attention."""

    verdict: str
    """clean, leaks (a sample sees another), looks ahead (a token sees what comes after it), differs (neither, but
    samples are not as if they were alone) or refuses (an error)."""

    layer: str | None = None
    """Type of the layer that is the first to leak or to look ahead."""

    logits: float | None = None
    """Largest change of another segment's logits, as a part of their standard deviation."""

    earlier: float | None = None
    """Largest change of earlier tokens' logits with the last token, as a part of their standard deviation."""

    gradient: float | None = None
    """Norm of the gradient in other segments' embeddings, as a part of that in the segment's own."""

    alone: float | None = None
    """Largest difference to segments that run alone, as a part of the logits' standard deviation."""

    message: str | None = None
    """What the model said when it refused."""


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How a model is given a row of segments."""

    name: str
    backend: str | None = None
    """Who computes attention; the model's own if None."""

    keep: tuple[str, ...] | None = None
    """What of the batch is given; what the model takes of it, if None."""

    more: Mapping[str, Any] = field(default_factory=dict)


def probe(model: PreTrainedModel, backend: str, *, seed: int = 0, autocast: torch.dtype | None = None) -> Finding:
    """Probe a model, in eval mode, with our batch and a backend of `attention.BACKENDS`; it keeps its own attention.

    autocast: precision of the forward pass, where it is not that of the parameters.
    """
    with precision(next(model.parameters()).device, autocast):
        return _find(model, _Way(name=f"our batch, {backend}", backend=backend), seed)


def probe_ways(model: PreTrainedModel, *, seed: int = 0) -> list[Finding]:
    """What becomes of a model in other ways: by positions alone, with two usual mistakes, by each backend."""
    device = next(model.parameters()).device
    positions = ("input_ids", "position_ids")
    ones = torch.ones(1, sum(SEGMENTS), dtype=torch.long, device=device)
    ways = [
        _Way(name="positions", keep=positions, more={"use_cache": False}),
        _Way(name="positions, use_cache", keep=positions, more={"use_cache": True}),
        _Way(name="positions, all-ones mask", keep=positions, more={"use_cache": False, "attention_mask": ones}),
    ]
    running = [name for name, backend in BACKENDS.items() if backend.why_not(device) is None]
    ways += [_Way(name=f"our batch, {name}", backend=name) for name in running]
    return [_find(model, way, seed) for way in ways]


_ALONE = _Way(name="alone", keep=("input_ids", "position_ids"), more={"use_cache": False})


def _find(model: PreTrainedModel, way: _Way, seed: int) -> Finding:
    device = next(model.parameters()).device
    tokens = _random_tokens(model, sum(SEGMENTS) + max(SEGMENTS), seed).to(device)
    row, others = tokens[: sum(SEGMENTS)], tokens[sum(SEGMENTS) :]
    own = model.config._attn_implementation
    try:
        with torch.no_grad(), attention_alone(model):
            alone = torch.cat(
                [_logits(model, _ALONE, part[None], [len(part)]) for part in torch.split(row, list(SEGMENTS))]
            )
        if way.backend is not None:
            use_backend(model, way.backend)
        return _compared(model, way, row, others, alone)
    except (TypeError, ValueError, RuntimeError, IndexError, ImportError) as error:
        return Finding(way=way.name, verdict=REFUSES, message=first_line(error))
    finally:
        model.set_attn_implementation(own)


def _compared(model: PreTrainedModel, way: _Way, row: Tensor, others: Tensor, alone: Tensor) -> Finding:
    device, dtype = row.device.type, next(model.parameters()).dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    bounds = list(pairwise([0, *accumulate(SEGMENTS)]))
    with torch.no_grad(), _recorded(model) as before:
        logits = _logits(model, way, row[None], SEGMENTS)
    spread = float(logits.float().std())
    last = bounds[-1][1]
    changes, layer = [], None
    for begin, end in [*bounds, (last - 1, last)]:
        changed = row.clone()
        changed[begin:end] = others[: end - begin]
        with torch.no_grad(), _recorded(model) as after:
            difference = (_logits(model, way, changed[None], SEGMENTS) - logits).float().abs()
        difference[begin:end] = 0
        changes.append(float(difference.max()) / spread)
        if changes[-1] > _MOST_LOGITS[dtype] and layer is None:
            layer = _first_to_leak(before, after, slice(begin, end), _MOST_LOGITS[dtype])
    most, earlier = max(changes[:-1]), changes[-1]
    gradient = _gradient_in_others(model, way, row, slice(*bounds[_WATCHED]))
    difference_alone = float((logits - alone).float().abs().max()) / spread
    if most > _MOST_LOGITS[dtype] or gradient > _MOST_GRADIENT:
        verdict = LEAKS
    elif earlier > _MOST_LOGITS[dtype]:
        verdict = AHEAD
    else:
        verdict = DIFFERS if difference_alone > _MOST_ALONE[dtype] else CLEAN
    return Finding(
        way=way.name,
        verdict=verdict,
        layer=layer,
        logits=most,
        earlier=earlier,
        gradient=gradient,
        alone=difference_alone,
    )


def _logits(model: PreTrainedModel, way: _Way, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """# shape: (num_tokens, vocabulary)"""
    tokens = ids[0].tolist()
    packed = {
        "input_ids": tokens,
        "labels": tokens,
        "position_ids": [position for length in lengths for position in range(length)],
        "boundaries": [0, *accumulate(lengths)],
    }
    batch = to_device(PackedCollator(seq_idx=True)([packed]), ids.device)
    given = model_inputs(model, batch) if way.keep is None else {name: batch[name] for name in way.keep}
    logits: Tensor = model(**given, **way.more).logits[0]
    return logits


@dataclass(frozen=True)
class _LayerPass:
    """A layer's part in a forward pass."""

    layer: str
    inputs: list[Tensor]
    outputs: list[Tensor]


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_LayerPass]]:
    """What goes through the layers, in the order in which they finish: inner ones before those around them."""
    passed: list[_LayerPass] = []

    def keep(layer: nn.Module, arguments: Any, named: dict[str, Any], returned: Any) -> None:
        passed.append(_LayerPass(type(layer).__name__, _by_token([*arguments, *named.values()]), _by_token([returned])))

    handles = [module.register_forward_hook(keep, with_kwargs=True) for module in model.modules()]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def _by_token(values: Sequence[Any]) -> list[Tensor]:
    """Copies of the tensors that have a row for each token.  # shapes: (num_tokens, …)"""
    num_tokens = sum(SEGMENTS)
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, tuple | list):
            tensors += _by_token(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            if value.ndim > 1 and value.shape[:2] == (1, num_tokens):
                tensors.append(value.detach()[0].clone())
            elif value.ndim > 1 and value.shape[0] == num_tokens:
                tensors.append(value.detach().clone())
    return tensors


def _first_to_leak(before: list[_LayerPass], after: list[_LayerPass], changed: slice, most: float) -> str | None:
    """The first layer that what is outside of the changed tokens enters as it did before, and leaves otherwise."""

    def same(tensors: list[Tensor], others: list[Tensor]) -> bool:
        for tensor, other in zip(tensors, others, strict=True):
            difference = (tensor - other).float().abs()
            difference[changed] = 0
            if float(difference.max()) > most * float(tensor.float().std()):
                return False
        return True

    for one, other in zip(before, after, strict=True):
        if same(one.inputs, other.inputs) and not same(one.outputs, other.outputs):
            return one.layer
    return None


def _random_tokens(model: PreTrainedModel, num_tokens: int, seed: int) -> torch.Tensor:
    """Ids that stand for words: none that the configuration gives a meaning, and none twice while there are others, so
    that one put for another is always a change.  # shape: (num_tokens,)"""
    config = model.config.get_text_config()
    special: set[int] = set()
    for key, value in {**model.config.to_dict(), **config.to_dict()}.items():
        if key.endswith(("token_id", "token_index")):
            special.update(value if isinstance(value, list) else [] if value is None else [value])
    ids = torch.tensor([each for each in range(min(config.vocab_size, 1 << 16)) if each not in special])
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return ids[order.repeat(-(-num_tokens // len(ids)))[:num_tokens]]


def _gradient_in_others(model: PreTrainedModel, way: _Way, row: Tensor, watched: slice) -> float:
    """Norm of the gradient of one segment's logits in the others' embeddings, as a part of that in its own."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        embedded.append(leaf)
        return leaf.clone()  # models may change it in place

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = _logits(model, way, row[None], SEGMENTS)[watched].float()
            (logits * torch.linspace(-1, 1, logits.shape[1], device=logits.device)).sum().backward()
    finally:
        handle.remove()
        model.zero_grad(set_to_none=True)
    squares = torch.stack([each.grad.double().square().sum((0, 2)) for each in embedded if each.grad is not None]).sum(
        0
    )
    own = float(squares[watched].sum())
    squares[watched] = 0
    return (float(squares.sum()) / own) ** 0.5 if own else 0.0
