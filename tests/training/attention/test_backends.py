from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import ConfigError
from tests.training.samples import pack_of, tiny
from training import PackedCollator, use_backend
from training.attention.backends import BACKENDS, choose_backend, varlen_attention
from training.attention.interface import model_inputs
from training.attention.settings import AttentionSettings, UnsupportedAttentionError
from training.checking.families import tiny_config

CPU = torch.device("cpu")


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: list[int], asked: AttentionSettings
) -> torch.Tensor:
    """Token by token, head by head, in float64."""
    groups = query.shape[1] // key.shape[1]
    scale = asked.scale or query.shape[2] ** -0.5
    out = torch.zeros(query.shape[0], query.shape[1], value.shape[2], dtype=torch.float64)
    for begin, end in pairwise(boundaries):
        for at in range(begin, end):
            left, right = asked.window_size
            first = begin if left < 0 else max(begin, at - left)
            last = at if asked.causal else end - 1 if right < 0 else min(end - 1, at + right)
            for head in range(query.shape[1]):
                keys = key[first : last + 1, head // groups].double()
                scores = keys @ query[at, head].double() * scale
                if asked.softcap:
                    scores = asked.softcap * torch.tanh(scores / asked.softcap)
                weights = scores.exp()
                total = weights.sum() + (asked.sinks[head].double().exp() if asked.sinks is not None else 0.0)
                out[at, head] = (weights / total) @ value[first : last + 1, head // groups].double()
    return out


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    value_dim=st.sampled_from([4, 8, 12]),
    causal=st.booleans(),
    window=st.sampled_from([(-1, -1), (2, 0), (1, 2), (20, 20)]),
    softcap=st.sampled_from([0.0, 2.0]),
    with_sinks=st.booleans(),
    scale=st.sampled_from([None, 0.7]),
)
def test_the_reference_is_attention_within_segments(
    lengths: list[int],
    heads: tuple[int, int],
    value_dim: int,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    with_sinks: bool,
    scale: float | None,
) -> None:
    torch.manual_seed(sum(lengths))
    total = sum(lengths)
    query, key = torch.randn(total, heads[0], 8), torch.randn(total, heads[1], 8)
    value = torch.randn(total, heads[1], value_dim)
    asked = AttentionSettings(
        scale=scale,
        causal=causal,
        window_size=window,
        softcap=softcap,
        sinks=torch.randn(heads[0]) if with_sinks else None,
    )
    boundaries = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    cu_seqlens = torch.tensor(boundaries, dtype=torch.int32)
    found = varlen_attention(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        max(lengths),
        max(lengths),
        softmax_scale=scale,
        causal=causal,
        window_size=window,
        softcap=softcap,
        sinks=asked.sinks,
    )
    expected = by_definition(query, key, value, boundaries, asked)
    assert found.shape == expected.shape
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_dropout_is_honoured() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(40, 2, 8)
    cu_seqlens = torch.tensor([0, 15, 40], dtype=torch.int32)
    found = [
        varlen_attention(tokens, tokens, tokens, cu_seqlens, cu_seqlens, 25, 25, dropout_p=each, backend="sdpa")
        for each in (0.0, 0.0, 0.5)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-2)


def test_auto_says_what_it_takes_and_why() -> None:
    name, why = choose_backend("auto", CPU)
    assert name == "sdpa"
    assert "flash-attn: its kernels need CUDA" in why
    assert "torch-varlen: its kernels need CUDA" in why
    for wanted in ("flash-attn", "torch-varlen"):
        with pytest.raises(ConfigError, match=f"{wanted} does not run here: its kernels need CUDA, not cpu"):
            choose_backend(wanted, CPU)
    with pytest.raises(ConfigError, match="no attention backend 'flash'"):
        choose_backend("flash", CPU)


@pytest.mark.parametrize(
    ("backend", "asked", "said"),
    [
        ("flash-attn", {"sinks": torch.zeros(2)}, "no attention sinks"),
        ("torch-varlen", {"sinks": torch.zeros(2)}, "no attention sinks"),
        ("torch-varlen", {"softcap": 5.0}, "no softcap"),
        ("torch-varlen", {"dropout": 0.1}, "no dropout"),
        ("torch-varlen", {}, "bfloat16 or float16"),
    ],
)
def test_kernels_refuse_what_they_cannot_do(
    backend: str, asked: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "flash-attn":
        pytest.importorskip("flash_attn")
    tokens, cu_seqlens = torch.randn(4, 2, 8), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(UnsupportedAttentionError, match=said):
        BACKENDS[backend].attend(tokens, tokens, tokens, cu_seqlens, 4, AttentionSettings(**asked))


def test_queries_and_keys_are_the_same_tokens() -> None:
    tokens, cu_seqlens = torch.randn(4, 2, 8), torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(UnsupportedAttentionError, match="the same tokens"):
        varlen_attention(tokens, tokens[:3], tokens[:3], cu_seqlens, cu_seqlens, 4, 4)


def test_no_mask_is_built_and_none_is_ignored() -> None:
    model = tiny()
    assert use_backend(model, "sdpa")
    batch = PackedCollator()([pack_of([5, 9])])
    model(**model_inputs(model, batch))
    with pytest.raises(UnsupportedAttentionError, match="attention mask"):
        model(**model_inputs(model, batch), attention_mask=torch.ones(1, 1, 14, 14))
    with pytest.raises(UnsupportedAttentionError, match="is not told where segments begin"):
        model(input_ids=batch["input_ids"], use_cache=False)
    with pytest.raises(UnsupportedAttentionError, match="packs are one row"):
        model(**{**model_inputs(model, batch), "input_ids": batch["input_ids"].repeat(2, 1)})
    with pytest.raises(UnsupportedAttentionError, match="asks attention for position_bias"):
        model(**model_inputs(model, batch), position_bias=torch.zeros(1))


def test_windows_that_a_model_leaves_to_its_mask_are_kept() -> None:
    for family in ("phimoe", "mistral", "gemma3_text", "qwen2"):  # phimoe hands no window to attention functions
        model = tiny(family)
        pack = pack_of([20, 6])
        alone = model(input_ids=torch.tensor(pack["input_ids"][None, :20]).long(), use_cache=False).logits
        use_backend(model, "sdpa")
        packed = model(**model_inputs(model, PackedCollator()([pack]))).logits
        assert torch.allclose(packed[:, :20], alone, atol=1e-5), family


def test_chunks_are_kept_or_refused() -> None:
    model = tiny("llama4_text")
    chunk = tiny_config("llama4_text").attention_chunk_size
    use_backend(model, "sdpa")
    model(**model_inputs(model, PackedCollator()([pack_of([chunk, chunk])])))
    with pytest.raises(UnsupportedAttentionError, match=f"--max-length {chunk} at most"):
        model(**model_inputs(model, PackedCollator()([pack_of([chunk + 1])])))


def test_a_model_with_attention_of_its_own_is_told_apart() -> None:
    assert not use_backend(tiny("falcon"), "sdpa")
    assert not use_backend(tiny("bloom"), "sdpa")


def test_static_shapes_compile_once_into_one_graph() -> None:
    model = tiny()
    use_backend(model, "sdpa")
    collate = PackedCollator(pad_to=40, max_segments=8)
    graphs: list[Any] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True, dynamic=False)
    assert isinstance(compiled, torch.nn.Module)
    for lengths in ([5, 9], [40], [1, 1, 1, 1, 1, 30], [12, 3, 7]):
        batch = collate([pack_of(lengths)])
        logits = compiled(**model_inputs(compiled, batch)).logits
        assert torch.allclose(logits, model(**model_inputs(model, batch)).logits, atol=1e-4)
    assert len(graphs) == 1
