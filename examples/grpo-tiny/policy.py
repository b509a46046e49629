"""The policy as the trainer sees it: the tiny DeepSeek-V4 in torch, its log-probabilities of delivered tokens, and one
GRPO update. Weights are saved in float32, so that the engine samples from exactly what is trained here.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

TINY = Path(__file__).resolve().parent.parent / "tiny-v4"
sys.path.insert(0, str(TINY))

from recipe import checkpoint  # noqa: E402

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
BATCH = 64  # trajectories of one forward pass


@dataclass(frozen=True)
class Sample:
    """One trajectory with its advantage. T tokens."""

    token_ids: np.ndarray  # i32 [T]
    loss_mask: np.ndarray  # u8 [T]
    logprobs: np.ndarray  # f32 [T], of the policy that sampled
    prompt_len: int
    advantage: float


@dataclass(frozen=True)
class Update:
    """What one update saw."""

    trained_tokens: int
    loss: float
    gradient_norm: float
    clipped: float  # share of tokens whose ratio met the clip
    mismatch: float  # mean |log p(engine) - log p(torch)| before the update
    kl: float  # mean k3 estimate of KL(engine || torch) before the update


def shared_prefix(samples: Sequence[Sample]) -> int:
    """Tokens that all begin with, at least one less than the shortest prompt."""
    most = min(sample.prompt_len for sample in samples) - 1
    first = samples[0].token_ids[:most]
    for sample in samples[1:]:
        differ = np.nonzero(first != sample.token_ids[: len(first)])[0]
        first = first[: differ[0]] if len(differ) else first
    return len(first)


class Policy:
    def __init__(self, directory: Path) -> None:
        self.model = checkpoint.load(directory)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)

    def set_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def logprobs(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the sampled tokens, all samples one after another, and the sample of each."""
        prefix = shared_prefix(samples)
        rest = [sample.token_ids[prefix:] for sample in samples]
        width = max(map(len, rest))
        ids = torch.tensor(np.stack([np.pad(row, (0, width - len(row))) for row in rest]), dtype=torch.long)
        masks = [np.pad(sample.loss_mask[prefix:], (0, width - len(row))) for sample, row in zip(samples, rest)]
        wanted = torch.tensor(np.stack(masks), dtype=torch.bool)[:, 1:]
        head = torch.tensor(samples[0].token_ids[None, :prefix], dtype=torch.long)
        _, state = self.model(head, wanted=torch.zeros_like(head, dtype=torch.bool))
        logits, _ = self.model(ids[:, :-1], state.spread(len(samples)), wanted=wanted)
        chosen = logits.log_softmax(-1).gather(1, ids[:, 1:][wanted][:, None])[:, 0]
        return chosen, torch.nonzero(wanted)[:, 0]

    def update(self, samples: Sequence[Sample], minibatches: int) -> Update:
        """Clipped policy gradient over all sampled tokens, once through the samples in their order."""
        size = -(-len(samples) // minibatches)
        seen = clipped = 0
        loss_sum = norm_sum = mismatch = kl = 0.0
        for begin in range(0, len(samples), size):
            minibatch = samples[begin : begin + size]
            tokens = sum(int(sample.loss_mask.sum()) for sample in minibatch)
            for at in range(0, len(minibatch), BATCH):
                part = minibatch[at : at + BATCH]
                new, owner = self.logprobs(part)
                old = torch.tensor(np.concatenate([s.logprobs[s.loss_mask == 1] for s in part]))
                advantage = torch.tensor([s.advantage for s in part], dtype=torch.float32)[owner]
                ratio = (new - old).exp()
                bounded = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
                gain = torch.minimum(ratio * advantage, bounded * advantage)
                loss = -gain.sum() / tokens
                loss.backward()
                loss_sum += loss.item() * tokens
                clipped += int((ratio * advantage > bounded * advantage).sum())
                if begin == 0:
                    difference = (new - old).detach()
                    mismatch += difference.abs().sum().item()
                    kl += (difference.exp() - 1 - difference).sum().item()
                    seen += len(difference)
            norm_sum += float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
            self.optimizer.step()
            self.optimizer.zero_grad()
        total = sum(int(sample.loss_mask.sum()) for sample in samples)
        rounds = -(-len(samples) // size)
        return Update(total, loss_sum / total, norm_sum / rounds, clipped / total, mismatch / seen, kl / seen)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def save(self, directory: Path) -> None:
        """A checkpoint directory that the daemon loads; there whole or not at all."""
        part = directory.with_name(directory.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        checkpoint.save(self.model, part, half=False)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, part / name)
        if directory.exists():
            shutil.rmtree(directory)
        part.rename(directory)
