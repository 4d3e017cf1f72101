"""Does one sample see another? Asked of the model itself.

Several segments stand in one row, as they do in training. Then

1. the tokens of one segment are changed: the logits of all others must stay as they are; as must, when the last token
   alone is changed, those of the tokens before it;
2. the logits of one segment are differentiated: no other segment's embeddings may have a part in them; and of all but
   its last token: that one's may have none;
3. every segment runs alone, with the model's own attention: its logits must be those it has in the row;
4. every call of a backend's kernel, forward and backward, is compared with the reference.

The first two find leaks, whatever layer they come from: attention, a convolution, a recurrent state. The third finds
what is not a leak and still wrong: positions that do not restart, a window that is not kept.

Where logits are compared, the reference computes in float32, because in half precision no bound would tell a fault from
rounding: a router chooses another expert for a last bit. What does not depend on rounding is asked in the precision of
training, of the backend that trains: a gradient is exactly zero or not, and a kernel has its own error and no more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.base.words import first_line
from training.attention.backends import BACKENDS
from training.attention.interface import (
    attention_alone,
    embedded,
    model_inputs,
    use_backend,
)
from training.attention.settings import UnsupportedAttentionError
from training.checking.exact import exact_float32
from training.checking.kernels import MOST_KERNEL, compared_with_reference
from training.checking.layers import first_to_leak, recorded
from training.collator import PackedCollator
from training.plan import precision, to_device

SEGMENTS = (6, 1, 9, 12)
"""Tokens of each segment of the row. The third is the one whose gradient is followed: others stand on either side."""

_WATCHED = 2

CLEAN, LEAKS, AHEAD, DIFFERS, REFUSES = "clean", "leaks", "looks ahead", "differs", "refuses"

_MOST_LOGITS = 1e-4
"""Change of logits in float32, as a part of their standard deviation, that is rounding."""

_MOST_GRADIENT = 1e-6
"""Part of the gradient, in others, that is rounding: it is exactly zero where samples are kept apart."""

_MOST_ALONE = 1e-3
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
    """Type of the layer that is the first to leak or to look ahead, or whose kernel is wrong."""

    logits: float | None = None
    """Largest change of another segment's logits, as a part of their standard deviation."""

    earlier: float | None = None
    """Largest change of earlier tokens' logits with the last token, as a part of their standard deviation."""

    gradient: float | None = None
    """Norm of the gradient in other segments' embeddings, as a part of that in the segment's own."""

    ahead: float | None = None
    """Norm of the gradient of a segment's other logits in its last token's embedding, as a part of that in its own."""

    alone: float | None = None
    """Largest difference to segments that run alone, as a part of the logits' standard deviation."""

    kernel: float | None = None
    """Largest error of the backend's kernel, forward or backward, relative to the result; None of the reference."""

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

    autocast: precision of the forward pass, where it is not that of the parameters. If these are not in float32, a copy
        that is takes twice their memory meanwhile.
    """
    return _find(model, _Way(name=f"our batch, {backend}", backend=backend), seed, autocast)


def probe_ways(model: PreTrainedModel, *, seed: int = 0, autocast: torch.dtype | None = None) -> list[Finding]:
    """What becomes of a model in other ways: by positions alone, with two usual mistakes, by each backend.

    autocast: precision of the forward pass by the backends that have kernels, which want bfloat16 or float16.
    """
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
    return [_find(model, way, seed, None if way.backend in (None, "sdpa") else autocast) for way in ways]


_ALONE = _Way(name="alone", keep=("input_ids", "position_ids"), more={"use_cache": False})


def _find(model: PreTrainedModel, way: _Way, seed: int, autocast: torch.dtype | None) -> Finding:
    parameter = next(model.parameters())
    tokens = _random_tokens(model, sum(SEGMENTS) + max(SEGMENTS), seed).to(parameter.device)
    row, others = tokens[: sum(SEGMENTS)], tokens[sum(SEGMENTS) :]
    own = model.config._attn_implementation
    try:
        used = _as_trained(model, way, row, autocast)
        model.set_attn_implementation(own)
        exact = model if parameter.dtype == torch.float32 else copy.deepcopy(model).float()
        with exact_float32():
            compared = _compared(exact, way, row, others)
    except (TypeError, ValueError, RuntimeError, IndexError, ImportError) as error:
        return Finding(way=way.name, verdict=REFUSES, message=first_line(error) + _way_out(model, row, error, autocast))
    finally:
        model.set_attn_implementation(own)
    return _judged(way, used, compared)


def _way_out(model: PreTrainedModel, row: Tensor, error: Exception, autocast: torch.dtype | None) -> str:
    """What to do about an error of a model that only autocast brings about."""
    if autocast is None or isinstance(error, UnsupportedAttentionError):
        return ""
    try:
        _as_trained(model, _Way(name="float32", backend="sdpa"), row, None)
    except (TypeError, ValueError, RuntimeError, IndexError, ImportError):
        return ""
    return " (under autocast alone: --dtype float32 goes, by the backend sdpa)"


def _judged(way: _Way, used: _Gradients, compared: _Logits) -> Finding:
    kernel, layer = max(((error, layer) for layer, error in used.kernels.items()), default=(None, None))
    wrong = kernel is not None and not kernel <= MOST_KERNEL
    if compared.others > _MOST_LOGITS or used.others > _MOST_GRADIENT:
        verdict = LEAKS
    elif compared.earlier > _MOST_LOGITS or used.ahead > _MOST_GRADIENT:
        verdict = AHEAD
    else:
        verdict = DIFFERS if wrong or not compared.alone <= _MOST_ALONE else CLEAN
    return Finding(
        way=way.name,
        verdict=verdict,
        layer=compared.layer or (layer if wrong else None),
        logits=compared.others,
        earlier=compared.earlier,
        gradient=used.others,
        ahead=used.ahead,
        alone=compared.alone,
        kernel=kernel,
    )


@dataclass(frozen=True)
class _Logits:
    """Differences of logits in float32, by the reference, as parts of their standard deviation."""

    others: float
    earlier: float
    alone: float
    layer: str | None


def _compared(model: PreTrainedModel, way: _Way, row: Tensor, others: Tensor) -> _Logits:
    with torch.no_grad(), attention_alone(model):
        alone = torch.cat(
            [_logits(model, _ALONE, part[None], [len(part)]) for part in torch.split(row, list(SEGMENTS))]
        )
    if way.backend is not None:
        use_backend(model, "sdpa")
    with torch.no_grad(), recorded(model, sum(SEGMENTS)) as before:
        logits = _logits(model, way, row[None], SEGMENTS)
    spread = float(logits.float().std())
    bounds = list(pairwise([0, *accumulate(SEGMENTS)]))
    last = bounds[-1][1]
    changes, layer = [], None
    for begin, end in [*bounds, (last - 1, last)]:
        changed = row.clone()
        changed[begin:end] = others[: end - begin]
        with torch.no_grad(), recorded(model, sum(SEGMENTS)) as after:
            difference = (_logits(model, way, changed[None], SEGMENTS) - logits).float().abs()
        difference[begin:end] = 0
        changes.append(float(difference.max()) / spread)
        if changes[-1] > _MOST_LOGITS and layer is None:
            layer = first_to_leak(before, after, slice(begin, end), _MOST_LOGITS)
    difference_alone = float((logits - alone).float().abs().max()) / spread
    return _Logits(max(changes[:-1]), changes[-1], difference_alone, layer)


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


@dataclass(frozen=True)
class _Gradients:
    """What a backward pass says in the precision of training, by the backend that trains."""

    others: float
    ahead: float
    kernels: dict[str, float]
    """The largest error of a kernel, for each type of layer that called it."""


def _as_trained(model: PreTrainedModel, way: _Way, row: Tensor, autocast: torch.dtype | None) -> _Gradients:
    watched = slice(*list(pairwise([0, *accumulate(SEGMENTS)]))[_WATCHED])
    comparison: AbstractContextManager[dict[str, float]] = nullcontext({})
    if way.backend == "sdpa":
        use_backend(model, way.backend)
    elif way.backend is not None:
        comparison = compared_with_reference(model, way.backend)
    with comparison as kernels, torch.enable_grad(), embedded(model) as inputs:
        with precision(row.device, autocast):
            logits = _logits(model, way, row[None], SEGMENTS)[watched].float()
        weighted = logits * torch.linspace(-1, 1, logits.shape[1], device=row.device)

        def squares(of: Tensor) -> Tensor:
            """The squared gradient in the embedding of each token.  # shape: (num_tokens,)"""
            gradients = torch.autograd.grad(of.sum(), inputs, retain_graph=True, allow_unused=True)
            return sum((each.double().square().sum((0, 2)) for each in gradients if each is not None), torch.zeros(()))

        every, earlier = squares(weighted), squares(weighted[:-1])
    own, last = float(every[watched].sum()), watched.stop - 1
    every[watched] = 0
    ahead, before_last = float(earlier[last]), float(earlier[watched.start : last].sum())
    return _Gradients(
        others=(float(every.sum()) / own) ** 0.5 if own else 0.0,
        ahead=(ahead / before_last) ** 0.5 if before_last else 0.0,
        kernels=kernels,
    )
