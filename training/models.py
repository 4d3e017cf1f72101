"""Models to train: from weights, or with random ones from a configuration; and written when they are trained."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from training.digests import file_hash, hash_of
from training.errors import ConfigError, StorageError, first_line
from training.storage import open_to_readers, room

log = logging.getLogger("training")

_WEIGHTS = ("*.safetensors", "*.bin")

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def load_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model, in eval mode on the CPU.

    name: a directory with weights, a Hub id, or, for random weights from `seed`, a `config.json` or a directory that
    has one and no weights.

    Raises `ConfigError` for what is no such model.
    """
    path = _path_of(name)
    is_file = path.is_file()
    folder_without_weights = path.is_dir() and not any(any(path.glob(pattern)) for pattern in _WEIGHTS)
    if folder_without_weights and not (path / "config.json").is_file():
        raise ConfigError(f"model {name}: the directory has no config.json")
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if is_file or folder_without_weights:
            config = AutoConfig.from_pretrained(name)
            log.info("%s has no weights: they are random, from seed %d", name, seed)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        else:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except Exception as error:  # whatever transformers makes of it
        where = "" if path.exists() else " from the Hub (there is no such file or directory here)"
        raise ConfigError(
            f"model {name} cannot be loaded{where} as a causal language model: {first_line(error)}"
        ) from error
    model.eval()
    assert isinstance(model, PreTrainedModel)
    return model


def _path_of(name: str) -> Path:
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


def save_model(model: PreTrainedModel, source: str, folder: Path) -> None:
    """Write a trained model and its tokenizer to a folder, which appears complete, or not at all.

    source: what the model was loaded from; its tokenizer goes with it, if there is one.

    Raises `StorageError`.
    """
    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        model.save_pretrained(building)
    except SafetensorError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise StorageError(f"{folder} cannot be written ({room(folder.parent)}): {first_line(error)}") from error
    _save_tokenizer(source, building)
    open_to_readers(building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


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


def model_identity(name: str) -> str:
    """What tells one model from another: its config.json and weights, of a Hub id the id. Raises as `load_model`."""
    path = _path_of(name)
    if not path.exists():
        return name
    patterns = ("config.json", *_WEIGHTS)
    found = [path] if path.is_file() else sorted(each for pattern in patterns for each in path.glob(pattern))
    return hash_of(f"{each.name if path.is_dir() else ''} {file_hash(each)}" for each in found)


def random_tokens(model: PreTrainedModel, num_tokens: int, seed: int) -> torch.Tensor:
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
