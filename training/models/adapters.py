"""LoRA adapters: small matrices beside the frozen ones of a model (Hu et al., 2021), in the format of PEFT.

An adapted model stays a model of transformers, whose layers hold the adapter; all that asks or trains a model takes it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import ConfigError
from pipeline.base.words import first_line, listed
from training.options import ALL_LINEAR, LoraOptions

log = logging.getLogger(__name__)

CONFIG = "adapter_config.json"
"""What makes a directory an adapter's."""


def is_adapter(path: Path) -> bool:
    """Whether an adapter lies in a directory."""
    return (path / CONFIG).is_file()


def is_adapted(model: nn.Module) -> bool:
    """Whether a model of transformers holds an adapter."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def base_of(folder: Path) -> str:
    """The model that an adapter is of, as whoever wrote it named it. Raises `ConfigError` for what is no LoRA."""
    from peft import PeftConfig, PeftType  # noqa: PLC0415 - an extra of its own

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # whatever peft makes of it
        raise ConfigError(f"model {folder}: its {CONFIG} cannot be read: {first_line(error)}") from error
    if config.peft_type != PeftType.LORA:
        raise ConfigError(f"model {folder}: an adapter of the kind {config.peft_type}; only LoRA is trained")
    if not config.base_model_name_or_path:
        raise ConfigError(
            f"model {folder}: an adapter that does not say of which model: write that into"
            f" base_model_name_or_path of its {CONFIG}"
        )
    return str(config.base_model_name_or_path)


def add_lora(model: PreTrainedModel, lora: LoraOptions, *, base: str, seed: int) -> None:
    """Put a new adapter into a model, and freeze all else. It changes nothing yet: half of its matrices are zeros.

    base: what the model was loaded from, to be named in the adapter. seed: of the other half.

    Raises `ConfigError` for a model that is adapted already, and for targets that it does not have.
    """
    from peft import LoraConfig  # noqa: PLC0415 - an extra of its own

    if is_adapted(model):
        raise ConfigError(f"model {base}: an adapter already, which is trained further without --lora")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=_targets(model, lora),
        exclude_modules=sorted(_no_products(model)) if list(lora.targets) == [ALL_LINEAR] else None,
    )
    torch.manual_seed(seed)
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise ConfigError(f"--lora: {first_line(error)}") from error
    config.base_model_name_or_path = base
    trained = [(name, each.numel()) for name, each in model.named_parameters() if each.requires_grad]
    layers = sorted({name.partition(".lora_")[0].removesuffix(".base_layer").rpartition(".")[2] for name, _ in trained})
    log.info(
        "%s of %s parameters are trained: LoRA of rank %d on %s",
        f"{sum(size for _, size in trained):,}",
        f"{model.num_parameters():,}",
        lora.r,
        listed(layers, "and"),
    )


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put the adapter of a directory into a model, to be trained further. Raises `ConfigError` if they do not fit."""
    try:
        loaded = model.load_adapter(str(folder), is_trainable=True)
    except Exception as error:  # whatever peft and transformers make of it
        raise ConfigError(f"model {folder}: the adapter cannot be loaded: {first_line(error)}") from error
    for what, names in (
        ("lacks", loaded.missing_keys),
        ("has what the model has not,", loaded.unexpected_keys),
        ("is of another size in", loaded.mismatched_keys),
    ):
        if names:
            raise ConfigError(f"model {folder}: the adapter {what} {sorted(map(str, names))[0]}")
    model.eval()


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What of a model's state a run may change: all but what is frozen. Weights that are tied are one tensor."""
    frozen = {name for name, each in model.named_parameters(remove_duplicate=False) if not each.requires_grad}
    return {name: each for name, each in model.state_dict(keep_vars=True).items() if name not in frozen}


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model back what `trained_state` took from one like it. Raises `ConfigError` for one of another."""
    if state.keys() != trained_state(model).keys():
        raise ConfigError("the checkpoint is of another model; remove it to begin again")
    model.load_state_dict(state, strict=False)


def _targets(model: PreTrainedModel, lora: LoraOptions) -> list[str] | str:
    """What PEFT is told of the layers. Raises `ConfigError` for a name that no layer has."""
    if list(lora.targets) == [ALL_LINEAR]:
        return ALL_LINEAR
    names = [name for name, _ in model.named_modules()]
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = {name.rpartition(".")[2] for name, each in model.named_modules() if isinstance(each, nn.Linear)}
            raise ConfigError(f"--lora targets: the model has no layer {target!r}, but {', '.join(sorted(linear))}")
        routers = [name for name in _no_products(model) if name == target or name.endswith(f".{target}")]
        if routers:
            raise ConfigError(f"--lora targets: {routers[0]} computes more than a product, so it takes no adapter")
    return list(lora.targets)


def _no_products(model: PreTrainedModel) -> list[str]:
    """Layers with the matrix of a linear one that compute more than a product, as some routers of experts (llama4)."""
    own = [
        (name, each)
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and type(each).__module__.startswith("transformers.models.")
    ]
    return [name for name, each in own if not _is_product(each)]


def _is_product(layer: nn.Linear) -> bool:
    """Whether what a layer makes of a token is one tensor, as falcon's does, which is a class of its own, too."""
    with torch.no_grad():
        return isinstance(layer(layer.weight.new_zeros(1, layer.in_features)), Tensor)
