"""TRL: GRPOTrainer(rollout_func=Rollouts(client, job, directory), reward_funcs=reward).

Every call is a job of its own over the prompts that the trainer gives, which repeats each as often as its groups have
samples: one trajectory a prompt, in their order, each with a seed of its own.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Mapping

from reprise.client import Client


class Rollouts:
    """`job`: a job's keys without `tasks`; `directory`: absolute, kept, where task sets are written."""

    def __init__(self, client: Client, job: Mapping[str, Any], directory: Path) -> None:
        self.client, self.job, self.directory = client, dict(job), directory

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        keys = ["messages" if isinstance(prompt, list) else "prompt" for prompt in prompts]
        lines = [json.dumps({"id": str(i), keys[i]: prompt}) for i, prompt in enumerate(prompts)]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
        job_id = f"{self.job['id']}-{trainer.state.global_step}-{digest}"
        tasks = self.directory / f"{job_id}.jsonl"
        tasks.write_text("\n".join(lines) + "\n")
        self.client.submit({**self.job, "id": job_id, "tasks": str(tasks), "group_size": 1}, directory=self.directory)
        records = list(self.client.records(job_id, follow=True))
        return {"prompt_ids": [one.prompt_ids.tolist() for one in records],
                "completion_ids": [one.response_ids.tolist() for one in records],
                "logprobs": [one.logprobs[one.prompt_len:].tolist() for one in records],
                "env_mask": [(one.loss_mask[one.prompt_len:] * one.valid).tolist() for one in records],
                "rollout_reward": [one.reward if one.valid else None for one in records]}  # fmt: skip


def reward(rollout_reward: list[float | None], **_: Any) -> list[float | None]:
    """None where there is none: TRL leaves it out, it is no 0."""
    return rollout_reward
