#!/usr/bin/env python3
"""Makes everything in this directory from nothing: task files, tokenizer, trained checkpoint, prompt goldens.

A tiny DeepSeek-V4 learns to answer small sums by calling a shell. It is trained on right conversations (loss on the
assistant's tokens only) until the sampled loop is right about two times in three on held-out tasks, so that reinforcement
learning has something to improve. Needs PyPI torch, transformers, tokenizers, safetensors; CPU only; under an hour.

    python train.py                      # the whole thing, into this directory
    python train.py --evaluate           # accuracy of the checkpoint that is here, on tasks/test.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from recipe import checkpoint, goldens, tasks, vocabulary
from recipe.dialogue import Dialogue, corpus
from recipe.model import Probe, TinyV4
from recipe.muon import Muon
from recipe.sampled_eval import evaluate

HERE = Path(__file__).resolve().parent
VOCAB_SIZE = 640
BATCH = 48
INDEX_LOSS_EVERY = 4
BALANCE_RATE = 1e-3
EVALUATE_EVERY = 20
LARGEST_LOGIT_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class TaskSets:
    """Tasks by use; expressions of `test` and `held_out` occur nowhere else."""

    train: list[tasks.Task]
    test: list[tasks.Task]
    held_out: list[tasks.Task]
    reserved: set[str]


def make_tasks() -> TaskSets:
    rng, taken = random.Random(20260424), set[str]()
    test = tasks.draw_distinct(rng, 256, taken)
    held_out = tasks.draw_distinct(rng, 128, taken)
    reserved = set(taken)
    return TaskSets(tasks.draw_distinct(rng, 512, taken), test, held_out, reserved)


def optimizers(model: TinyV4) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for the rest. Hyper-connections and routers count as the rest."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        inside = name.startswith("layers.") and p.dim() >= 2
        (matrices if inside and not any(s in name for s in ("hc_", "gate.weight", "ape")) else others).append(p)
    return [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def train_step(model: TinyV4, dialogue: Dialogue, batch: list[tasks.Task], index_loss: bool) -> tuple[float, Probe]:
    """Gradients of one batch. The prefix is read once and shared."""
    prefix = torch.tensor([dialogue.prefix()])
    ids, own = dialogue.batch(batch)
    wanted = own[:, 1:]
    probe = Probe(index_loss=torch.zeros(()) if index_loss else None)
    _, state = model(prefix, probe=probe, wanted=torch.zeros_like(prefix, dtype=torch.bool))
    probe.loads.clear()
    logits, _ = model(ids[:, :-1], state.spread(len(batch)), probe, wanted)
    loss = F.cross_entropy(logits, ids[:, 1:][wanted])
    (loss + probe.index_loss if index_loss else loss).backward()
    return loss.item(), probe


def train(model: TinyV4, dialogue: Dialogue, sets: TaskSets, options: argparse.Namespace) -> None:
    """Stops at the target accuracy, or when steps or minutes are used up; the learning rate falls towards the nearer end."""
    rng, started = random.Random(1), time.monotonic()
    opts = optimizers(model)
    peaks = [opt.param_groups[0]["lr"] for opt in opts]
    for step in range(options.steps):
        minutes = (time.monotonic() - started) / 60
        progress = max(step / options.steps, minutes / options.minutes)
        if progress >= 1:
            break
        for opt, peak in zip(opts, peaks, strict=True):
            opt.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / 40, (1 - progress) / 0.6)
        batch = tasks.draw_distinct(rng, BATCH, set(sets.reserved))
        loss, probe = train_step(model, dialogue, batch, step % INDEX_LOSS_EVERY == 0)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        for gate, load in probe.loads:
            gate.rebalance(load, BALANCE_RATE)
        if step % 10 == 0:
            index = "" if probe.index_loss is None else f" index {probe.index_loss.item():.3f}"
            print(f"step {step} minutes {minutes:.1f} loss {loss:.4f}{index}", flush=True)
        if step % EVALUATE_EVERY == EVALUATE_EVERY - 1 and loss < 0.25:
            report = evaluate(model, dialogue, sets.held_out, seed=step)
            print(f"step {step} held-out {report}", flush=True)
            if report.accuracy >= options.target:
                break


def make_tokenizer(directory: Path, tool: dict) -> Tokenizer:
    return vocabulary.write(directory, corpus(tool, random.Random(7), tasks.draw), VOCAB_SIZE)


def evaluate_directory(directory: Path, tool: dict, test: list[tasks.Task]) -> None:
    """Accuracy of the stored BF16 weights on the test tasks, and their agreement with transformers."""
    dialogue = Dialogue(Tokenizer.from_file(str(directory / "tokenizer.json")), tool)
    report = evaluate(checkpoint.load(directory), dialogue, test, seed=0)
    print(f"test {report}")
    ids = dialogue.prefix() + [i for segment, _ in dialogue.segments(test[0]) for i in segment]
    difference = checkpoint.difference_from_transformers(directory, ids)
    print(f"largest logit difference from transformers over {len(ids)} tokens: {difference:.2e}")
    assert difference < LARGEST_LOGIT_DIFFERENCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="directory to write (default: this one)")
    parser.add_argument("--minutes", type=float, default=45, help="training time at most")
    parser.add_argument("--steps", type=int, default=1500, help="training steps at most; 0 leaves random weights")
    parser.add_argument("--target", type=float, default=0.68, help="held-out accuracy that ends training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the checkpoint that is there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tool = json.loads((HERE / "tool_sh.json").read_text(encoding="utf-8"))
    sets = make_tasks()
    if not options.evaluate:
        (options.out / "tasks").mkdir(parents=True, exist_ok=True)
        tasks.write_tasks(options.out / "tasks" / "train.jsonl", sets.train)
        tasks.write_tasks(options.out / "tasks" / "test.jsonl", sets.test)
        dialogue = Dialogue(make_tokenizer(options.out, tool), tool)
        goldens.write(options.out / "prompt_golden.json", dialogue, sets.test[:8])
        model = TinyV4(checkpoint.architecture(VOCAB_SIZE))
        print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(dialogue.prefix())} tokens before the question")
        train(model, dialogue, sets, options)
        checkpoint.save(model, options.out)
    evaluate_directory(options.out, tool, sets.test)


if __name__ == "__main__":
    main()
