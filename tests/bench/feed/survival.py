"""What a SIGKILL costs: the same job once undisturbed, then once for each place at which a daemon is killed.

Each row prints what had to be done again, what was lost, and how long the daemon was away, beside what the same kill costs a
system that starts the trajectories in flight again from their prompts: the tokens that they had, counted in our log. The
job, its counter of calls and the daemons are those of tests/crash. Bars: all zero but the seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests" / "crash"))

import job  # noqa: E402
from plan import Point  # noqa: E402
from rounds import Round, Tally  # noqa: E402

TASKS = 12
# (victim, fail point, phase): the passage is far enough into the job that trajectories are in flight.
KILLS = (
    ("rolloutd", Point("commit.before", 40, False), "mid-generation, a step on its way to the disk"),
    ("rolloutd", Point("commit.after", 40, False), "mid-generation, a step just durable"),
    ("rolloutd", Point("rollout.call.before", 6, False), "a tool call about to be sent"),
    ("rolloutd", Point("rollout.call.after", 6, False), "a result in hand, not yet durable"),
    ("rolloutd", Point("trajectory.sealed", 4, False), "a trajectory sealed, not yet shown"),
    ("sandboxd", Point("call.intent", 6, False), "INTENT durable, nothing started"),
    ("sandboxd", Point("call.started", 6, False), "the call runs"),
    ("sandboxd", Point("call.result", 6, False), "the call has ended, RESULT not durable"),
    ("sandboxd", Point("call.completed", 6, False), "RESULT durable, nobody told"),
    ("rolloutd", Point("rollout.call.before", 8, True), "both daemons, a call about to be sent"),
)


class OneKill:
    """A plan (tests/crash/plan.py) with one point in it, or none."""

    def __init__(self, victim: str = "", point: Point | None = None) -> None:
        self._victim, self._point = victim, point

    @property
    def done(self) -> bool:
        return self._point is None

    def next_point(self, victim: str) -> Point | None:
        if victim != self._victim:
            return None
        point, self._point = self._point, None
        return point

    def put_back(self, victim: str, point: Point) -> None:
        self._point = point

    def next_strike(self, armed: bool) -> None:
        return None

    def take_back_strike(self) -> None:
        raise AssertionError("no strike was made")


def records_of(export: Path) -> list[dict]:
    return [json.loads(line) for line in export.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release/bin")
    options = parser.parse_args()
    job.TASKS = TASKS
    print(f"{'killed':20}{'phase':48}{'tokens':>8}{'calls':>7}{'groups':>8}{'bytes':>8}{'seconds':>9}{'from the prompt:':>18}")
    print(f"{'':20}{'':48}{'redone':>8}{'redone':>7}{'lost':>8}{'differ':>8}{'to go on':>9}{'tokens redone':>18}")
    bad = 0
    totals, waits = Counter(), []
    with tempfile.TemporaryDirectory(prefix="reprise-survival-") as scratch:
        base = Path(scratch)
        calm = Round(base / "calm", options.bin, ROOT, OneKill(), Tally())
        calm.run()
        whole = calm.export.read_bytes()
        for number, (victim, point, phase) in enumerate(KILLS):
            plan, tally = OneKill(victim, point), Tally()
            cut = Round(base / str(number), options.bin, ROOT, plan, tally)
            cut.run()
            if not plan.done or tally.total != 1:
                raise SystemExit(f"survival.py: {victim} never came to {point}: raise its passage")
            timed = records_of(cut.export_with_timing())
            calls = Counter(job.counted_calls(cut.directory))
            export = cut.export.read_bytes()
            ours, theirs = export.splitlines(), whole.splitlines()
            lost = (len(theirs) - len(ours)) // job.GROUP_SIZE
            differ = abs(len(export) - len(whole)) + sum(a != b for a, b in zip(export, whole))
            scratch_tokens = sum(at["at_token"] - one["prompt_len"] for one in timed for at in one["resume"])
            row = (tally.decoded_again, sum(calls.values()) - len(calls), lost, differ)
            wait = max(max(times) for times in tally.resume_s.values())
            waits.append(wait)
            totals.update(dict(zip(("tokens", "calls", "groups", "bytes"), row)))
            name = victim + (" + sandboxd" if point.both else "")
            peer = str(scratch_tokens) if victim == "rolloutd" else "-"
            print(f"{name:20}{phase:48}{row[0]:8}{row[1]:7}{row[2]:8}{row[3]:8}{wait:9.2f}{peer:>18}", flush=True)
            bad += any(row)
    print(f"bar: 0 redone, lost and differing in every row; found: {dict(totals)}; to go on: median {statistics.median(waits):.2f} s")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
