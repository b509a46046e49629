#!/usr/bin/env python3
"""Draws table.jsonl of a run as one PNG: reward, length, staleness, and where the time of each step went."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PARTS = ("load_s", "test_s", "rollout_s", "train_s")


def main() -> None:
    table = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    steps = [row["step"] for row in table]
    figure, ((reward, length), (stale, split)) = plt.subplots(2, 2, figsize=(11, 7), constrained_layout=True)
    reward.plot(steps, [row["reward"] for row in table], label="training tasks")
    tested = [row for row in table if row["test"] is not None]
    reward.plot([row["step"] for row in tested], [row["test"] for row in tested], "o-", label="test tasks")
    reward.set(title="mean reward", ylim=(0, 1))
    reward.legend()
    length.plot(steps, [row["length"] for row in table])
    length.set(title="mean response length (tokens)", ylim=(0, None))
    stale.plot(steps, [row["stale"] for row in table])
    stale.set(title="mean staleness (weight versions)", xlabel="step", ylim=(-0.05, None))
    split.stackplot(steps, [[row[part] for row in table] for part in PARTS], labels=[part[:-2] for part in PARTS])
    split.set(title="time of a step (s)", xlabel="step")
    split.legend()
    for axes in (reward, length, stale, split):
        axes.grid(alpha=0.3)
    figure.savefig(sys.argv[2], dpi=120)


if __name__ == "__main__":
    main()
