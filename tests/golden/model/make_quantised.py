"""Makes the golden logits of quantised checkpoints: `make_quantised.py [NAME...]`, default all of MODELS.

Random weights, stored as the official files store theirs (FP8 matrices with 128 x 128 scales, FP4 or FP8 experts, an MTP
block), and a straight-line forward pass that rounds where the reference implementation rounds. It shares no code with the
engine nor with examples/tiny-v4: every formula is written out from the model's specification, whole prompts only, one
rounding after the other. torch (any CPU build with float8_e4m3fn) is all it needs.

golden.safetensors: caseN.ids, caseN.positions (I64), caseN.logits, caseN.mtp_logits (F32, positions x vocab), and
caseN.noise (F32): the mean distances of logits and of mtp_logits from the same run in float64, in which only the order
and the width of sums differ. Row i of mtp_logits is what the MTP block says at positions[i] when the next token is the one in ids.

Rounding to a coarse grid turns the last bit of a float32 sum into a whole step now and then, and every further layer
makes more of it: the float32 and the float64 run of this file agree to 2 bfloat16 ulps at 95 to 99 % of the positions of
one layer, and at 59 % after three. So the models that must agree closely have one layer, one of each kind; `deep` must
be as close as its own noise.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent

BASE = {
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16",
    "vocab_size": 272, "hidden_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 160, "qk_rope_head_dim": 32, "q_lora_rank": 64, "o_lora_rank": 48, "o_groups": 2, "sliding_window": 16,
    "compress_ratios": [0, 4, 128, 0], "compress_rope_theta": 160000, "rope_theta": 10000,
    "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536, "beta_fast": 32, "beta_slow": 1},
    "max_position_embeddings": 1048576, "index_n_heads": 8, "index_head_dim": 64, "index_topk": 24, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_hash_layers": 1,
    "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "norm_topk_prob": True, "routed_scaling_factor": 1.5,
    "swiglu_limit": 10.0, "hidden_act": "silu", "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-06,
    "rms_norm_eps": 1e-06, "num_nextn_predict_layers": 1, "bos_token_id": 0, "eos_token_id": 1,
    "tie_word_embeddings": False, "attention_bias": False, "attention_dropout": 0.0,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
}  # fmt: skip
LENGTHS = (1, 4, 5, 130, 260)
ONE = {"num_hidden_layers": 1, "num_hash_layers": 0}
MODELS = {
    "window": {**ONE, "expert_dtype": "fp4", "compress_ratios": [0], "num_hash_layers": 1, "num_nextn_predict_layers": 0},
    "csa": {**ONE, "expert_dtype": "fp4", "compress_ratios": [4, 0], "index_topk": 48},
    # No dimension a multiple of 128; experts in FP8 as in the Base checkpoints.
    "hca": {**ONE, "hidden_size": 136, "moe_intermediate_size": 72, "q_lora_rank": 40, "qk_rope_head_dim": 16, "head_dim": 104, "compress_ratios": [128], "swiglu_limit": 1.5, "num_nextn_predict_layers": 0},
    "deep": {"expert_dtype": "fp4"},
}  # fmt: skip


def bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def power_above(x: Tensor) -> Tensor:
    """The least power of two >= x."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).int())


def groups(x: Tensor, size: int) -> list[Tensor]:
    return list(x.split(size, dim=-1))


def qdq8(x: Tensor, size: int) -> Tensor:
    out = []
    for part in groups(x, size):
        amax = part.abs().amax(-1, keepdim=True).clamp(min=1e-4).float()
        s = power_above(amax * torch.tensor(1 / 448, dtype=torch.float32)).to(x.dtype)
        out.append((part / s).clamp(-448, 448).float().to(torch.float8_e4m3fn).to(x.dtype) * s)
    return torch.cat(out, -1)


def nearest_e2m1(x: Tensor) -> Tensor:
    a = x.abs()
    q = torch.zeros_like(a)
    for border, value, taken in ((0.25, 0.5, False), (0.75, 1.0, True), (1.25, 1.5, False), (1.75, 2.0, True), (2.5, 3.0, False), (3.5, 4.0, True), (5.0, 6.0, False)):
        q = torch.where((a >= border) if taken else (a > border), torch.tensor(value, dtype=x.dtype), q)
    return torch.copysign(q, x)


def qdq4(x: Tensor) -> Tensor:
    out = []
    for part in groups(x, 32):
        amax = part.abs().amax(-1, keepdim=True).clamp(min=6 * 2.0**-126)
        s = power_above(amax * torch.tensor(1 / 6, dtype=torch.float32))
        out.append(bf16(nearest_e2m1((part / s).clamp(-6, 6)) * s))
    return torch.cat(out, -1)


def hadamard(x: Tensor) -> Tensor:
    n = x.shape[-1]
    matrix = torch.ones(1, 1, dtype=x.dtype)
    while matrix.shape[0] < n:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return bf16((x @ matrix) * n**-0.5)


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return bf16(y if weight is None else weight * y)


# Stored matrices: (kind, codes, scales) and what they mean.


def store_fp8(w: Tensor) -> tuple[str, Tensor, Tensor, Tensor]:
    rows, cols = w.shape
    scales = torch.zeros(-(-rows // 128), -(-cols // 128), dtype=torch.uint8)
    codes = torch.zeros(rows, cols, dtype=torch.uint8)
    value = torch.zeros(rows, cols)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
            s = power_above(w[at].abs().max() / 448)
            q = (w[at] / s).to(torch.float8_e4m3fn)
            codes[at], value[at] = q.view(torch.uint8), q.float() * s
            scales[i, j] = int(math.log2(s)) + 127
    return "F8_E4M3", codes, scales, value


def store_fp4(w: Tensor) -> tuple[str, Tensor, Tensor, Tensor]:
    rows, cols = w.shape
    parts = w.unflatten(1, (cols // 32, 32))
    s = power_above(parts.abs().amax(-1, keepdim=True) / 6)
    q = nearest_e2m1((parts / s).clamp(-6, 6))
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    code = (q.abs().unsqueeze(-1) == table).int().argmax(-1) + 8 * torch.signbit(q).int()
    code = code.flatten(1).to(torch.uint8)
    packed = code[:, 0::2] | (code[:, 1::2] << 4)
    scales = (torch.log2(s).squeeze(-1) + 127).to(torch.uint8)
    return "I8", packed, scales, (q * s).flatten(1)


class Weights:
    """Random tensors by official name; `values` has what they mean, `stored` what the file has."""

    def __init__(self, config: dict, seed: int):
        self.c, self.values, self.stored = config, {}, {}
        self.quantised: set[str] = set()
        torch.manual_seed(seed)
        self._fill()

    def plain(self, name: str, value: Tensor, dtype: str = "BF16") -> None:
        value = bf16(value) if dtype == "BF16" else value
        self.values[name] = value
        raw = value.to(torch.bfloat16) if dtype == "BF16" else value
        self.stored[name] = (dtype, list(value.shape), raw.contiguous().view(torch.uint8).numpy().tobytes())

    def matrix(self, name: str, rows: int, cols: int, gain: float = 1.0, expert: bool = False) -> None:
        w = torch.randn(rows, cols) * gain * cols**-0.5
        fp4 = expert and self.c.get("expert_dtype") == "fp4"
        dtype, codes, scales, value = store_fp4(w) if fp4 else store_fp8(w)
        self.values[name] = value
        self.quantised.add(name)
        self.stored[name + ".weight"] = (dtype, list(codes.shape), codes.numpy().tobytes())
        self.stored[name + ".scale"] = ("F8_E8M0", list(scales.shape), scales.numpy().tobytes())

    def norm(self, name: str, n: int) -> None:
        self.plain(name, 1 + 0.3 * torch.randn(n))

    def head(self, prefix: str) -> None:
        d, p = self.c["hidden_size"], self.c["hc_mult"]
        self.norm(prefix + "norm.weight", d)
        self.plain(prefix + "hc_head_fn", torch.randn(p, p * d) * (p * d) ** -0.5, "F32")
        self.plain(prefix + "hc_head_base", torch.randn(p), "F32")
        self.plain(prefix + "hc_head_scale", 0.5 + torch.rand(1), "F32")

    def compressor(self, prefix: str, m: int, width: int) -> None:
        columns = width * (2 if m == 4 else 1)
        d = self.c["hidden_size"]
        self.plain(prefix + "wkv.weight", torch.randn(columns, d) * d**-0.5)
        self.plain(prefix + "wgate.weight", torch.randn(columns, d) * d**-0.5)
        self.plain(prefix + "ape", torch.randn(m, columns), "F32")
        self.norm(prefix + "norm.weight", width)

    def _fill(self) -> None:
        c = self.c
        d, v, layers = c["hidden_size"], c["vocab_size"], c["num_hidden_layers"]
        self.plain("embed.weight", torch.randn(v, d) * 0.5)
        self.plain("head.weight", torch.randn(v, d) * 2 * d**-0.5)
        self.head("")
        for layer in range(layers + c["num_nextn_predict_layers"]):
            mtp = layer >= layers
            p = f"mtp.{layer - layers}." if mtp else f"layers.{layer}."
            if mtp:
                self.norm(p + "enorm.weight", d)
                self.norm(p + "hnorm.weight", d)
                self.matrix(p + "e_proj", d, d)
                self.matrix(p + "h_proj", d, d)
                self.head(p)
            self._block(layer, p, c["compress_ratios"][layer])

    def _block(self, layer: int, p: str, m: int) -> None:
        c = self.c
        d, hd, heads, streams = c["hidden_size"], c["head_dim"], c["num_attention_heads"], c["hc_mult"]
        for part in ("attn", "ffn"):
            rows = (2 + streams) * streams
            self.plain(f"{p}hc_{part}_fn", torch.randn(rows, streams * d) * (streams * d) ** -0.5, "F32")
            self.plain(f"{p}hc_{part}_base", torch.randn(rows), "F32")
            self.plain(f"{p}hc_{part}_scale", 0.5 + torch.rand(3), "F32")
            self.norm(f"{p}{part}_norm.weight", d)
        a = p + "attn."
        self.matrix(a + "wq_a", c["q_lora_rank"], d)
        self.norm(a + "q_norm.weight", c["q_lora_rank"])
        self.matrix(a + "wq_b", heads * hd, c["q_lora_rank"])
        self.matrix(a + "wkv", hd, d)
        self.norm(a + "kv_norm.weight", hd)
        self.plain(a + "attn_sink", torch.randn(heads), "F32")
        self.matrix(a + "wo_a", c["o_groups"] * c["o_lora_rank"], heads * hd // c["o_groups"])
        self.matrix(a + "wo_b", d, c["o_groups"] * c["o_lora_rank"])
        if m:
            self.compressor(a + "compressor.", m, hd)
        if m == 4:
            self.matrix(a + "indexer.wq_b", c["index_n_heads"] * c["index_head_dim"], c["q_lora_rank"])
            self.plain(a + "indexer.weights_proj.weight", torch.randn(c["index_n_heads"], d) * d**-0.5)
            self.compressor(a + "indexer.compressor.", m, c["index_head_dim"])
        f = p + "ffn."
        experts, active, inner = c["n_routed_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"]
        self.plain(f + "gate.weight", torch.randn(experts, d) * d**-0.5)
        if layer < c["num_hash_layers"]:
            table = torch.stack([torch.randperm(experts)[:active] for _ in range(c["vocab_size"])])
            self.values[f + "gate.tid2eid"] = table
            self.stored[f + "gate.tid2eid"] = ("I64", list(table.shape), table.numpy().tobytes())
        else:
            self.plain(f + "gate.bias", 0.3 * torch.randn(experts), "F32")
        for e in [*(f"experts.{i}" for i in range(experts)), "shared_experts"]:
            self.matrix(f"{f}{e}.w1", inner, d, 1.5, "shared" not in e)
            self.matrix(f"{f}{e}.w3", inner, d, 1.5, "shared" not in e)
            self.matrix(f"{f}{e}.w2", d, inner, 1.5, "shared" not in e)


class Reference:
    """One whole prompt at a time, T tokens."""

    def __init__(self, weights: Weights, dtype: torch.dtype):
        self.c = weights.c
        self.w = {name: x.to(dtype) if x.is_floating_point() else x for name, x in weights.values.items()}
        self.quantised = weights.quantised
        self.eps = self.c["rms_norm_eps"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        if name in self.quantised:
            return bf16(qdq8(x, 128) @ self.w[name].T)
        return bf16(x @ self.w[name + ".weight"].T)

    def frequencies(self, compressed: bool) -> Tensor:
        c, dims = self.c, self.c["qk_rope_head_dim"]
        theta = c["compress_rope_theta"] if compressed else c["rope_theta"]
        f = 1.0 / theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
        if not compressed:
            return f
        y = c["rope_scaling"]

        def corr(beta: float) -> float:
            return dims * math.log(y["original_max_position_embeddings"] / (2 * math.pi * beta)) / (2 * math.log(theta))

        low, high = max(math.floor(corr(y["beta_fast"])), 0), min(math.ceil(corr(y["beta_slow"])), dims - 1)
        ramp = ((torch.arange(dims // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        return f / y["factor"] * ramp + f * (1 - ramp)

    def rope(self, x: Tensor, positions: Tensor, compressed: bool, inverse: bool = False) -> Tensor:
        """x [T, ..., n]; the last dims turn in interleaved pairs."""
        dims = self.c["qk_rope_head_dim"]
        angle = positions.float()[:, None] * self.frequencies(compressed)
        cos, sin = angle.cos(), angle.sin()
        if inverse:
            sin = -sin
        while cos.dim() < x.dim():
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        tail = x[..., -dims:]
        a, b = tail[..., 0::2], tail[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        return bf16(torch.cat((x[..., :-dims], turned), -1))

    def entry(self, k: Tensor) -> Tensor:
        plain = self.c["head_dim"] - self.c["qk_rope_head_dim"]
        return torch.cat((bf16(qdq8(k[..., :plain], 64)), k[..., plain:]), -1)

    def hc_pre(self, x: Tensor, p: str) -> tuple[Tensor, Tensor, Tensor]:
        c, n = self.c, self.c["hc_mult"]
        flat = x.flatten(1)
        u = (flat @ self.w[p + "_fn"].T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)
        scale, base = self.w[p + "_scale"], self.w[p + "_base"]
        pre = torch.sigmoid(scale[0] * u[:, :n] + base[:n]) + c["hc_eps"]
        post = 2 * torch.sigmoid(scale[1] * u[:, n : 2 * n] + base[n : 2 * n])
        mix = (scale[2] * u[:, 2 * n :] + base[2 * n :]).unflatten(1, (n, n))
        mix = torch.softmax(mix, -1) + c["hc_eps"]
        mix = mix / (mix.sum(-2, keepdim=True) + c["hc_eps"])
        for _ in range(c["hc_sinkhorn_iters"] - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + c["hc_eps"])
            mix = mix / (mix.sum(-2, keepdim=True) + c["hc_eps"])
        return bf16((pre.unsqueeze(-1) * x).sum(1)), post, mix

    @staticmethod
    def hc_post(y: Tensor, x: Tensor, post: Tensor, mix: Tensor) -> Tensor:
        return bf16(post.unsqueeze(-1) * y.unsqueeze(1) + torch.einsum("tjk,tjd->tkd", mix, x))

    def compress(self, x: Tensor, p: str, m: int, width: int) -> tuple[Tensor, Tensor]:
        """Normed entries [blocks, width] and their positions, before rotation."""
        u, s = x @ self.w[p + "wkv.weight"].T, x @ self.w[p + "wgate.weight"].T
        s = s + self.w[p + "ape"][torch.arange(len(x)) % m]
        entries = []
        for block in range(len(x) // m):
            own = slice(block * m, block * m + m)
            before = slice(block * m - m, block * m)
            if m == 4:
                logits = [s[before, :width]] * (block > 0) + [s[own, width:]]
                values = [u[before, :width]] * (block > 0) + [u[own, width:]]
            else:
                logits, values = [s[own]], [u[own]]
            entries.append((torch.softmax(torch.cat(logits), 0) * torch.cat(values)).sum(0))
        z = torch.stack(entries) if entries else x.new_zeros(0, width)
        return rms(bf16(z), self.w[p + "norm.weight"], self.eps), torch.arange(len(entries)) * m

    def chosen_blocks(self, x: Tensor, qr: Tensor, p: str, count: int) -> Tensor:
        """Mask [T, blocks] of what the indexer chooses among the visible."""
        c, t = self.c, len(x)
        heads, dim = c["index_n_heads"], c["index_head_dim"]
        positions = torch.arange(t)
        visible = torch.arange(count) < ((positions + 1) // 4)[:, None]
        q = self.rope(self.linear(p + "wq_b", qr).unflatten(1, (heads, dim)), positions, True)
        q = qdq4(hadamard(q))
        k, at = self.compress(x, p + "compressor.", 4, dim)
        k = qdq4(hadamard(self.rope(k, at, True))) if count else k
        weight = bf16(self.linear(p + "weights_proj", x) * torch.tensor((dim * heads) ** -0.5, dtype=torch.float32))
        dots = torch.relu(bf16(torch.einsum("thd,wd->thw", q, k)))
        scores = bf16(bf16(dots * weight.unsqueeze(-1)).sum(1)).masked_fill(~visible, -math.inf)
        order = scores.argsort(dim=-1, descending=True, stable=True)[:, : c["index_topk"]]
        return torch.zeros_like(visible).scatter_(1, order, True) & visible

    def attention(self, x: Tensor, p: str, m: int) -> Tensor:
        c, t = self.c, len(x)
        heads, hd, positions = c["num_attention_heads"], c["head_dim"], torch.arange(t)
        qr = rms(self.linear(p + "wq_a", x), self.w[p + "q_norm.weight"], self.eps)
        q = rms(self.linear(p + "wq_b", qr).unflatten(1, (heads, hd)), None, self.eps)
        q = self.rope(q, positions, m > 0)
        keys = rms(self.linear(p + "wkv", x), self.w[p + "kv_norm.weight"], self.eps)
        keys = self.entry(self.rope(keys, positions, m > 0))
        distance = positions[:, None] - positions[None]
        allowed = (distance >= 0) & (distance < c["sliding_window"])
        if m:
            blocks, at = self.compress(x, p + "compressor.", m, hd)
            if len(blocks):
                keys = torch.cat((keys, self.entry(self.rope(blocks, at, True))))
            seen = torch.arange(len(blocks)) < ((positions + 1) // m)[:, None]
            if m == 4:
                seen = self.chosen_blocks(x, qr, p + "indexer.", len(blocks))
            allowed = torch.cat((allowed, seen), 1)
        logits = torch.einsum("thd,jd->thj", q, keys) * torch.tensor(hd**-0.5, dtype=torch.float32)
        logits = logits.masked_fill(~allowed.unsqueeze(1), -math.inf)
        top = logits.amax(-1, keepdim=True)
        e = torch.exp(logits - top)
        total = e.sum(-1, keepdim=True) + torch.exp(self.w[p + "attn_sink"][None, :, None] - top)
        o = bf16(torch.einsum("thj,jd->thd", bf16(e), keys) / total)
        o = self.rope(o, positions, m > 0, inverse=True)
        o = o.flatten(1).unflatten(1, (c["o_groups"], -1))
        wo_a = self.w[p + "wo_a"].unflatten(0, (c["o_groups"], -1))
        return self.linear(p + "wo_b", bf16(torch.einsum("tgi,goi->tgo", o, wo_a)).flatten(1))

    def expert(self, x: Tensor, p: str, weight: Tensor) -> Tensor:
        limit = self.c["swiglu_limit"]
        gate = self.linear(p + "w1", x).clamp(max=limit)
        up = self.linear(p + "w3", x).clamp(-limit, limit)
        return self.linear(p + "w2", bf16(torch.nn.functional.silu(gate) * up * weight))

    def moe(self, x: Tensor, ids: Tensor, p: str) -> Tensor:
        c = self.c
        g = torch.sqrt(torch.nn.functional.softplus(x @ self.w[p + "gate.weight"].T))
        if p + "gate.tid2eid" in self.w:
            chosen = self.w[p + "gate.tid2eid"][ids]
        else:
            chosen = (g + self.w[p + "gate.bias"]).topk(c["num_experts_per_tok"], -1).indices
        a = g.gather(1, chosen)
        a = c["routed_scaling_factor"] * a / a.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for e in range(c["n_routed_experts"]):
            for t, slot in (chosen == e).nonzero().tolist():
                y[t] += self.expert(x[t : t + 1], f"{p}experts.{e}.", a[t, slot])[0]
        return bf16(y + self.expert(x, p + "shared_experts.", torch.tensor(1.0)))

    def block(self, x: Tensor, ids: Tensor, p: str, m: int) -> Tensor:
        h, post, mix = self.hc_pre(x, p + "hc_attn")
        x = self.hc_post(self.attention(rms(h, self.w[p + "attn_norm.weight"], self.eps), p + "attn.", m), x, post, mix)
        h, post, mix = self.hc_pre(x, p + "hc_ffn")
        return self.hc_post(self.moe(rms(h, self.w[p + "ffn_norm.weight"], self.eps), ids, p + "ffn."), x, post, mix)

    def logits(self, x: Tensor, p: str) -> Tensor:
        flat = x.flatten(1)
        u = (flat @ self.w[p + "hc_head_fn"].T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)
        pre = torch.sigmoid(self.w[p + "hc_head_scale"] * u + self.w[p + "hc_head_base"]) + self.c["hc_eps"]
        h = bf16((pre.unsqueeze(-1) * x).sum(1))
        return rms(h, self.w[p + "norm.weight"], self.eps) @ self.w["head.weight"].T

    def run(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [T, V], and the MTP block's [T - 1, V]."""
        c = self.c
        layers = c["num_hidden_layers"]
        x = self.w["embed.weight"][ids].unsqueeze(1).repeat(1, c["hc_mult"], 1)
        for layer in range(layers):
            x = self.block(x, ids, f"layers.{layer}.", c["compress_ratios"][layer])
        if len(ids) == 1 or not c["num_nextn_predict_layers"]:
            return self.logits(x, ""), x.new_zeros(0, c["vocab_size"])
        following = ids[1:]
        e = rms(self.w["embed.weight"][following], self.w["mtp.0.enorm.weight"], self.eps)
        h = rms(x[:-1], self.w["mtp.0.hnorm.weight"], self.eps)
        z = bf16(self.linear("mtp.0.h_proj", h) + self.linear("mtp.0.e_proj", e).unsqueeze(1))
        return self.logits(x, ""), self.logits(self.block(z, following, "mtp.0.", c["compress_ratios"][layers]), "mtp.0.")


def save(path: Path, tensors: dict) -> None:
    header, data = {}, b""
    for name in sorted(tensors):
        dtype, shape, raw = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main(names: list[str]) -> None:
    torch.set_grad_enabled(False)
    for seed, (name, changes) in enumerate(MODELS.items()):
        if names and name not in names:
            continue
        config = {**BASE, **changes}
        weights = Weights(config, seed)
        target = HERE / "quantised" / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save(target / "model.safetensors", weights.stored)
        reference, exact, tensors = Reference(weights, torch.float32), Reference(weights, torch.float64), {}
        for i, length in enumerate(LENGTHS):
            ids = torch.randint(config["vocab_size"], (length,))
            logits, mtp = reference.run(ids)
            pairs = zip(exact.run(ids), (logits, mtp))
            noise = torch.stack([(a - b).abs().mean().nan_to_num() if len(b) else torch.tensor(0.0).double() for a, b in pairs]).float()
            kept = torch.arange(length) if length < 100 else torch.arange(0, length, 4)
            rows = {"logits": logits[kept], "mtp_logits": mtp[kept[kept < len(mtp)]], "noise": noise}
            for part, x in {"ids": ids, "positions": kept, **rows}.items():
                dtype = "F32" if x.is_floating_point() else "I64"
                tensors[f"case{i}.{part}"] = (dtype, list(x.shape), x.contiguous().numpy().tobytes())
        save(target / "golden.safetensors", tensors)
        print(f"{name}: {len(LENGTHS)} cases, largest logit {logits.abs().max():.2f}, noise {noise[0]:.1e}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
