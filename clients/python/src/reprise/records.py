"""rollout.v1 records as arrays, and the groups that they come in.

Token ids are those that the model saw: nothing here encodes text. A reward that is not there is None
(NaN as a float), never 0.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any, Iterable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Record:
    """One trajectory. T tokens, prompt included."""

    text: str  # the record's bytes as the daemon sent them
    fields: dict[str, Any]  # all of it, parsed
    token_ids: NDArray[np.int32]  # [T]
    loss_mask: NDArray[np.uint8]  # [T], 1 = sampled
    logprobs: NDArray[np.float32]  # [T], 0 off the mask
    weight_versions: NDArray[np.int64]  # [T], -1 off the mask
    routed_experts: NDArray[Any] | None  # u8 or u16 [T-1, layers, experts a token]
    kept_offsets: NDArray[np.int64] | None  # [T+1]: token i was drawn from kept_ids[offsets[i]:offsets[i + 1]]
    kept_ids: NDArray[np.int32] | None
    allowed_counts: NDArray[np.int32] | None  # [T]: tokens that a mask left, 0 where it forbade none
    allowed_logprobs: NDArray[np.float32] | None  # [T]: ln of the probability that they had together
    prompt_len: int
    reward: float | None
    advantage: float | None  # None without a reward, or where the job records none
    status: str  # completed, truncated, aborted, failed
    valid: bool  # False: not to be trained on
    failure: dict[str, Any] | None

    @property
    def id(self) -> str:
        return str(self.fields["rollout_id"])

    @property
    def prompt_ids(self) -> NDArray[np.int32]:
        return self.token_ids[: self.prompt_len]

    @property
    def response_ids(self) -> NDArray[np.int32]:
        return self.token_ids[self.prompt_len :]

    @property
    def advantages(self) -> NDArray[np.float32]:
        """[T], 0 off the mask; NaN on it where there is none."""
        value = math.nan if self.advantage is None else self.advantage
        return np.where(self.loss_mask == 1, np.float32(value), np.float32(0))

    @property
    def attempt(self) -> int:
        """At its sample: above 0 it stands for one that could not be used."""
        return int(self.fields["attempt"])

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that the prefix cache had."""
        return int(self.fields["cached_tokens"])

    @property
    def reward_or_nan(self) -> float:
        return math.nan if self.reward is None else self.reward


def _routes(value: dict[str, Any] | None) -> NDArray[Any] | None:
    if value is None:
        return None
    dtype = np.dtype(value["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(value["data_base64"]), dtype).reshape(value["shape"])


def _array(value: list[Any] | None, dtype: Any) -> NDArray[Any] | None:
    return None if value is None else np.array(value, dtype)


def parse_record(text: str) -> Record:
    """ValueError for another schema than rollout.v1, or arrays that do not fit each other."""
    fields = json.loads(text)
    if fields.get("schema") != "rollout.v1":
        raise ValueError(f"schema is {fields.get('schema')!r}, this package reads rollout.v1")
    record = Record(
        text=text,
        fields=fields,
        token_ids=np.array(fields["token_ids"], np.int32),
        loss_mask=np.array(fields["loss_mask"], np.uint8),
        logprobs=np.array(fields["logprobs"], np.float32),  # null (no finite number) becomes NaN
        weight_versions=np.array(fields["weight_versions"], np.int64),
        routed_experts=_routes(fields.get("routed_experts")),
        kept_offsets=_array(fields.get("kept_offsets"), np.int64),
        kept_ids=_array(fields.get("kept_ids"), np.int32),
        allowed_counts=_array(fields.get("allowed_counts"), np.int32),
        allowed_logprobs=_array(fields.get("allowed_logprobs"), np.float32),
        prompt_len=fields["prompt_len"],
        reward=None if fields["reward"] is None else float(fields["reward"]),
        advantage=fields.get("advantage"),
        status=fields["status"],
        valid=fields["valid"],
        failure=fields["failure"],
    )
    for name in ("loss_mask", "logprobs", "weight_versions"):
        if len(getattr(record, name)) != len(record.token_ids):
            raise ValueError(f"{record.id}: {name} has not the length of token_ids")
    for one in (record.allowed_counts, record.allowed_logprobs):
        if one is not None and len(one) != len(record.token_ids):
            raise ValueError(f"{record.id}: what masks left has not the length of token_ids")
    offsets, kept = record.kept_offsets, record.kept_ids
    if offsets is not None and kept is not None and (len(offsets) != len(record.token_ids) + 1 or offsets[-1] != len(kept)):
        raise ValueError(f"{record.id}: kept_offsets do not fit token_ids and kept_ids")
    return record


@dataclass(frozen=True)
class Group:
    """Every sample of one task, in order, under a lease. `attempt` is what an acknowledgement must name."""

    job_id: str
    ordinal: int
    attempt: int
    lease_until_us: int  # wall clock of the daemon, microseconds
    records: tuple[Record, ...]

    @property
    def rewards(self) -> NDArray[np.float32]:
        """NaN where there is none."""
        return np.array([record.reward_or_nan for record in self.records], np.float32)

    @property
    def valid(self) -> bool:
        """Every record may be trained on and has a reward."""
        return all(record.valid and record.reward is not None for record in self.records)


@dataclass(frozen=True)
class Lease:
    """What one lease brought, and what is left of the job."""

    groups: tuple[Group, ...]
    pending: int  # groups that are unfinished
    ready: int  # that could be leased
    leased: int  # with a trainer, those of this lease included
    acknowledged: int
    dropped: int  # delivered to nobody, because of a sample that cannot be used
    job_state: str

    def ended(self, held: int) -> bool:
        """Nothing more will come to a caller who holds `held` groups."""
        open_job = self.job_state in ("running", "paused", "cancelled")
        return not self.groups and self.ready == 0 and self.leased <= held and not (self.pending and open_job)


def lease_of(job_id: str, answers: Iterable[Any]) -> Lease:
    """Of the whole stream of one Lease; ValueError when it ended early."""
    records: dict[tuple[int, int, int], list[Record]] = {}
    sizes: dict[int, int] = {}
    summary = None
    for answer in answers:
        if answer.HasField("summary"):
            summary = answer.summary
            continue
        one = answer.record
        records.setdefault((one.group, one.attempt, one.lease_until_us), []).append(parse_record(one.json))
        sizes[one.group] = one.group_size
    if summary is None or any(len(found) != sizes[key[0]] for key, found in records.items()):
        raise ValueError(f"a lease of job {job_id} ended in the middle of a group")
    groups = tuple(Group(job_id, *key, tuple(found)) for key, found in records.items())
    counts = (summary.pending, summary.ready, summary.leased, summary.acknowledged, summary.dropped)
    return Lease(groups, *counts, summary.job_state)
