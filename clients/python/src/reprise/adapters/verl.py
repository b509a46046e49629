"""verl: what an AgentLoopBase.run returns, as the keyword arguments of AgentLoopOutput.

    class RepriseLoop(AgentLoopBase):
        async def run(self, sampling_params, **kwargs):
            return AgentLoopOutput(**agent_loop_output(record), metrics=AgentLoopMetrics(**metrics(record)))
"""

from __future__ import annotations

from typing import Any

from reprise.records import Record


def agent_loop_output(record: Record) -> dict[str, Any]:
    """An invalid record trains nothing: its mask is 0, its reward None."""
    p, spans = record.prompt_len, record.fields["version_spans"]
    turns = {segment["turn"] for segment in record.fields["segments"] if segment["role"] == "sampled"}
    routes = record.routed_experts
    return {"prompt_ids": record.prompt_ids.tolist(),
            "response_ids": record.response_ids.tolist(),
            "response_mask": (record.loss_mask[p:] * record.valid).tolist(),
            "response_logprobs": record.logprobs[p:].tolist(),
            "routed_experts": None if routes is None else routes.astype("i2"),
            "reward_score": record.reward if record.valid else None,
            "num_turns": 2 * len(turns),
            "extra_fields": {"min_global_steps": spans[0][0] if spans else None,
                             "max_global_steps": spans[-1][0] if spans else None,
                             "attempt": record.attempt, "advantage": record.advantage,
                             "status": record.status, "valid": record.valid, "failure": record.failure}}  # fmt: skip


def metrics(record: Record) -> dict[str, float]:
    """Seconds, as AgentLoopMetrics has them."""
    timing = record.fields["timing"]
    return {"generate_sequences": (timing["prefill_ms"] + timing["decode_ms"]) / 1000, "tool_calls": timing["tool_ms"] / 1000}
