"""A model divided over the ranks by FSDP2: each keeps its part of every weight, of its gradient and of Adam's moments.

The weights of a layer are gathered when it computes, forward and backward, and given up when it has. What is read and
written is whole: the first rank loads the model and gives the others their parts, layer by layer; checkpoints and the
trained model are gathered tensor by tensor. So a run goes on with any number of ranks, and without FSDP2.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from pipeline.base.digests import hash_json
from pipeline.base.errors import ConfigError
from training.place import Place
from training.shapes import layers_of

log = logging.getLogger(__name__)


def divide(model: PreTrainedModel, place: Place) -> None:
    """Divide a model over all ranks, in place, onto their devices.

    model: on the CPU of the first rank; on the others without weights, on the device meta.

    A device holds its part, and meanwhile the weights of one layer, or those outside the layers.

    Raises `ConfigError` for ranks whose models differ, and for layers that share weights.
    """
    _check_same(model, place)
    _check_apart(model)
    trained = torch.tensor([each.requires_grad for each in model.parameters()]).long()
    distributed.broadcast(trained, 0)  # transformers lets some be trained that it has read, and froze otherwise
    for each, is_trained in zip(model.parameters(), trained.tolist(), strict=True):
        each.requires_grad_(bool(is_trained))
    layers = layers_of(model)
    if not layers:
        log.warning("%s has no layers to gather one by one: it is whole on every rank meanwhile", type(model).__name__)
    mesh = init_device_mesh(place.device.type, (place.num_ranks,))
    for part in (*reversed(layers), model):  # inner ones first
        _receive(part, place.device)
        own = type(part)
        # Weights outside the layers are given up, too, so that whatever asks for weights finds parts, never old ones.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # It has made a class of the module's. transformers reads in a model's file how that takes attention.
        type(part).__name__, type(part).__module__ = own.__name__, own.__module__


def part_of(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor as another is: this rank's part of it, where that is divided."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def own_part(tensor: Tensor) -> Tensor:
    """What of a tensor is on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(state: dict[Any, Any], place: Place) -> dict[Any, Any]:
    """A state with its tensors whole: on the first rank's CPU, others get None for them. All ranks have to ask.

    Tensors that are not divided stay what they are.
    """
    known: dict[Tensor, Tensor | None] = {}  # what has two names stays one

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: whole(each) for name, each in value.items()}
        if not isinstance(value, DTensor):
            return value
        if value not in known:
            tensor = value.full_tensor().detach()
            known[value] = tensor.cpu() if place.is_first else None
        return known[value]

    return {name: whole(value) for name, value in state.items()}


def _receive(part: nn.Module, device: torch.device) -> None:
    """Bring what a part of a model has that is not divided yet onto a device, as it is on the first rank."""
    known: dict[Tensor, Tensor] = {}  # weights may be tied
    for module in part.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if isinstance(tensor, DTensor):
                continue
            if tensor not in known:
                received = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                if not tensor.is_meta:
                    received.copy_(tensor.detach())
                distributed.broadcast(received, 0)
                is_parameter = isinstance(tensor, nn.Parameter)
                known[tensor] = nn.Parameter(received, tensor.requires_grad) if is_parameter else received
            setattr(module, name, known[tensor])


def _check_same(model: PreTrainedModel, place: Place) -> None:
    """Raise `ConfigError` unless all ranks have models of the same form, as machines may have other files."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    form = int(hash_json([[name, list(each.shape), str(each.dtype)] for name, each in tensors])[:15], 16)
    if place.highest(form) != -place.highest(-form):
        raise ConfigError("--fsdp: the model is another on other ranks: is --model the same on every machine?")


def _check_apart(model: PreTrainedModel) -> None:
    """Raise `ConfigError` for weights that are in several layers, which cannot be gathered one by one."""
    layers = set(layers_of(model))
    names = [name for name, each in model.named_modules() if each in layers]
    homes: dict[Tensor, str] = {}
    for name, each in model.named_parameters(remove_duplicate=False):
        home = max((layer for layer in names if name.startswith(f"{layer}.")), key=len, default="")
        if homes.setdefault(each, home) != home:
            raise ConfigError(f"--fsdp: {type(model).__name__} shares {name} between layers; train it without")
