#!/usr/bin/env python3
"""Kills rolloutd, sandboxd and both, at every fail point and at random times, and checks that nobody can tell.

    tests/crash/killed_anywhere.py --bin build/release/bin [--kills N] [--seed S] [--keep]

One run of the job without kills is the reference. Then the same job runs again, from an empty state, while daemons are
killed and started again until all kills of the plan are made, in as many rounds as that takes. After each round the export
must be the reference byte for byte, and the file in which every call leaves a line must hold each call exactly once. At the
end nothing of a killed daemon may remain. On failure the scratch directory is kept and named.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import checks
import leftovers
from job import TRAJECTORIES, counted_calls
from plan import Plan
from rounds import Failed, Round, Tally

SKIPPED = 77  # SKIP_RETURN_CODE of the ctest entry
MORE_STRIKES = 30  # kills of one more round, for a place that none has met
ROUNDS_MAX = 12  # a point that was not reached in so many is not on the way of the job


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills the daemons anywhere and checks what they made.")
    parser.add_argument("--bin", type=Path, required=True, help="directory of rolloutd, sandboxd and their helpers")
    parser.add_argument("--source", type=Path, default=Path(__file__).resolve().parents[2], help="root of the tree")
    parser.add_argument("--kills", type=int, default=260, help="kills in all, fail points included")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32), help="of order and random times")
    parser.add_argument("--keep", action="store_true", help="keep the scratch directory")
    return parser.parse_args()


def unmet(options: argparse.Namespace, cuts: Counter[str]) -> list[str]:
    """Places of a trajectory at which a run of many kills must have cut one, and has not yet: most are met by chance."""
    return [place for place in checks.PLACES if not cuts[place]] if options.kills >= 200 else []


def run_all(options: argparse.Namespace, scratch: Path) -> None:
    start = time.monotonic()
    tally = Tally()
    reference = Round(scratch / "reference", options.bin, options.source, Plan(0, 0), tally)
    reference.run()
    records = checks.read_records(reference.export)
    checks.check_sound(records)
    checks.check_counted(counted_calls(reference.directory), records)
    print(f"reference: {TRAJECTORIES} trajectories in {time.monotonic() - start:.1f} s", flush=True)

    plan = Plan(options.kills, options.seed)
    cuts: Counter[str] = Counter()
    rounds = 0
    while not plan.done or unmet(options, cuts):
        rounds += 1
        if rounds > ROUNDS_MAX and plan.done:
            raise Failed(f"no trajectory was cut {unmet(options, cuts)}")
        if rounds > ROUNDS_MAX:
            raise Failed(f"{ROUNDS_MAX} rounds did not reach every point of the plan: {plan.left()}")
        if plan.done:
            plan.strike_again(MORE_STRIKES)
        begun, before = time.monotonic(), tally.total
        cut = Round(scratch / f"round-{rounds}", options.bin, options.source, plan, tally)
        cut.run()
        checks.check_same(cut.export, reference.export)
        checks.check_counted(counted_calls(cut.directory), records)
        cuts += checks.cuts(checks.read_records(cut.export_with_timing()))
        print(f"round {rounds}: {tally.total - before} kills in {time.monotonic() - begun:.1f} s, export the same, "
              "each call once", flush=True)
    if tally.decoded_again:
        raise Failed(f"{tally.decoded_again} tokens of the log were decoded again")
    left = leftovers.find(scratch, tally.groups)
    report(tally, cuts, rounds, records, left, time.monotonic() - start)
    if left:
        raise Failed("daemons left something behind")


def report(
    tally: Tally, cuts: Counter[str], rounds: int, records: list[checks.Record], left: list[str], took_s: float
) -> None:
    victims = ("rolloutd", "sandboxd", "rolloutd+sandboxd")
    print(f"\n{'killed at':<32}" + "".join(f"{victim:>19}" for victim in victims))
    for place in sorted({place for _, place in tally.kills}):
        print(f"{place:<32}" + "".join(f"{tally.kills[victim, place]:>19}" for victim in victims))
    print(f"{'all ' + str(tally.total):<32}", end="")
    print("".join(f"{sum(n for (v, _), n in tally.kills.items() if v == victim):>19}" for victim in victims))
    tokens = sum(len(record["token_ids"]) - record["prompt_len"] for record in records)
    print(f"\ntrajectories            {TRAJECTORIES} a round, {rounds} rounds, {rounds * TRAJECTORIES} in all")
    print(f"tokens                  {tokens * rounds}; of the log decoded again: {tally.decoded_again}")
    print(f"calls                   {len(checks.calls_in(records)) * rounds}; run again: 0, lost: 0")
    print("taken over              " + ", ".join(f"{cuts[place]} {place}" for place in checks.PLACES))
    for name, seconds in sorted(tally.resume_s.items()):
        print(f"{name + ' ready again':<24}mean {1000 * statistics.mean(seconds):.0f} ms, "
              f"slowest {1000 * max(seconds):.0f} ms, {len(seconds)} restarts")
    print(f"left behind             {len(left)} processes, cgroups, mounts, run directories")
    for line in left:
        print(f"  {line}")
    print(f"took                    {took_s:.0f} s")


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print("skipped: the function tier needs root")
        return SKIPPED
    print(f"seed {options.seed}, {options.kills} kills", flush=True)
    scratch = Path(tempfile.mkdtemp(prefix="reprise-crash-"))
    failed = True
    try:
        run_all(options, scratch)
        failed = False
    except Failed as failure:
        print(f"FAILED: {failure}")
    finally:
        leftovers.kill_all(scratch)
        if failed or options.keep:
            print(f"kept: {scratch} (seed {options.seed})")
        else:
            shutil.rmtree(scratch)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
