"""What must hold after a round: the same bytes as a run without kills, and every call exactly once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from job import TRAJECTORIES
from rounds import Failed

Record = dict[str, Any]
# Where a trajectory stood when its next owner took it over.
PLACES = ("before its first token", "inside a turn", "at the end of a turn", "after a tool result")


def read_records(export: Path) -> list[Record]:
    with open(export, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def check_sound(records: list[Record]) -> None:
    """An uninterrupted run: every trajectory has its reward, and tools ran. Else the comparison would prove nothing."""
    if len(records) != TRAJECTORIES:
        raise Failed(f"the export has {len(records)} trajectories, the job {TRAJECTORIES}")
    bad = [r["rollout_id"] for r in records if not r["valid"] or r["reward"] is None]
    if bad:
        raise Failed(f"trajectories without a reward: {bad}")
    if not any(r["reward"] == 1.0 or r["reward"] == 0.75 for r in records):
        raise Failed("no trajectory was rewarded")
    if len(calls_in(records)) < 1.5 * TRAJECTORIES:
        raise Failed(f"only {len(calls_in(records))} calls ran")


def calls_in(records: list[Record]) -> list[str]:
    """Calls that a sandbox must have run: those of tools that have an outcome there, and one for each reward."""
    ids = []
    for record in records:
        ids += [c["call_id"] for c in record["tool_calls"] if c["outcome"] not in (None, "NOT_RUN")]
        if record["reward"] is not None:
            ids.append(f"{record['rollout_id']}/reward/0")
    return ids


def check_same(export: Path, expected: Path) -> None:
    """Byte for byte; the error names the first trajectory and field that differ."""
    if export.read_bytes() == expected.read_bytes():
        return
    ours, theirs = read_records(export), read_records(expected)
    for record, wanted in zip(ours, theirs):
        for key in wanted:
            if record.get(key) != wanted[key]:
                raise Failed(
                    f"{export}: {wanted['rollout_id']} differs in {key}:\n"
                    f"  uninterrupted {json.dumps(wanted[key])[:600]}\n"
                    f"  interrupted   {json.dumps(record.get(key))[:600]}"
                )
    raise Failed(f"{export}: {len(ours)} trajectories, the uninterrupted run has {len(theirs)}")


def check_counted(counted: list[str], records: list[Record]) -> None:
    """Each call of the export exactly once, and no other."""
    times = Counter(counted)
    expected = set(calls_in(records))
    again = sorted(call for call, count in times.items() if count > 1)
    missing, extra = sorted(expected - set(times)), sorted(set(times) - expected)
    if again or missing or extra:
        raise Failed(
            f"calls run again: {len(again)} {again[:5]}, exported but never run: {len(missing)} {missing[:5]}, "
            f"run but not exported: {len(extra)} {extra[:5]}"
        )


def cuts(records: list[Record]) -> Counter[str]:
    """Where trajectories were taken over. Raises when a log was shorter than an earlier owner left it."""
    places: Counter[str] = Counter()
    for record in records:
        before = 0
        for resume in record["resume"]:
            at = resume["at_token"]
            if at < before:
                raise Failed(f"{record['rollout_id']} had {before} tokens in its log, and later {at}")
            before = at
            places[_place(record, at)] += 1
    return places


def _place(record: Record, at: int) -> str:
    if at == record["prompt_len"]:
        return PLACES[0]
    for segment in record["segments"]:
        if segment["start"] < at < segment["end"]:
            return PLACES[1]
        if at == segment["end"]:
            return PLACES[2] if segment["role"] == "sampled" else PLACES[3]
    raise Failed(f"{record['rollout_id']} was taken over at token {at}, where no entry of its log ends")
