"""Accuracy of the real loop at temperature 1: sample a call, run it, sample the answer, compare.

All tasks advance in lockstep, one token a step: a task with forced tokens waiting (question, tool result) reads one,
any other samples one, and a finished one reads padding. So one batch serves prompts and answers of any length.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch

from . import prompt
from .dialogue import Dialogue
from .model import Probe, TinyV4
from .tasks import Task, run_command


@dataclass
class Run:
    """One task on its way."""

    task: Task
    forced: deque[int]
    sampled: list[int] = field(default_factory=list)
    called: bool = False
    wrong_command: bool = False
    done: bool = False
    outcome: str = "unfinished"


@dataclass(frozen=True)
class Report:
    """Shares of the tasks, and the largest value that met the SwiGLU clamp."""

    count: int
    outcomes: dict[str, int]
    clamp_max: float

    @property
    def accuracy(self) -> float:
        return self.outcomes.get("right", 0) / self.count

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {n}" for name, n in sorted(self.outcomes.items()))
        return f"accuracy {self.accuracy:.3f} (n={self.count}: {parts}), largest |gate|,|up| {self.clamp_max:.2f}"


def _end_turn(run: Run, dialogue: Dialogue) -> None:
    """EOS was sampled: run the call and queue its result, or judge the answer."""
    text = dialogue.tokenizer.decode(run.sampled, skip_special_tokens=False)
    run.sampled = []
    command = prompt.parse_call(text)
    if command is None or run.called:
        run.done = True
        run.outcome = "right" if text == run.task.answer else ("wrong answer" if run.called else "bad call")
        if run.outcome == "wrong answer" and run.wrong_command:
            run.outcome = "wrong command"
        return
    run.called = True
    run.wrong_command = command != run.task.command
    run.forced.extend(dialogue.result(run_command(command)))


@torch.no_grad()
def evaluate(model: TinyV4, dialogue: Dialogue, tasks: list[Task], seed: int, max_tokens: int = 160) -> Report:
    """Runs every task once."""
    generator = torch.Generator().manual_seed(seed)
    eos = dialogue.tokenizer.token_to_id(prompt.EOS)
    pad = dialogue.tokenizer.token_to_id(prompt.PAD)
    runs = [Run(task, deque(dialogue.question(task))) for task in tasks]
    probe = Probe(watch_clamp=True)
    _, state = model(torch.tensor([dialogue.prefix()]), probe=probe)
    state = state.spread(len(runs))
    drawn = [pad] * len(runs)
    for _ in range(max_tokens):
        fed = []
        for run, token in zip(runs, drawn, strict=True):
            if run.done:
                fed.append(pad)
            elif run.forced:
                fed.append(run.forced.popleft())
            else:
                fed.append(token)
        logits, state = model(torch.tensor(fed)[:, None], state, probe)
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist()
        for run, token in zip(runs, drawn, strict=True):
            if run.done or run.forced:
                continue
            if token == eos:
                run.forced.append(eos)
                _end_turn(run, dialogue)
            else:
                run.sampled.append(token)
        if all(run.done for run in runs):
            break
    outcomes: dict[str, int] = {}
    for run in runs:
        outcomes[run.outcome] = outcomes.get(run.outcome, 0) + 1
    return Report(len(runs), outcomes, probe.clamp_max)
