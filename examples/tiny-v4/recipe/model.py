"""DeepSeek-V4 in plain torch, small enough to train on a CPU. Parameter names are the official checkpoint names.

forward() takes a chunk of tokens and the state that the tokens before it left, so the same code reads a prompt in one
piece, decodes token by token, and trains: the tools block that starts every prompt is read once a step with batch 1,
its state is spread over the batch, and gradients flow back through it. No activation quantisation: the checkpoint is BF16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Config = dict[str, Any]


@dataclass
class Rows:
    """Compressor rows that later blocks still need: [B, rows, c*dd] values and gate logits (ape added)."""

    values: Tensor
    gates: Tensor


@dataclass
class LayerState:
    """What one layer keeps of the tokens before the chunk."""

    window: Tensor  # [B, <= W-1, d]
    blocks: Tensor | None = None  # [B, blocks, d]
    rows: Rows | None = None
    index_blocks: Tensor | None = None  # [B, blocks, di]
    index_rows: Rows | None = None

    def spread(self, batch: int) -> LayerState:
        """The state of one sequence, seen by `batch` sequences."""

        def many(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.expand(batch, -1, -1)

        def many_rows(rows: Rows | None) -> Rows | None:
            return None if rows is None else Rows(many(rows.values), many(rows.gates))

        return LayerState(
            many(self.window), many(self.blocks), many_rows(self.rows), many(self.index_blocks), many_rows(self.index_rows)
        )


@dataclass
class State:
    """All layers, and the number of tokens read so far."""

    length: int
    layers: list[LayerState]

    def spread(self, batch: int) -> State:
        return State(self.length, [layer.spread(batch) for layer in self.layers])


@dataclass
class Probe:
    """What a forward pass reports beside its logits."""

    index_loss: Tensor | None = None
    loads: list[tuple[Gate, Tensor]] = field(default_factory=list)
    clamp_max: float = 0.0  # largest |gate| or |up| before the clamp; filled when `watch_clamp`
    watch_clamp: bool = False


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=False)
    nn.init.normal_(linear.weight, std=gain / math.sqrt(columns))
    return linear


class Norm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms(x, self.weight, self.eps)


class Rotary:
    """Interleaved rotation of the last `dims` channels; the compressed table is YaRN without its magnitude factor."""

    def __init__(self, config: Config, compressed: bool):
        self.dims = config["qk_rope_head_dim"]
        theta = config["compress_rope_theta" if compressed else "rope_theta"]
        freqs = theta ** (-torch.arange(0, self.dims, 2, dtype=torch.float32) / self.dims)
        self.freqs = self._yarn(freqs, theta, config["rope_scaling"]) if compressed else freqs

    def _yarn(self, freqs: Tensor, theta: float, scaling: Config) -> Tensor:
        def corr(turns: float) -> float:
            length = scaling["original_max_position_embeddings"]
            return self.dims * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

        low = max(math.floor(corr(scaling["beta_fast"])), 0)
        high = min(math.ceil(corr(scaling["beta_slow"])), self.dims - 1)
        ramp = ((torch.arange(self.dims // 2) - low) / (high - low)).clamp(0, 1)
        return freqs / scaling["factor"] * ramp + freqs * (1 - ramp)

    def __call__(self, x: Tensor, positions: Tensor, inverse: bool = False) -> Tensor:
        """x [B, T, (H,) d], positions [T]."""
        angles = positions.float()[:, None] * self.freqs
        cos, sin = angles.cos(), -angles.sin() if inverse else angles.sin()
        if x.dim() == 4:
            cos, sin = cos[:, None], sin[:, None]
        plain, turned = x.split([x.shape[-1] - self.dims, self.dims], dim=-1)
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        return torch.cat((plain, turned), dim=-1)


class Compressor(nn.Module):
    """Pools every m tokens into one entry of `width` channels; m = 4 also reads the block before (overlap)."""

    def __init__(self, config: Config, m: int, width: int, rotary: Rotary):
        super().__init__()
        self.m, self.width, self.rotary, self.overlap = m, width, rotary, m == 4
        columns = width * (2 if self.overlap else 1)
        hidden = config["hidden_size"]
        self.wkv, self.wgate = matrix(columns, hidden), matrix(columns, hidden, 0.5)
        self.ape = nn.Parameter(torch.zeros(m, columns))
        self.norm = Norm(width, config["rms_norm_eps"])

    def _pool(self, rows: Rows, first_row: int, first: int, end: int) -> Tensor:
        """Blocks first..end-1, from rows whose first stands at position `first_row`."""
        m, width, batch = self.m, self.width, rows.values.shape[0]

        def block_rows(x: Tensor, start: int, stop: int) -> Tensor:
            return x[:, start * m - first_row : stop * m - first_row].unflatten(1, (stop - start, m))

        values, gates = block_rows(rows.values, first, end), block_rows(rows.gates, first, end)
        if self.overlap:
            before = max(first - 1, 0)
            low_values = block_rows(rows.values, before, end - 1)[..., :width]
            low_gates = block_rows(rows.gates, before, end - 1)[..., :width]
            if first == 0:
                none = values.new_zeros(batch, 1, m, width)
                low_values = torch.cat((none, low_values), dim=1)
                low_gates = torch.cat((torch.full_like(none, -math.inf), low_gates), dim=1)
            values = torch.cat((low_values, values[..., width:]), dim=2)
            gates = torch.cat((low_gates, gates[..., width:]), dim=2)
        return (values * gates.softmax(dim=2)).sum(dim=2)

    def forward(self, x: Tensor, start: int, rows: Rows | None, blocks: Tensor | None) -> tuple[Rows, Tensor]:
        """Returns the rows to keep and all entries up to the end of the chunk."""
        positions = torch.arange(start, start + x.shape[1])
        rows = rows or Rows(x.new_zeros(x.shape[0], 0, self.wkv.out_features), x.new_zeros(x.shape[0], 0, self.wkv.out_features))
        first_row = start - rows.values.shape[1]
        rows = Rows(
            torch.cat((rows.values, self.wkv(x)), dim=1),
            torch.cat((rows.gates, self.wgate(x) + self.ape[positions % self.m]), dim=1),
        )
        blocks = x.new_zeros(x.shape[0], 0, self.width) if blocks is None else blocks
        first, end = start // self.m, (start + x.shape[1]) // self.m
        if end > first:
            entries = self.norm(self._pool(rows, first_row, first, end))
            entries = self.rotary(entries, torch.arange(first, end) * self.m)
            blocks = torch.cat((blocks, entries), dim=1)
        keep = max(end - 1, 0) if self.overlap else end
        cut = keep * self.m - first_row
        return Rows(rows.values[:, cut:], rows.gates[:, cut:]), blocks


class Indexer(nn.Module):
    """Scores the compressed blocks of a CSA layer; the best index_topk are attended to."""

    def __init__(self, config: Config, rotary: Rotary):
        super().__init__()
        self.heads, self.width = config["index_n_heads"], config["index_head_dim"]
        self.rotary, self.topk = rotary, config["index_topk"]
        self.wq_b = matrix(self.heads * self.width, config["q_lora_rank"])
        self.weights_proj = matrix(self.heads, config["hidden_size"])
        self.compressor = Compressor(config, 4, self.width, rotary)

    def scores(self, x: Tensor, qr: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """[B, T, blocks], before the causal mask."""
        q = self.rotary(self.wq_b(qr).unflatten(-1, (self.heads, self.width)), positions)
        weights = self.weights_proj(x) * (self.width * self.heads) ** -0.5
        dots = torch.matmul(q.flatten(1, 2), keys.transpose(1, 2)).unflatten(1, q.shape[1:3])
        return torch.matmul(weights.unsqueeze(2), dots.relu()).squeeze(2)

    def select(self, scores: Tensor, visible: Tensor) -> Tensor:
        """Mask [B, T, blocks] of the chosen blocks."""
        if scores.shape[-1] <= self.topk:
            return visible.expand_as(scores)
        chosen = scores.masked_fill(~visible, -math.inf).topk(self.topk, dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True) & visible


class Attention(nn.Module):
    def __init__(self, config: Config, m: int):
        super().__init__()
        hidden, self.m, self.eps = config["hidden_size"], m, config["rms_norm_eps"]
        self.heads, self.width = config["num_attention_heads"], config["head_dim"]
        self.window, self.groups = config["sliding_window"], config["o_groups"]
        self.rotary = Rotary(config, compressed=m > 0)
        rank = config["o_lora_rank"]
        self.wq_a, self.wq_b = matrix(config["q_lora_rank"], hidden), matrix(self.heads * self.width, config["q_lora_rank"])
        self.wkv = matrix(self.width, hidden)
        self.q_norm, self.kv_norm = Norm(config["q_lora_rank"], self.eps), Norm(self.width, self.eps)
        self.wo_a = matrix(self.groups * rank, self.heads * self.width // self.groups)
        self.wo_b = matrix(hidden, self.groups * rank, (2 * config["num_hidden_layers"]) ** -0.5)
        self.attn_sink = nn.Parameter(torch.zeros(self.heads))
        if m:
            self.compressor = Compressor(config, m, self.width, self.rotary)
        if m == 4:
            self.indexer = Indexer(config, self.rotary)

    def _compressed(self, x: Tensor, qr: Tensor, q: Tensor, start: int, old: LayerState | None, new: LayerState, probe: Probe) -> Tensor:
        """Fills the compressed part of `new`; returns the mask [B or 1, T, blocks] of blocks to attend to."""
        positions = torch.arange(start, start + x.shape[1])
        new.rows, new.blocks = self.compressor(x, start, old and old.rows, old and old.blocks)
        count = new.blocks.shape[1]
        visible = (torch.arange(count) < ((positions + 1) // self.m)[:, None])[None]
        if self.m != 4:
            return visible
        # The choice has no gradient. The indexer learns to predict where attention goes, and from nothing else.
        learn = probe.index_loss is not None
        with torch.set_grad_enabled(learn):
            x, qr = x.detach(), qr.detach()
            new.index_rows, new.index_blocks = self.indexer.compressor(x, start, old and old.index_rows, old and old.index_blocks)
            scores = self.indexer.scores(x, qr, new.index_blocks, positions)
            if learn and count:
                probe.index_loss = probe.index_loss + self._index_loss(scores, q, new.blocks, visible)
        return self.indexer.select(scores.detach(), visible)

    def _index_loss(self, scores: Tensor, q: Tensor, blocks: Tensor, visible: Tensor) -> Tensor:
        """Cross entropy of the indexer against the attention mass that all heads put on each visible block."""
        seen = visible.any(-1, keepdim=True)
        with torch.no_grad():
            logits = torch.matmul(q.flatten(1, 2), blocks.transpose(1, 2)).unflatten(1, q.shape[1:3]) * self.width**-0.5
            target = logits.masked_fill(~visible.unsqueeze(2), -1e9).softmax(-1).mean(2)
        guess = scores.masked_fill(~visible, -1e9).log_softmax(-1)
        return -((target * guess).sum(-1, keepdim=True) * seen).mean()

    def forward(self, x: Tensor, start: int, old: LayerState | None, probe: Probe) -> tuple[Tensor, LayerState]:
        batch, count, _ = x.shape
        positions = torch.arange(start, start + count)
        qr = self.q_norm(self.wq_a(x))
        q = self.rotary(rms(self.wq_b(qr).unflatten(-1, (self.heads, self.width)), None, self.eps), positions)
        keys = self.rotary(self.kv_norm(self.wkv(x)), positions)
        if old is not None:
            keys = torch.cat((old.window, keys), dim=1)
        key_positions = torch.arange(start + count - keys.shape[1], start + count)
        distance = positions[:, None] - key_positions
        allowed = ((distance >= 0) & (distance < self.window))[None]
        state = LayerState(keys[:, max(keys.shape[1] - self.window + 1, 0) :])
        if self.m:
            chosen = self._compressed(x, qr, q, start, old, state, probe)
            allowed = torch.cat((allowed.expand(chosen.shape[0], -1, -1), chosen), dim=-1)
            keys = torch.cat((keys, state.blocks), dim=1)
        y = self._attend(q, keys, allowed)
        y = self.rotary(y, positions, inverse=True)
        y = y.reshape(batch * count, self.groups, -1).transpose(0, 1)
        y = torch.bmm(y, self.wo_a.weight.unflatten(0, (self.groups, -1)).transpose(1, 2))
        return self.wo_b(y.transpose(0, 1).reshape(batch, count, -1)), state

    def _attend(self, q: Tensor, keys: Tensor, allowed: Tensor) -> Tensor:
        """Softmax attention. The sink is one more key of zeros whose logit is the sink itself."""
        keys = F.pad(keys, (0, 0, 0, 1))
        bias = torch.zeros(allowed.shape).masked_fill_(~allowed, -math.inf).unsqueeze(2).expand(-1, -1, self.heads, -1)
        sink = self.attn_sink[None, None, :, None].expand(*bias.shape[:3], 1)
        logits = torch.matmul(q.flatten(1, 2), keys.transpose(1, 2)).unflatten(1, q.shape[1:3])
        weights = (logits * self.width**-0.5 + torch.cat((bias, sink), dim=-1)).softmax(-1)
        return torch.matmul(weights.flatten(1, 2), keys).unflatten(1, q.shape[1:3])


class Gate(nn.Module):
    """Router. Hash layers look their experts up by token id; learned layers take the best scores plus a balancing bias."""

    def __init__(self, config: Config, hashed: bool):
        super().__init__()
        experts, self.active = config["n_routed_experts"], config["num_experts_per_tok"]
        self.scale = config["routed_scaling_factor"]
        self.weight = nn.Parameter(torch.randn(experts, config["hidden_size"]) * config["hidden_size"] ** -0.5)
        if hashed:
            table = torch.stack([torch.randperm(experts)[: self.active] for _ in range(config["vocab_size"])])
            self.register_buffer("tid2eid", table)
        else:
            self.register_buffer("bias", torch.zeros(experts))

    def forward(self, x: Tensor, ids: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
        scores = F.softplus(F.linear(x, self.weight)).sqrt()
        if hasattr(self, "tid2eid"):
            chosen = self.tid2eid[ids]
        else:
            chosen = (scores.detach() + self.bias).topk(self.active, dim=-1).indices
            probe.loads.append((self, torch.bincount(chosen.flatten(), minlength=len(self.bias))))
        weights = scores.gather(-1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True) * self.scale

    def rebalance(self, load: Tensor, rate: float) -> None:
        """Pushes the bias of busy experts down and of idle ones up, without a loss term."""
        self.bias += rate * (load.float().mean() - load).sign()


class Expert(nn.Module):
    """The shared expert: w1 gate, w3 up, w2 down."""

    def __init__(self, config: Config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.w1, self.w3 = matrix(inner, hidden), matrix(inner, hidden)
        self.w2 = matrix(hidden, inner, (2 * config["num_hidden_layers"]) ** -0.5)
        self.limit = config["swiglu_limit"]

    def forward(self, x: Tensor, probe: Probe) -> Tensor:
        return self.w2(swiglu(self.w1(x), self.w3(x), self.limit, probe))


def swiglu(gate: Tensor, up: Tensor, limit: float, probe: Probe) -> Tensor:
    if probe.watch_clamp and gate.numel():
        probe.clamp_max = max(probe.clamp_max, gate.abs().max().item(), up.abs().max().item())
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


class MoE(nn.Module):
    """Routed experts, stacked in two tensors here and stored one by one in the checkpoint, and the shared one."""

    def __init__(self, config: Config, hashed: bool):
        super().__init__()
        hidden, inner, experts = config["hidden_size"], config["moe_intermediate_size"], config["n_routed_experts"]
        self.limit = config["swiglu_limit"]
        self.gate = Gate(config, hashed)
        self.shared_experts = Expert(config)
        self.w13 = nn.Parameter(torch.randn(experts, 2 * inner, hidden) * hidden**-0.5)
        gain = (2 * config["num_hidden_layers"]) ** -0.5
        self.w2 = nn.Parameter(torch.randn(experts, hidden, inner) * gain * inner**-0.5)

    def forward(self, x: Tensor, ids: Tensor, probe: Probe) -> Tensor:
        """x [tokens, D], ids [tokens]. Rows are sorted by expert so that each expert is one matrix product."""
        chosen, weights = self.gate(x, ids, probe)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.w13)).tolist()
        rows = x.index_select(0, order // chosen.shape[1])
        inner = torch.cat([F.linear(part, w) for part, w in zip(rows.split(counts), self.w13)])
        gate, up = inner.chunk(2, dim=-1)
        inner = swiglu(gate, up, self.limit, probe) * weights.flatten().index_select(0, order)[:, None]
        out = torch.cat([F.linear(part, w) for part, w in zip(inner.split(counts), self.w2)])
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        routed = out.index_select(0, back).unflatten(0, chosen.shape).sum(1)
        return routed + self.shared_experts(x, probe)


def sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """Doubly stochastic [P, P, tokens] from logits; dimension 0 is the stream read, 1 the stream written."""
    c = logits.softmax(1) + eps
    c = c / (c.sum(0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(1, keepdim=True) + eps)
        c = c / (c.sum(0, keepdim=True) + eps)
    return c


class Block(nn.Module):
    """Attention and experts around P residual streams that hyper-connections mix."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        hidden, self.streams, self.eps = config["hidden_size"], config["hc_mult"], config["rms_norm_eps"]
        self.iterations, self.hc_eps = config["hc_sinkhorn_iters"], config["hc_eps"]
        self.attn_norm, self.ffn_norm = Norm(hidden, self.eps), Norm(hidden, self.eps)
        self.attn = Attention(config, config["compress_ratios"][layer])
        self.ffn = MoE(config, layer < config["num_hash_layers"])
        for part, turn in (("attn", 2 * layer), ("ffn", 2 * layer + 1)):
            setattr(self, f"hc_{part}_fn", nn.Parameter(torch.randn((2 + self.streams) * self.streams, self.streams * hidden) * 0.02))
            setattr(self, f"hc_{part}_base", nn.Parameter(self._base(turn)))
            setattr(self, f"hc_{part}_scale", nn.Parameter(torch.ones(3)))

    def _base(self, turn: int) -> Tensor:
        """Streams start apart: each sublayer reads mostly one of them, and every stream keeps mostly itself."""
        pre = torch.full((self.streams,), -1.0)
        pre[turn % self.streams] = 1.0
        return torch.cat((pre, torch.zeros(self.streams), (3.0 * torch.eye(self.streams)).flatten()))

    def _connect(self, streams: Tensor, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """streams [tokens, P, D] -> input [tokens, D], post [tokens, P], mixing matrix [tokens, written, read]."""
        p = self.streams
        fn, base, scale = (getattr(self, f"hc_{part}_{name}") for name in ("fn", "base", "scale"))
        flat = streams.flatten(1)
        u = F.linear(flat, fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)
        u = (u * scale.repeat_interleave(torch.tensor([p, p, p * p])) + base).t()
        pre = u[:p].sigmoid().t() + self.hc_eps
        post = 2 * u[p : 2 * p].sigmoid().t()
        mix = sinkhorn(u[2 * p :].unflatten(0, (p, p)).contiguous(), self.iterations, self.hc_eps)
        return torch.bmm(pre.unsqueeze(1), streams).squeeze(1), post, mix.permute(2, 1, 0).contiguous()

    @staticmethod
    def _write(streams: Tensor, y: Tensor, post: Tensor, mix: Tensor) -> Tensor:
        return torch.baddbmm(post.unsqueeze(2) * y.unsqueeze(1), mix, streams)

    def forward(self, streams: Tensor, ids: Tensor, start: int, old: LayerState | None, probe: Probe) -> tuple[Tensor, LayerState]:
        """streams [B*T, P, D], ids [B, T]."""
        x, post, mix = self._connect(streams, "attn")
        y, state = self.attn(self.attn_norm(x).unflatten(0, ids.shape), start, old, probe)
        streams = self._write(streams, y.flatten(0, 1), post, mix)
        x, post, mix = self._connect(streams, "ffn")
        return self._write(streams, self.ffn(self.ffn_norm(x), ids.flatten(), probe), post, mix), state


class TinyV4(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config, hidden = config, config["hidden_size"]
        self.streams, self.eps = config["hc_mult"], config["rms_norm_eps"]
        self.embed = nn.Embedding(config["vocab_size"], hidden)
        nn.init.normal_(self.embed.weight, std=0.5)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config["num_hidden_layers"]))
        self.norm = Norm(hidden, self.eps)
        self.head = matrix(config["vocab_size"], hidden, 0.5)
        self.hc_head_fn = nn.Parameter(torch.randn(self.streams, self.streams * hidden) * 0.02)
        self.hc_head_base = nn.Parameter(torch.zeros(self.streams))
        self.hc_head_scale = nn.Parameter(torch.ones(1))

    def forward(self, ids: Tensor, state: State | None = None, probe: Probe | None = None, wanted: Tensor | None = None) -> tuple[Tensor, State]:
        """ids [B, T]. Logits [tokens, V] of all tokens, or of those where the mask `wanted` [B, T] is set."""
        probe = probe or Probe()
        start = state.length if state else 0
        streams = self.embed(ids.flatten()).unsqueeze(1).expand(-1, self.streams, -1)
        layers = []
        for i, layer in enumerate(self.layers):
            streams, kept = layer(streams, ids, start, state and state.layers[i], probe)
            layers.append(kept)
        state = State(start + ids.shape[1], layers)
        return self._logits(streams if wanted is None else streams[wanted.flatten()]), state

    def _logits(self, streams: Tensor) -> Tensor:
        flat = streams.flatten(1)
        u = F.linear(flat, self.hc_head_fn) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)
        pre = (u * self.hc_head_scale + self.hc_head_base).sigmoid() + self.config["hc_eps"]
        return self.head(self.norm((pre.unsqueeze(-1) * streams).sum(1)))
