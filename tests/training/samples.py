"""Packs and models that the tests of training share."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.conftest import Run
from training.checking.families import tiny_config

VOCABULARY = 128

Pack = dict[str, np.ndarray[Any, Any]]


def pack_of(lengths: list[int], seed: int = 0, trained: float = 0.7) -> Pack:
    """A pack as the pipeline writes it, of random tokens; about so many of them are targets."""
    draws = np.random.default_rng(seed)
    boundaries = np.cumsum([0, *lengths])
    ids = draws.integers(3, VOCABULARY, boundaries[-1])
    labels = np.where(draws.random(len(ids)) < trained, ids, -100)
    labels[boundaries[:-1]] = -100
    return {
        "input_ids": ids.astype(np.int32),
        "labels": labels.astype(np.int32),
        "position_ids": np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        "boundaries": boundaries.astype(np.int32),
        "seq_lengths": np.array(lengths, np.int32),
        "target_counts": np.array([(labels[a:b] != -100).sum() for a, b in pairwise(boundaries)], np.int32),
    }


def tiny(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """A model of some 20,000 random weights, in eval mode."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    return model


def config_file(folder: Path, family: str = "llama") -> Path:
    """The same as a file for the command line."""
    path = folder / f"{family}.json"
    tiny_config(family).to_json_file(path)
    return path


def losses_alone(model: PreTrainedModel, pack: Pack) -> list[torch.Tensor]:
    """Cross-entropies of the targets of each sample, run by itself: the definition.  # shapes: (targets of it,)"""
    found = []
    for begin, end in pairwise(pack["boundaries"].tolist()):
        ids = torch.tensor(pack["input_ids"][begin:end].astype(np.int64))[None]
        labels = torch.tensor(pack["labels"][begin:end].astype(np.int64))
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        trained = labels[1:] != -100
        found.append(-logits[trained].gather(1, labels[1:][trained][:, None])[:, 0])
    return found


def packed_shards(run: Run, folder: Path, *, num_samples: int = 200, max_length: int = 64, seed: int = 0) -> Path:
    """Shards that the pipeline packed from random samples."""
    draws = np.random.default_rng(seed)
    rows = []
    for _ in range(num_samples):
        ids = draws.integers(3, VOCABULARY, draws.integers(2, max_length // 2)).tolist()
        prompt = int(draws.integers(0, len(ids) - 1))
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "tokens"))
    shards = folder / "shards"
    ended = run("pack", folder / "tokens", "--output", shards, "--max-length", max_length)
    assert ended.code == 0, ended.err
    return shards
