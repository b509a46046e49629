"""The random-weight models of make_golden.py: what differs from BASE, and the prompt lengths of each.

No vocabulary is smaller than 272: a tokenizer with 16 special tokens and all bytes must fit.
Together they vary every dimension and number that the forward pass reads. `sensitive` names config values that must
matter: the logits change visibly when the value is replaced by the one given here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]

BASE: Config = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "torch_dtype": "bfloat16",
    "vocab_size": 272,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 24,
    "o_lora_rank": 16,
    "o_groups": 2,
    "sliding_window": 16,
    "compress_ratios": [0, 4, 128, 4],
    "compress_rope_theta": 160000,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "max_position_embeddings": 1048576,
    "index_n_heads": 16,
    "index_head_dim": 16,
    "index_topk": 8,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "num_hash_layers": 2,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0,
    "hidden_act": "silu",
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-06,
    "rms_norm_eps": 1e-06,
    "num_nextn_predict_layers": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
}

# Around the ends of a block of 4, of a block of 128, and of both.
BORDERS = (1, 3, 4, 5, 127, 128, 129, 130)


@dataclass(frozen=True)
class Recipe:
    """`swiglu_gain` multiplies w1 and w3, `comb_gain` the logits of the matrix that mixes streams."""

    changes: Config
    lengths: tuple[int, ...]
    sensitive: Config = field(default_factory=dict)
    swiglu_gain: float = 1.0
    comb_gain: float = 1.0

    def config(self) -> Config:
        config = copy.deepcopy(BASE)
        config.update(copy.deepcopy(self.changes))
        return config


def _yarn(factor: float, original: int, beta_fast: float, beta_slow: float) -> Config:
    return {
        "type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": beta_fast,
        "beta_slow": beta_slow,
    }


RECIPES: dict[str, Recipe] = {
    "mixed": Recipe(
        {},
        (*BORDERS, 300, 420),
        {"sliding_window": 15, "index_topk": 9, "routed_scaling_factor": 1.0, "rope_theta": 160000, "rope_scaling": _yarn(1, 65536, 32, 1)},
    ),
    # No dimension is a multiple of 8; epsilons large enough that using one for another, or none, shows.
    "odd": Recipe(
        {
            "vocab_size": 277,
            "hidden_size": 37,
            "num_attention_heads": 6,
            "head_dim": 22,
            "qk_rope_head_dim": 6,
            "q_lora_rank": 19,
            "o_lora_rank": 11,
            "o_groups": 3,
            "sliding_window": 8,
            "compress_ratios": [128, 4, 0, 4],
            "compress_rope_theta": 20000,
            "rope_theta": 500,
            "rope_scaling": _yarn(4, 256, 16, 2),
            "index_n_heads": 14,
            "index_head_dim": 10,
            "index_topk": 5,
            "n_routed_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 13,
            "num_hash_layers": 1,
            "routed_scaling_factor": 2.5,
            "hc_sinkhorn_iters": 4,
            "hc_eps": 0.02,
            "rms_norm_eps": 0.03,
        },
        (*BORDERS, 257, 390),
        {
            "hc_eps": 0.03,
            "rms_norm_eps": 0.02,
            "hc_sinkhorn_iters": 3,
            "rope_theta": 20000,
            "compress_rope_theta": 500,
            "rope_scaling": _yarn(4, 256, 32, 1),
        },
        comb_gain=2.0,
    ),
    # The clamp cuts gates above, ups on both sides, in routed and in shared experts.
    "clamp": Recipe(
        {
            "vocab_size": 272,
            "num_hidden_layers": 3,
            "compress_ratios": [4, 128, 0],
            "sliding_window": 64,
            "index_topk": 16,
            "n_routed_experts": 12,
            "num_experts_per_tok": 4,
            "num_hash_layers": 0,
            "swiglu_limit": 1.25,
        },
        (*BORDERS, 333),
        {"swiglu_limit": 1.5, "sliding_window": 63},
        swiglu_gain=2.5,
    ),
    # Two streams; the list of ratios has the entry of an MTP block, whose tensors the file has not.
    "two-streams": Recipe(
        {
            "vocab_size": 300,
            "hidden_size": 48,
            "num_attention_heads": 8,
            "head_dim": 16,
            "qk_rope_head_dim": 4,
            "q_lora_rank": 32,
            "o_lora_rank": 8,
            "o_groups": 4,
            "sliding_window": 128,
            "compress_ratios": [4, 4, 128, 0, 0],
            "num_nextn_predict_layers": 1,
            "index_n_heads": 24,
            "index_head_dim": 8,
            "index_topk": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 3,
            "num_hash_layers": 3,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 2,
        },
        (*BORDERS, 310),
        {"hc_sinkhorn_iters": 1, "sliding_window": 127, "index_topk": 5},
        comb_gain=2.0,
    ),
    # A ratio that no published model has; pooled without overlap like 128.
    "ratio-16": Recipe(
        {
            "vocab_size": 280,
            "hidden_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "head_dim": 48,
            "qk_rope_head_dim": 16,
            "o_groups": 1,
            "compress_ratios": [16, 4, 16],
            "rope_scaling": _yarn(40, 4096, 32, 1),
            "sliding_window": 32,
            "index_head_dim": 24,
            "index_topk": 12,
            "num_hash_layers": 1,
            "hc_mult": 3,
        },
        (1, 3, 4, 5, 15, 16, 17, 33, 130, 350),
        {"sliding_window": 31, "rope_scaling": _yarn(40, 65536, 32, 1)},
    ),
    "window-only": Recipe(
        {
            "vocab_size": 273,
            "num_hidden_layers": 2,
            "compress_ratios": [0, 0],
            "sliding_window": 8,
            "num_hash_layers": 1,
            "hc_mult": 5,
        },
        (1, 7, 8, 9, 10, 200),
        {"sliding_window": 9, "rope_theta": 5000},
    ),
    # Layers in the order of V4-Pro, with as many heads, groups and active experts as fit.
    "pro-order": Recipe(
        {
            "hidden_size": 32,
            "num_attention_heads": 16,
            "head_dim": 12,
            "qk_rope_head_dim": 4,
            "o_lora_rank": 6,
            "o_groups": 8,
            "sliding_window": 128,
            "compress_ratios": [128, 128, 4, 128],
            "index_n_heads": 20,
            "index_head_dim": 14,
            "index_topk": 16,
            "n_routed_experts": 14,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 6,
            "num_hash_layers": 3,
            "routed_scaling_factor": 2.5,
        },
        (*BORDERS, 255, 256, 257, 600),
        {"sliding_window": 127, "index_topk": 17},
    ),
}
