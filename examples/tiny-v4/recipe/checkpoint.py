"""The checkpoint directory as the hub ships it: config.json, generation_config.json, model.safetensors in the official
names, dtypes and layout. Also the check of that directory against transformers' own model class."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import Config, TinyV4

# Kept in float32 by the official checkpoints; everything else that is not an integer is BF16.
_FLOAT32 = ("hc_", "attn_sink", "ape", "gate.bias")


def architecture(vocab_size: int) -> Config:
    """config.json, official key names. `compress_ratios` has L + num_nextn_predict_layers entries, so L here."""
    return {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16",
        "vocab_size": vocab_size,
        "hidden_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "qk_rope_head_dim": 16,
        "q_lora_rank": 64,
        "o_lora_rank": 48,
        "o_groups": 2,
        "sliding_window": 64,
        "compress_ratios": [0, 4, 128, 4, 128],
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
        "index_n_heads": 32,
        "index_head_dim": 32,
        "index_topk": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
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
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _stored(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    leaf = name.split("layers.")[-1].split(".", 1)[-1]
    float32 = leaf.startswith("hc_") or leaf.endswith(_FLOAT32[1:])
    return tensor.to(torch.float32 if float32 else torch.bfloat16)


def official_tensors(model: TinyV4, half: bool = True) -> dict[str, Tensor]:
    """The model's tensors under their official names; stacked experts are taken apart. `half`: BF16 as the hub ships it."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("ffn.w13"):
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                tensors[name.replace("w13", f"experts.{e}.w1.weight")] = gate
                tensors[name.replace("w13", f"experts.{e}.w3.weight")] = up
        elif name.endswith("ffn.w2"):
            for e, down in enumerate(tensor):
                tensors[name.replace("w2", f"experts.{e}.w2.weight")] = down
        else:
            tensors[name] = tensor
    return {name: (_stored(name, tensor) if half else tensor).contiguous() for name, tensor in tensors.items()}


def save(model: TinyV4, directory: Path, half: bool = True) -> None:
    """Writes config.json, generation_config.json and model.safetensors; floats in float32 where not `half`."""
    config = model.config
    generation = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    save_file(official_tensors(model, half), directory / "model.safetensors", metadata={"format": "pt"})


def load(directory: Path) -> TinyV4:
    """The model of a directory that save() wrote, computing in float32."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    model = TinyV4(config)
    stored = load_file(directory / "model.safetensors")
    experts = range(config["n_routed_experts"])
    state: dict[str, Tensor] = {}
    for name in model.state_dict():
        if name.endswith("ffn.w13"):
            prefix = name.removesuffix("w13")
            state[name] = torch.stack(
                [torch.cat([stored[f"{prefix}experts.{e}.{w}.weight"] for w in ("w1", "w3")]) for e in experts]
            )
        elif name.endswith("ffn.w2"):
            prefix = name.removesuffix("w2")
            state[name] = torch.stack([stored[f"{prefix}experts.{e}.w2.weight"] for e in experts])
        else:
            state[name] = stored[name]
    model.load_state_dict(state)
    return model


def difference_from_transformers(directory: Path, ids: list[int]) -> float:
    """Largest difference of a logit between this model and transformers' class, both float32, over `ids`."""
    from transformers import DeepseekV4ForCausalLM

    theirs = DeepseekV4ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    batch = torch.tensor([ids])
    with torch.no_grad():
        ours, _ = load(directory)(batch)
        return (theirs(batch).logits[0] - ours).abs().max().item()
