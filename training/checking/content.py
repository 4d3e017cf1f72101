"""Whether packs are as they were packed, and fit the model: checked before anything is trained."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm
from transformers import PreTrainedModel

from pipeline.base.digests import hash_file
from pipeline.base.errors import DataError
from pipeline.format.labels import IGNORE
from training.attention.limits import most_segments, numbers_per_token
from training.order import pack_order
from training.packs import segment_lengths, tokens_per_pack
from training.shapes import pack_shapes
from training.shards import COLUMNS, SEE_VERIFY, Shards, damaged_packs

log = logging.getLogger(__name__)

_PACKS_AT_ONCE = 256


def check_fits(shards: Shards, model: PreTrainedModel, *, joint: bool) -> None:
    """Raise `DataError` if packs have positions that the model does not have."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = shards.capacity if joint else shards.longest
    if positions is not None and longest > positions:
        what = "a pack (attention is joint)" if joint else "a sample"
        raise DataError(
            f"shards {shards.path}: {what} may have {longest} tokens, but the model has {positions} positions: pack"
            f" with --max-length {positions}"
        )


def check_segments(
    shards: Shards,
    model: PreTrainedModel,
    backend: str,
    packs_per_forward: int,
    *,
    joint: bool = False,
    is_static: bool = False,
) -> None:
    """Raise `DataError` for forward passes of more segments than FlashAttention's kernels can go back through.

    backend: with one that does not run them it is only a warning.
    joint: whether a pack attends as one segment; is_static: whether rows are padded, and padding is segments, too.
    """
    segments = 1 if joint else shards.most_segments
    if is_static:
        segments = int(pack_shapes(*shards.extents(joint=joint), shards.capacity)[1].max())
    tokens = packs_per_forward * shards.capacity
    most = most_segments(model.config, tokens)
    if packs_per_forward * segments <= most:
        return
    ways = [f"pack with --max-segments {most // packs_per_forward}"] if most >= packs_per_forward else []
    ways += ["pack with a smaller --max-length"] if not ways else []
    ways += ["take fewer --packs-per-forward"] if packs_per_forward > 1 else []
    told = (
        f"shards {shards.path}: a forward pass may have {tokens:,} tokens in {packs_per_forward * segments:,} segments,"
        f" and FlashAttention's backward pass overflows with more than {max(0, most):,} of them"
        f" ({numbers_per_token(model.config):,} numbers in the heads of a token): {', or '.join(ways)}"
    )
    if backend not in ("flash-attn", "torch-varlen"):
        log.warning("%s; %s does not mind", told, backend)
        return
    raise DataError(told)


def check_content(shards: Shards, model: PreTrainedModel, rank: int = 0, num_ranks: int = 1) -> None:
    """Raise `DataError` if a file is not what the run wrote, by its manifest's checksum, or as `check_packs`.

    Ranks share the work, and everything is read. The dataset card is anyone's to edit.
    """
    files = {} if shards.manifest is None else shards.manifest.files
    names = [name for name in files if not name.endswith(".md")][rank::num_ranks]
    if shards.manifest is None:
        log.warning("shards %s: no manifest.json, so nothing tells whether they are as they were packed", shards.path)
    num_packs = len(shards.packs)
    firsts = range(rank * _PACKS_AT_ONCE, num_packs, num_ranks * _PACKS_AT_ONCE)
    total = len(names) + len(firsts)
    with tqdm(total=total, desc="checking", disable=True if rank else None, leave=False) as bar:
        for name in names:
            path = Path(shards.path) / name
            if not path.is_file():
                raise DataError(f"{path} is missing; {SEE_VERIFY.format(shards.path)}")
            if hash_file(path) != files[name].xxh3_128:
                raise DataError(f"{path} was changed after it was packed; {SEE_VERIFY.format(shards.path)}")
            bar.update()
        for first in firsts:
            check_packs(shards.packs.table(range(first, min(first + _PACKS_AT_ONCE, num_packs))), model, shards)
            bar.update()


def check_packs(packs: pa.Table, model: PreTrainedModel, shards: Shards) -> None:
    """Raise `DataError` for packs whose columns do not fit each other, or whose ids the model does not have."""
    columns = {name: packs.column(name).combine_chunks() for name in COLUMNS}
    values = {name: column.flatten().to_numpy() for name, column in columns.items()}
    lengths, counts = segment_lengths(packs)
    starts, tokens = np.cumsum(lengths) - lengths, tokens_per_pack(lengths, counts)
    for name, expected in (
        ("input_ids", tokens),
        ("labels", tokens),
        ("position_ids", tokens),
        ("target_counts", counts),
    ):
        if not np.array_equal(np.diff(columns[name].offsets.to_numpy()), expected):
            raise damaged_packs(shards.path, f"{name} and boundaries of a pack do not fit each other")
    targets = values["labels"] != IGNORE
    if not np.array_equal(values["position_ids"], np.arange(len(targets)) - np.repeat(starts, lengths)):
        raise damaged_packs(shards.path, "position_ids and boundaries of a pack do not fit each other")
    if not np.array_equal(values["target_counts"], np.add.reduceat(targets, starts)) or targets[starts].any():
        raise damaged_packs(shards.path, "target_counts and labels of a pack do not fit each other")
    size = model.config.get_text_config().vocab_size
    for name, ids in (("token", values["input_ids"]), ("label", values["labels"][targets])):
        wrong = ids[(ids < 0) | (ids >= size)]
        if len(wrong):
            raise DataError(
                f"shards {shards.path}: {name} {wrong[0]}, but the model has {size} ids: packed with another tokenizer?"
            )


def packs_to_compare(shards: Shards, num_packs: int, seed: int) -> list[int]:
    """Some packs with several samples, as one sample is as if alone whatever the model does.

    Raises `DataError` if there are none.
    """
    shared = np.flatnonzero(pc.list_value_length(shards.packs.column("boundaries")).to_numpy() > 2)
    if len(shared) == 0:
        raise DataError(f"shards {shards.path}: every pack holds one sample alone, so there is nothing to compare")
    return [int(each) for each in shared[pack_order(len(shared), 0, seed)[:num_packs]]]
