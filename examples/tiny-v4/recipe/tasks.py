"""The tasks: small sums asked in words, answered by one shell command. Questions, commands, answers, task files."""

from __future__ import annotations

import json
import random
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHRASES = ("What is {}?", "Compute {}.", "How much is {}?")
_SAFE_COMMAND = re.compile(r"echo \$\(\([0-9+\-*]*\)\)")
_REFUSED = "error: command refused"


@dataclass(frozen=True)
class Task:
    """One question. `expression` is what belongs between the shell's `$((` and `))`, without blanks."""

    question: str
    expression: str
    answer: str

    @property
    def command(self) -> str:
        return f"echo $(({self.expression}))"


def _evaluate(numbers: list[int], operators: list[str]) -> int:
    """Products first, then sums from the left: the order that the shell uses."""
    total, sign, product = 0, 1, numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        if operator == "*":
            product *= number
        else:
            total += sign * product
            sign, product = (1 if operator == "+" else -1), number
    return total + sign * product


def draw(rng: random.Random) -> Task:
    """A random task: two operands (one time in four three), one to three digits each."""
    count = 3 if rng.random() < 0.25 else 2
    numbers = [rng.randrange(1, 10 ** rng.randint(1, 3)) for _ in range(count)]
    operators = [rng.choice("+-*") for _ in range(count - 1)]
    blanked, bare = str(numbers[0]), str(numbers[0])
    for operator, number in zip(operators, numbers[1:], strict=True):
        blanked += f" {operator} {number}"
        bare += f"{operator}{number}"
    return Task(rng.choice(PHRASES).format(blanked), bare, str(_evaluate(numbers, operators)))


def draw_distinct(rng: random.Random, count: int, taken: set[str]) -> list[Task]:
    """`count` tasks whose expressions are not in `taken`; adds theirs to it."""
    tasks: list[Task] = []
    while len(tasks) < count:
        task = draw(rng)
        if task.expression not in taken:
            taken.add(task.expression)
            tasks.append(task)
    return tasks


def run_command(command: str) -> str:
    """What the tool answers: real standard output less one trailing newline; only sums are run."""
    if not _SAFE_COMMAND.fullmatch(command):
        return _REFUSED
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.removesuffix("\n")


def to_record(task: Task, task_id: str) -> dict[str, Any]:
    """The task as a line of a task file."""
    check = 'test "$REPRISE_RESPONSE" = "$EXPECTED"'
    return {
        "id": task_id,
        "messages": [{"role": "user", "content": task.question}],
        "reward": {"kind": "command", "command": ["sh", "-c", check], "env": {"EXPECTED": task.answer}},
        "metadata": {"answer": task.answer},
    }


def write_tasks(path: Path, tasks: list[Task]) -> None:
    """One JSON record a line; ids are the file's stem and a number from 0001."""
    lines = (json.dumps(to_record(t, f"{path.stem}-{i:04d}"), ensure_ascii=False) for i, t in enumerate(tasks, 1))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
