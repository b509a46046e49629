"""slime: --rollout-function-path MODULE.generate_rollout, where MODULE says generate_rollout = rollout_function(client, job_id).

slime has no word for a sample that does not exist: a group with an invalid record is acknowledged and left out.
"""

from __future__ import annotations

from typing import Any, Callable
from reprise.client import Client
from reprise.records import Group, Record


def to_sample(record: Record, group: int, index: int) -> Any:
    from slime.utils.types import Sample

    p, routes = record.prompt_len, record.routed_experts
    if routes is not None:
        import torch
    return Sample(
        group_index=group, index=index, prompt=record.fields["messages"], tokens=record.token_ids.tolist(),
        response=record.fields["response_text"], response_length=len(record.token_ids) - p, reward=record.reward,
        loss_mask=record.loss_mask[p:].tolist(), rollout_log_probs=record.logprobs[p:].tolist(),
        weight_versions=[str(version) for version, _, _ in record.fields["version_spans"]],
        rollout_routed_experts=None if routes is None else torch.from_numpy(routes.astype("i4")),
        status=Sample.Status[record.status.upper()], metadata={"id": record.id, "attempt": record.attempt, "advantage": record.advantage})  # fmt: skip


def rollout_function(client: Client, job_id: str, saved: Callable[[list[Group]], None] | None = None) -> Any:
    """`saved` gets the groups of a step, to acknowledge them after the checkpoint; without it they are at once."""

    def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
        from slime.rollout.base_types import RolloutFnTrainOutput

        if evaluation:
            raise ValueError("this makes training batches: name another function with --eval-function-path")
        taken: list[Group] = []
        for group in client.groups(job_id):
            taken.append(group) if group.valid else client.ack([group])
            if len(taken) == args.rollout_batch_size:
                break
        (saved or client.ack)(taken)
        size = len(taken[0].records) if taken else 0  # fewer groups than asked: the job has ended
        return RolloutFnTrainOutput(
            samples=[[to_sample(one, g.ordinal, g.ordinal * size + i) for i, one in enumerate(g.records)] for g in taken])

    return generate_rollout
