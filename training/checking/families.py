"""Tiny causal-LM configurations, one for each transformers model family, small enough to build and run on a CPU."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig

_SHARED: dict[str, object] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# fmt: off
FAMILIES: dict[str, dict[str, object]] = {
    "apertus": {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "arcee": {"num_key_value_heads": 2},
    "bamba": {
        "num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "biogpt": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "bitnet": {"num_key_value_heads": 2},
    "bloom": {},
    "codegen": {"n_inner": 64, "rotary_dim": 4},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 1.0},
    "cohere2": {
        "num_key_value_heads": 2, "logit_scale": 1.0, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "ctrl": {"dff": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "cwm": {
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "dbrx": {
        "d_model": 32, "max_seq_len": 128, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {
        "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4, "v_head_dim": 8,
    },
    "deepseek_v3": {
        "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    },
    "diffllama": {"num_key_value_heads": 2},
    "doge": {"num_key_value_heads": 2, "sliding_window": 8},
    "dots1": {
        "num_key_value_heads": 2, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32, "sliding_window": 8, "max_window_layers": 1,
    },
    "ernie4_5": {"num_key_value_heads": 2, "head_dim": 8},
    "ernie4_5_moe": {"num_key_value_heads": 2, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "exaone4": {
        "num_key_value_heads": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    },
    "exaone_moe": {
        "num_key_value_heads": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    },
    "falcon": {"ffn_hidden_size": 64, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_h1": {
        "num_key_value_heads": 2, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8,
    },
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {
        "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3n_text": {
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "vocab_size_per_layer_input": 128,
        "hidden_size_per_layer_input": 8, "laurel_rank": 8, "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma4_text": {
        "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "sliding_window": 8,
        "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "glm": {"num_key_value_heads": 2, "head_dim": 8},
    "glm4": {"num_key_value_heads": 2, "head_dim": 8},
    "glm4_moe": {
        "num_key_value_heads": 2, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "gpt2": {"n_inner": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0},
    "gpt_bigcode": {
        "n_inner": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8, "classifier_dropout": 0.0},
    "gpt_neox": {"classifier_dropout": 0.0},
    "gpt_oss": {
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
    "gptj": {"n_inner": 64, "rotary_dim": 4},
    "granite": {"num_key_value_heads": 2},
    "granitemoe": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"], "position_embedding_type": "rope",
        "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8,
    },
    "granitemoeshared": {
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32,
    },
    "helium": {"num_key_value_heads": 2, "head_dim": 8},
    "hunyuan_v1_dense": {"num_key_value_heads": 2, "head_dim": 8},
    "hunyuan_v1_moe": {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {
        "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4,
        "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4,
    },
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {
        "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    },
    "llama": {"num_key_value_heads": 2},
    "llama4_text": {
        "num_key_value_heads": 2, "head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 4,
        "num_experts_per_tok": 2, "interleave_moe_layer_step": 2, "no_rope_layer_interval": 2,
        "attention_chunk_size": 16,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8},
    "minimax_m2": {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "ministral": {
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "ministral3": {
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "mixtral": {"num_key_value_heads": 2, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "modernbert-decoder": {
        "local_attention": 16, "layer_types": ["sliding_attention", "full_attention"], "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "mpt": {"max_seq_len": 128, "expansion_ratio": 2},
    "nanochat": {"num_key_value_heads": 2},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "num_key_value_heads": 2, "num_hidden_layers": 4, "head_dim": 8,
        "layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"], "mamba_num_heads": 4,
        "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
    },
    "olmo": {"num_key_value_heads": 2},
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {
        "num_key_value_heads": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    },
    "olmo_hybrid": {
        "num_key_value_heads": 2, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "olmoe": {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    "openai-gpt": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "summary_first_dropout": 0.0},
    "opt": {"ffn_dim": 64, "dropout": 0.0, "init_std": 0.2},
    "persimmon": {},
    "phi": {"num_key_value_heads": 2},
    "phi3": {"num_key_value_heads": 2, "sliding_window": 8, "original_max_position_embeddings": 128},
    "phimoe": {
        "num_key_value_heads": 2, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "router_jitter_noise": 0.0,
    },
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen2_moe": {
        "num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 8, "mlp_only_layers": [0],
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3": {
        "num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8,
        "max_window_layers": 1,
    },
    "qwen3_5_moe_text": {
        "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5_text": {
        "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    },
    "qwen3_moe": {
        "num_key_value_heads": 2, "head_dim": 8, "use_sliding_window": True, "sliding_window": 8,
        "mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    },
    "qwen3_next": {
        "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "mlp_only_layers": [0], "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": {
        "num_key_value_heads": 2, "block_types": ["recurrent", "attention"], "attention_window_size": 8,
        "w_init_variance_scale": 1.0,
    },
    "rwkv": {"context_length": 128},
    "seed_oss": {"num_key_value_heads": 2, "head_dim": 8, "residual_dropout": 0.0},
    "smollm3": {
        "num_key_value_heads": 2, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 8,
    },
    "stablelm": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": 8},
    "vaultgemma": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "xglm": {"ffn_dim": 64, "dropout": 0.0, "init_std": 0.2, "decoder_start_token_id": 2},
    "xlstm": {"hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "chunk_size": 16},
    "zamba": {
        "num_key_value_heads": 4, "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_key_value_heads": 4, "layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 4,
        "mamba_d_state": 8, "chunk_size": 8,
    },
}
# fmt: on


def tiny_config(name: str) -> PreTrainedConfig:
    """Return the tiny configuration of the family `name`, ready for `AutoModelForCausalLM.from_config`."""
    return AutoConfig.for_model(name, **{**_SHARED, **FAMILIES[name]})
