"""Both daemons as `reprise up` runs them, on a state directory of the test's own, ended by SIGTERM or SIGKILL."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bin", required=True, help="directory of the built programs")
    parser.addoption("--source", required=True, help="root of the tree")


class Daemons:
    def __init__(self, program: Path, state: Path, model: Path) -> None:
        self.state, self.model = state, model
        self._argv = [str(program), "up", "--json", "--state", str(state), "--threads", "1"]
        self.process: subprocess.Popen[bytes] | None = None
        self.tasks = state.with_suffix(".jsonl")
        lines = [json.dumps({"id": f"task-{i}", "prompt": f"Compute {i} + 2."}) for i in range(6)]
        self.tasks.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        log = open(self.state.with_suffix(".log"), "ab")
        self.process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=log)
        log.close()
        text = b""
        for line in self.process.stdout:  # type: ignore[union-attr]
            text += line
            try:
                json.loads(text)
                return
            except ValueError:
                continue
        raise AssertionError("the daemons did not start: " + self.state.with_suffix(".log").read_text())

    def end(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(60)
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process = None

    def job(self, job_id: str, **keys: Any) -> dict[str, Any]:
        """4 groups of 2 short trajectories that no tool is part of."""
        base = {
            "id": job_id, "model": self.model, "tasks": self.tasks, "limit": 4, "group_size": 2,
            "seed": 1, "thinking": "chat", "limits": {"max_tokens": 24}, "reward": {"kind": "match", "answer": "4"},
        }  # fmt: skip
        return {**base, **keys}


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemons]:
    program = Path(request.config.getoption("--bin")) / "reprise"
    model = Path(request.config.getoption("--source")) / "examples/tiny-v4"
    made = Daemons(program, tmp_path_factory.mktemp("up") / "state", model)
    made.start()
    yield made
    made.end()
