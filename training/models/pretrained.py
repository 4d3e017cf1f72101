"""Models to train: from weights, or with random ones from a configuration; and written when they are trained."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.import_utils import is_accelerate_available

from pipeline.base import storage
from pipeline.base.errors import ConfigError, StorageError
from pipeline.base.storage import free_text
from pipeline.base.words import first_line
from training.models.adapters import base_of, is_adapted, is_adapter, load_adapter

log = logging.getLogger(__name__)

CPU = torch.device("cpu")

WEIGHTS = ("*.safetensors", "*.bin")
"""Patterns of the names of files with weights."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def load_model(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> PreTrainedModel:
    """A causal language model, in eval mode on a device.

    name: a directory with weights, a Hub id, or, for random weights from `seed`, a `config.json` or a directory that
    has one and no weights; or a directory with an adapter, which comes with the model that it is of, and alone is
    trained.

    On the device meta nothing is read but the configuration, and there are no weights.

    Weights go to the device one by one, where accelerate is installed, so that no rank has them all in the memory of
    the host.

    Raises `ConfigError` for what is no such model.
    """
    path = model_path(name)
    if is_adapter(path):
        base = base_of(path)
        log.info("%s is an adapter of %s", name, base)
        model = load_model(base, seed=seed, dtype=dtype, device=device)
        load_adapter(model, path)
        return model
    missing: list[str] = []
    is_file = path.is_file()
    folder_without_weights = path.is_dir() and not any(any(path.glob(pattern)) for pattern in WEIGHTS)
    if folder_without_weights and not (path / "config.json").is_file():
        raise ConfigError(f"model {name}: the directory has no config.json")
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    try:
        if device.type == "meta":
            with device:
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=dtype)
        elif is_file or folder_without_weights:
            config = AutoConfig.from_pretrained(name)
            log.info("%s has no weights: they are random, from seed %d", name, seed)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            straight = {"device_map": {"": device}} if is_accelerate_available() else {}
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **straight)
            model, missing = loaded[0], sorted(map(str, loaded[1]["missing_keys"]))
    except Exception as error:  # whatever transformers makes of it
        where = "" if path.exists() else " from the Hub (there is no such file or directory here)"
        raise ConfigError(
            f"model {name} cannot be loaded{where} as a causal language model: {first_line(error)}"
        ) from error
    assert isinstance(model, PreTrainedModel)
    if missing:
        raise ConfigError(f"model {name}: its weights lack {missing[0]}{_more(missing)}, which would be random")
    if is_adapted(model):  # of the Hub, and loaded by transformers, which freezes it
        raise ConfigError(f"model {name}: an adapter, which is trained from a directory alone: download it first")
    model.to(device)  # type: ignore[arg-type]
    model.eval()
    return model


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def load_on_device(name: str, *, seed: int) -> PreTrainedModel:
    """Load a model as `load_model` does, in float32, onto the GPU if there is one."""
    return load_model(name, seed=seed, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def model_path(name: str) -> Path:
    """A model's path, which need not exist if the name may be a Hub id. Raises `ConfigError` otherwise."""
    path = Path(name)
    try:
        validate_repo_id(name)
        may_be_hub_id = path.suffix != ".json"
    except HFValidationError:
        may_be_hub_id = False
    if not path.exists() and not may_be_hub_id:
        raise ConfigError(f"model {name}: no such file or directory")
    return path


def save_model(model: PreTrainedModel, source: str, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write a trained model and its tokenizer to a folder, which appears complete, or not at all; an adapter alone,
    where that is what was trained.

    source: what the model was loaded from; its tokenizer goes with it, if there is one.
    weights: what is written; the model itself may be divided over ranks.

    Raises `StorageError`.
    """
    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        model.save_pretrained(building, state_dict=weights)
        _save_tokenizer(source, building)
        _open_to_readers(building)
        for path in storage.list_folder(building):
            storage.sync_file(path)
        storage.sync_folder(building)
        shutil.rmtree(folder, ignore_errors=True)
        storage.rename(building, folder)
        storage.sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(building, ignore_errors=True)
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise StorageError(f"{folder} cannot be written ({free_text(folder.parent)}): {why}") from error


def _save_tokenizer(source: str, folder: Path) -> None:
    path = Path(source)
    if not path.exists():  # a Hub id
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except Exception as error:  # whatever it is, the model is trained and has to be written
            log.warning("the tokenizer of %s is not written: %s", source, first_line(error))
        else:
            tokenizer.save_pretrained(folder)
        return
    found = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    for each in found:
        shutil.copy(each, folder / each.name)
    if not found:
        log.info("%s has no tokenizer, so the trained model has none", source)


def _open_to_readers(folder: Path) -> None:
    """Weights are written for their owner alone; give them the permissions of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~mask)
