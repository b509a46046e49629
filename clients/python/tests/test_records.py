"""Records are what the daemon wrote, as arrays, and what trainers take of them says no more than that."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprise import Client, Record
from reprise.adapters import slime, trl, verl

from conftest import Daemons


@pytest.fixture(scope="module")
def records(daemons: Daemons) -> list[Record]:
    with Client(daemons.state) as client:
        client.submit(daemons.job("arrays", output={"routed_experts": True}))
        return list(client.records("arrays", follow=True))


@pytest.fixture(scope="module")
def ungraded(daemons: Daemons) -> Record:
    """A record whose judge broke: no reward, which is not 0."""
    with Client(daemons.state) as client:
        reward = {"kind": "command", "command": ["/bin/sh", "-c", "exit 7"]}
        client.submit(daemons.job("broken", limit=1, group_size=1, reward=reward))
        (record,) = client.records("broken", follow=True)
        return record


def test_arrays(records: list[Record]) -> None:
    assert len(records) == 8
    for record in records:
        assert record.token_ids.dtype == np.int32 and record.logprobs.dtype == np.float32
        assert record.token_ids.tolist() == record.fields["prompt_ids"] + record.fields["response_ids"]
        assert not record.loss_mask[: record.prompt_len].any() and record.loss_mask.any()
        assert (record.logprobs[record.loss_mask == 0] == 0).all()
        assert (record.weight_versions[record.loss_mask == 0] == -1).all()
        assert record.routed_experts is not None
        assert record.routed_experts.dtype == np.uint8 and len(record.routed_experts) == len(record.token_ids) - 1
        assert record.reward in (0.0, 1.0) and record.valid


def test_what_tokens_were_drawn_from_and_advantages(daemons: Daemons) -> None:
    keys = {"sampling": {"temperature": 2.0, "top_k": 5}, "output": {"kept_ids": 8, "advantage": True}}
    with Client(daemons.state) as client:
        client.submit(daemons.job("kept", limit=1, **keys))
        records = list(client.records("kept", follow=True))
    assert len(records) == 2
    for record in records:
        offsets, kept = record.kept_offsets, record.kept_ids
        assert offsets is not None and kept is not None
        counts = np.diff(offsets)
        assert (counts == np.where(record.loss_mask == 1, 5, 0)).all()
        for i in np.flatnonzero(counts):
            assert record.token_ids[i] in kept[offsets[i] : offsets[i + 1]]
        assert record.advantage is not None and record.attempt == 0 and record.cached_tokens >= 0
        assert (record.advantages == np.where(record.loss_mask == 1, np.float32(record.advantage), 0)).all()
    assert records[0].advantages.dtype == np.float32
    assert abs(sum(one.advantage or 0 for one in records)) < 1e-6


def test_what_masks_left(daemons: Daemons) -> None:
    keys = {
        "sampling": {"temperature": 2.0, "structured": True, "tool_choice": "required"},
        "limits": {"max_tokens": 256},
        "tools": [{"definition": f"{daemons.model}/tool_sh.json", "command": ["/bin/sh", "-c", "{command}"]}],
        "sandbox": {"tier": "function"},
    }
    with Client(daemons.state) as client:
        client.submit(daemons.job("masked", limit=1, **keys))
        records = list(client.records("masked", follow=True))
    for record in records:
        counts, mass = record.allowed_counts, record.allowed_logprobs
        assert counts is not None and mass is not None and mass.dtype == np.float32
        assert not counts[record.loss_mask == 0].any() and not mass[counts == 0].any()
        assert (mass <= 0).all() and (record.logprobs[counts == 1] == 0).all()
        assert counts[record.prompt_len] > 0 and record.fields["tool_calls"]


def test_no_reward_is_not_zero(ungraded: Record) -> None:
    assert ungraded.reward is None and math.isnan(ungraded.reward_or_nan)
    assert ungraded.advantage is None and np.isnan(ungraded.advantages[ungraded.loss_mask == 1]).all()
    assert not ungraded.valid and ungraded.failure and ungraded.failure["kind"] == "grader"


def test_verl(records: list[Record], ungraded: Record) -> None:
    for record in records:
        out = verl.agent_loop_output(record)
        n = len(record.response_ids)
        assert [len(out[key]) for key in ("response_ids", "response_mask", "response_logprobs")] == [n] * 3
        assert out["prompt_ids"] + out["response_ids"] == record.token_ids.tolist()
        assert out["routed_experts"].dtype == np.int16 and out["reward_score"] == record.reward
    out = verl.agent_loop_output(ungraded)
    assert out["reward_score"] is None and not any(out["response_mask"])
    assert verl.metrics(ungraded)["generate_sequences"] > 0


def test_trl(daemons: Daemons, tmp_path: Path) -> None:
    trainer: Any = types.SimpleNamespace(state=types.SimpleNamespace(global_step=3))
    job = {key: value for key, value in daemons.job("trl", limit=0).items() if key != "tasks"}
    prompts = ["Compute 2 + 2.", "Compute 2 + 2.", [{"role": "user", "content": "Compute 1 + 3."}]]
    with Client(daemons.state) as client:
        rollouts = trl.Rollouts(client, job, tmp_path)
        out = rollouts(prompts, trainer)
        assert out == rollouts(prompts, trainer)  # asked again after a crash: the same job
        assert {len(values) for values in out.values()} == {3}
        assert out["prompt_ids"][0] == out["prompt_ids"][1]
        for key in ("logprobs", "env_mask"):
            assert [len(one) for one in out[key]] == [len(one) for one in out["completion_ids"]]
        assert trl.reward(**out) == out["rollout_reward"]


def test_slime_gets_only_whole_valid_groups(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    """slime is not on a package index: its Sample is stood in for by the fields of its own dataclass."""
    names = ["group_index", "index", "prompt", "tokens", "response", "response_length", "reward", "loss_mask",
             "rollout_log_probs", "weight_versions", "rollout_routed_experts", "status", "metadata"]  # fmt: skip
    sample = dataclasses.make_dataclass("Sample", names)
    sample.Status = {name: name for name in ("COMPLETED", "TRUNCATED", "ABORTED", "FAILED")}  # type: ignore[attr-defined]
    module = types.ModuleType("slime.utils.types")
    module.Sample = sample  # type: ignore[attr-defined]
    base = types.ModuleType("slime.rollout.base_types")
    base.RolloutFnTrainOutput = dataclasses.make_dataclass("RolloutFnTrainOutput", ["samples"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slime.rollout.base_types", base)
    for name in ("slime", "slime.utils", "slime.rollout"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "slime.utils.types", module)
    with Client(daemons.state) as client:
        # The judge breaks for one task of the four: its group is left out.
        script = "grep -q task-1 && exit 7; exit 0"
        client.submit(daemons.job("slime", reward={"kind": "command", "command": ["/bin/sh", "-c", script]}))
        generate = slime.rollout_function(client, "slime")
        batches = [generate(types.SimpleNamespace(rollout_batch_size=2), step, None).samples for step in (0, 1)]
        assert sorted(one[0].group_index for batch in batches for one in batch) == [0, 2, 3]
        for one in (one for batch in batches for group in batch for one in group):
            assert one.reward == 1.0 and len(one.loss_mask) == one.response_length == len(one.rollout_log_probs)
        assert client.lease("slime").acknowledged == 4
        with pytest.raises(ValueError, match="eval-function-path"):
            generate(types.SimpleNamespace(), 2, None, evaluation=True)


def test_sandbox_exec(daemons: Daemons) -> None:
    with Client(daemons.state) as client, client.sandbox() as box:
        first = box.exec("/bin/sh", "-c", "echo out; echo err >&2; exit 3", call_id="python/1")
        assert (first.outcome, first.exit_code, first.stdout, first.stderr) == ("EXITED", 3, b"out\n", b"err\n")
        again = box.exec("/bin/sh", "-c", "echo out; echo err >&2; exit 3", call_id="python/1")
        assert again.replayed and again.stdout == b"out\n"
