"""Tasks as token ids: the shared prefix (BOS and tools block), and the four segments of a conversation after it.

Every segment ends at a special token, so encoding segments apart gives the ids of the whole text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from . import prompt
from .tasks import Task


def question_messages(task: Task) -> list[prompt.Message]:
    return [{"role": "user", "content": task.question}]


def call_message(task: Task) -> prompt.Message:
    function = {"name": "sh", "arguments": prompt.to_json({"command": task.command})}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def full_messages(task: Task, result: str) -> list[prompt.Message]:
    """Question, call, tool result, answer."""
    tool = {"role": "tool", "content": result}
    return [*question_messages(task), call_message(task), tool, {"role": "assistant", "content": task.answer}]


@dataclass(frozen=True)
class Dialogue:
    """Renders and encodes for one tool."""

    tokenizer: Tokenizer
    tool: dict[str, Any]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self) -> list[int]:
        """What every prompt starts with, up to and without the first user token."""
        return self.encode(self._prefix_text())

    def _prefix_text(self) -> str:
        return prompt.render([{"role": "system", "content": ""}], [self.tool])

    def question(self, task: Task) -> list[int]:
        """The rest of the prompt."""
        whole = prompt.render(question_messages(task), [self.tool])
        return self.encode(whole.removeprefix(self._prefix_text()))

    def result(self, output: str) -> list[int]:
        """The tool's turn after a call."""
        turn = prompt.render([{"role": "tool", "content": output}])
        return self.encode(turn.removeprefix(prompt.BOS))

    def turn(self, message: prompt.Message) -> list[int]:
        """An assistant turn, EOS included."""
        return self.encode(prompt.render([message]).removeprefix(prompt.BOS))

    def segments(self, task: Task) -> list[tuple[list[int], bool]]:
        """A right conversation after the prefix, as (ids, written by the assistant)."""
        return [
            (self.question(task), False),
            (self.turn(call_message(task)), True),
            (self.result(task.answer), False),
            (self.turn({"role": "assistant", "content": task.answer}), True),
        ]

    def batch(self, tasks: list[Task]) -> tuple[Tensor, Tensor]:
        """ids [B, T] padded at the end, and the mask [B, T] of tokens that the assistant wrote."""
        rows, masks = [], []
        for task in tasks:
            segments = self.segments(task)
            rows.append([i for ids, _ in segments for i in ids])
            masks.append([own for ids, own in segments for _ in ids])
        width = max(map(len, rows))
        pad = self.tokenizer.token_to_id(prompt.PAD)
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        return ids, torch.tensor([mask + [False] * (width - len(mask)) for mask in masks])


def corpus(tool: dict[str, Any], rng: random.Random, draw: Any) -> list[str]:
    """Text for the tokenizer: mostly conversations, and the tools block often enough to be merged into words."""
    texts = [prompt.render([{"role": "system", "content": ""}], [tool])] * 100
    for _ in range(300):
        task = draw(rng)
        texts.append(prompt.render(full_messages(task, task.answer)))
    return texts

