"""What is measured on: models of random weights, and packs of random tokens, of samples as long as a dataset's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pipeline.format.columns import schema_of
from strategies import pack
from training.shards import COLUMNS

CAPACITY = 4096


@dataclass(frozen=True)
class Lengths:
    """How tokens spread over the samples of a dataset."""

    center: float
    """Logarithm of the median."""

    spread: float
    longest: int
    trained: float
    """Part of a sample that is a target."""


DATA = {
    "superni-like": Lengths(np.log(110), 0.75, 4096, 0.1),  # short, with a heavy tail
    "gsm8k-like": Lengths(np.log(168), 0.37, 600, 0.65),  # even
}

TINY = LlamaConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=CAPACITY,
)
MEASURED = LlamaConfig(
    vocab_size=32_000,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=8,
    max_position_embeddings=CAPACITY,
)
"""349 million parameters."""

TRAINED = LlamaConfig(
    vocab_size=32_000,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=CAPACITY,
)
"""56 million parameters, so that runs are short."""


def llama(config: LlamaConfig, device: torch.device) -> PreTrainedModel:
    """A model of random weights."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.to(device)  # type: ignore[arg-type]
    return model


def packed(kind: str, num_packs: int, vocabulary: int, capacity: int) -> list[dict[str, Any]]:
    """Full packs of random tokens, of samples as long as a dataset's."""
    of = DATA[kind]
    draws = np.random.default_rng(0)
    drawn = np.exp(draws.normal(of.center, of.spread, num_packs * capacity // 60))
    lengths = np.clip(drawn, 4, min(of.longest, capacity)).astype(np.int32)
    plan = pack(lengths, capacity, "best-fit-decreasing")
    bounds = plan.pack_offsets
    chosen = draws.permutation(plan.num_packs)[:num_packs]
    return [
        _pack(lengths[plan.segment[bounds[each] : bounds[each + 1]]], draws, vocabulary, of.trained) for each in chosen
    ]


def _pack(lengths: np.ndarray[Any, Any], draws: np.random.Generator, vocabulary: int, trained: float) -> dict[str, Any]:
    boundaries = np.cumsum([0, *lengths]).astype(np.int32)
    ids = draws.integers(3, vocabulary, boundaries[-1]).astype(np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    of_segment = np.repeat(lengths, lengths)
    labels = np.where(positions >= np.maximum((1 - trained) * of_segment, 1), ids, -100).astype(np.int32)
    counts = np.add.reduceat(labels != -100, boundaries[:-1]).astype(np.int32)
    return dict(zip(COLUMNS, (ids, labels, positions, boundaries, counts), strict=True))


def write_shards(packs: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Packs as shards, written where nothing of the pipeline needs to be installed; they have no manifest."""
    schema = schema_of(dict.fromkeys(COLUMNS, pa.list_(pa.int32())))
    folder.mkdir()
    columns = [pa.array([row[name] for row in packs], schema.field(name).type) for name in COLUMNS]
    with pa.ipc.new_stream(str(folder / "data.arrow"), schema) as stream:
        stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder
