#!/usr/bin/env python3
"""GRPO on the tiny DeepSeek-V4 through Reprise: every step is one rollout job, its groups come under leases, and the
new weights are in force before the next step's first token.

The state of a step (weights, optimiser, table) is on disk before its groups are acknowledged, so the same command again
goes on where it was killed; a step that was cut off is done again from the same groups, with the same bytes.

    examples/grpo-tiny/run                       # daemons, training, table, plot
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, TypeVar

import numpy as np
import torch

from policy import TINY, Policy, Sample
from reprise import Client, Group, Record, RepriseError

T = TypeVar("T")
RETRY_S = 1.0
GIVE_UP_S = 300.0  # how long a daemon may be away
LEASE_S = 30.0  # a killed trainer's groups come back after so long
COLUMNS = ("step", "version", "reward", "test", "length", "stale", "tokens", "kl", "rollout_s", "train_s", "load_s")


def patiently(what: Callable[[], T]) -> T:
    """Asks again while the daemon is away."""
    give_up = time.monotonic() + GIVE_UP_S
    while True:
        try:
            return what()
        except RepriseError as error:
            if error.code != "UNAVAILABLE" or time.monotonic() > give_up:
                raise
            time.sleep(RETRY_S)


def job(options: argparse.Namespace, name: str, tasks: str, first: int, limit: int, group: int, seed: int) -> dict[str, Any]:
    """The quickstart's job over other tasks (docs/jobs.md)."""
    return {
        "id": name, "model": str(TINY), "tasks": str(TINY / "tasks" / tasks), "first": first, "limit": limit,
        "group_size": group, "seed": seed, "thinking": "chat",
        "sampling": {"temperature": 1.0},
        "limits": {"max_tokens": 256, "max_turns": 4, "max_in_flight": options.in_flight},
        "sandbox": {"tier": "function"},
        "tools": [{
            "definition": str(TINY / "tool_sh.json"), "command": ["/bin/sh", "-c", "{command}"],
            "limits": {"timeout_ms": 10000},
        }],
    }  # fmt: skip


def collect(client: Client, job_id: str, count: int) -> list[Group]:
    """All groups of a job, leased, in the order of its tasks. A lease that ended is still ours until it is another's."""
    groups: dict[int, Group] = {}
    while len(groups) < count:
        lease = patiently(
            lambda: client.lease(job_id, max_groups=count - len(groups), lease_s=LEASE_S, wait_s=10, in_order=True)
        )
        if lease.job_state in ("failed", "cancelled"):
            raise SystemExit(f"job {job_id} is {lease.job_state}: {client.job(job_id).message}")
        groups.update({group.ordinal: group for group in lease.groups})
    return [groups[ordinal] for ordinal in sorted(groups)]


def samples_of(groups: list[Group]) -> list[Sample]:
    """Advantages within each group, over what may be trained on; groups that teach nothing are left out."""
    samples = []
    for group in groups:
        records = [record for record in group.records if record.valid and record.reward is not None]
        rewards = np.array([record.reward for record in records], np.float32)
        if len(records) < 2 or rewards.std() == 0:
            continue
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        samples += [
            Sample(r.token_ids, r.loss_mask, r.logprobs, r.prompt_len, float(a)) for r, a in zip(records, advantages)
        ]
    return samples


def mean_reward(records: list[Record]) -> float:
    """Over those that have one: an infrastructure failure is no 0."""
    return float(np.mean([record.reward for record in records if record.reward is not None]))


class Run:
    """What is on disk: state.pt of the last finished step, its weights, table.jsonl."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self.policy = Policy(TINY)
        self.step = 0  # finished steps: also the weight version
        self.table: list[dict[str, Any]] = []
        if (out / "state.pt").exists():
            state = torch.load(out / "state.pt", weights_only=False)
            self.policy.restore(state["policy"])
            self.step, self.table = state["step"], state["table"]

    def weights(self, step: int) -> Path:
        return self.out / "weights" / f"{step:04d}"

    def finish(self, row: dict[str, Any]) -> None:
        """The step counts from here on."""
        self.step += 1
        self.table.append(row)
        self.policy.save(self.weights(self.step))
        part = self.out / "state.pt.part"
        torch.save({"policy": self.policy.state(), "step": self.step, "table": self.table}, part)
        part.rename(self.out / "state.pt")
        (self.out / "table.jsonl").write_text("".join(json.dumps(one) + "\n" for one in self.table))
        for old in sorted((self.out / "weights").glob("????"))[:-2]:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


def evaluate(client: Client, options: argparse.Namespace, step: int) -> float:
    """Mean reward of one sample of every test task."""
    name = f"{options.name}-test-{step:04d}"
    spec = job(options, name, "test.jsonl", 0, options.test_tasks, 1, seed=7)
    patiently(lambda: client.submit(spec))
    return mean_reward(patiently(lambda: list(client.records(name, follow=True))))


def load_weights(client: Client, run: Run) -> None:
    """In force when this returns. Again with the same version is no error."""
    if run.step > 0:
        patiently(lambda: client.load_weights(run.weights(run.step), version=run.step, model=TINY))


def step_once(client: Client, options: argparse.Namespace, run: Run) -> None:
    """One row of the table: weights in force, test, rollouts, update, checkpoint, acknowledgement."""
    begun = time.monotonic()
    load_weights(client, run)
    loaded = time.monotonic()
    tested = run.step == 0 or options.test_every > 0 and run.step % options.test_every == 0
    test = evaluate(client, options, run.step) if tested else None
    ready = time.monotonic()
    name = f"{options.name}-{run.step:04d}"
    first = run.step * options.tasks % options.train_tasks
    spec = job(options, name, "train.jsonl", first, options.tasks, options.group, seed=run.step)
    patiently(lambda: client.submit(spec))
    groups = collect(client, name, options.tasks)
    rolled = time.monotonic()
    samples = samples_of(groups)
    run.policy.set_rate(options.learning_rate * (1 - run.step / options.steps))
    update = run.policy.update(samples, options.minibatches) if samples else None
    trained = time.monotonic()
    records = [record for group in groups for record in group.records]
    versions = np.concatenate([record.weight_versions[record.loss_mask == 1] for record in records])
    tools = [record.fields["timing"]["tool_ms"] + record.fields["timing"]["grade_ms"] for record in records]
    row = {
        "step": run.step,
        "version": int(versions.max()),
        "reward": mean_reward(records),
        "test": test,
        "length": float(np.mean([len(record.response_ids) for record in records])),
        "stale": float(np.mean(run.step - versions)),
        "tokens": len(versions),
        "failed": sum(not record.valid for record in records),
        "trained": len(samples),
        "load_s": loaded - begun,
        "test_s": ready - loaded,
        "rollout_s": rolled - ready,
        "tool_s": sum(tools) / 1e3 / options.in_flight,  # of the rollouts, were all places always taken
        "train_s": trained - rolled,
        "minutes": (run.table[-1]["minutes"] if run.table else 0) + (trained - begun) / 60,
        **(asdict(update) if update else {}),
    }
    run.finish(row)
    # After the checkpoint: what this process loses before here comes again.
    patiently(lambda: client.ack(groups))


def text_of(column: str, value: Any) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.1e}" if column == "kl" else f"{value:.3f}"


def show(row: dict[str, Any]) -> None:
    print(" ".join(f"{text_of(column, row.get(column)):>9}" for column in COLUMNS), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="state directory of the running daemons")
    parser.add_argument("--out", type=Path, required=True, help="weights, state and table of this run")
    parser.add_argument("--name", default="grpo", help="first part of the job ids")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tasks", type=int, default=16, help="tasks a step")
    parser.add_argument("--group", type=int, default=8, help="samples a task")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of the first step; falls to 0")
    parser.add_argument("--train-tasks", type=int, default=512)
    parser.add_argument("--test-tasks", type=int, default=256)
    parser.add_argument("--test-every", type=int, default=10, help="0 = only before and after")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    run = Run(options.out)
    with Client(options.state) as client:
        print(" ".join(f"{column:>9}" for column in COLUMNS), flush=True)
        for row in run.table:
            show(row)
        while run.step < options.steps:
            step_once(client, options, run)
            show(run.table[-1])
        load_weights(client, run)
        print(f"test reward after {run.step} steps: {evaluate(client, options, run.step):.4f}", flush=True)


if __name__ == "__main__":
    main()
