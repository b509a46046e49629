#!/usr/bin/env python3
"""Trains a few steps twice: once undisturbed, once with trainer, rolloutd and sandboxd killed (SIGKILL) at random times
and started again. Both must end with the same weights, bit for bit.

    PYTHONPATH=build/release/python python examples/grpo-tiny/survive.py --bin build/release/bin --dir DIR
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
POLL_S = 0.1


class Process:
    """A program that is started again whenever it was killed."""

    def __init__(self, argv: list[str], log: Path) -> None:
        self.argv, self.log = argv, log
        self.start()

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def code(self) -> int | None:
        return self.process.poll()


def train(options: argparse.Namespace, name: str, kills: int) -> str:
    """SHA-256 of the last weights; dies with the trainer's log where training failed."""
    base = options.dir / name
    base.mkdir(parents=True)
    state = base / "state"
    state.mkdir()
    daemons = {
        daemon: Process([str(options.bin / daemon), "--state", str(state)], base / f"{daemon}.log")
        for daemon in ("sandboxd", "rolloutd")
    }
    trainer = Process(
        [sys.executable, str(HERE / "train.py"), "--state", str(state), "--out", str(base / "run"), "--steps",
         str(options.steps), "--tasks", str(options.tasks), "--group", "4", "--test-tasks", "4", "--threads", "1"],
        base / "train.log",
    )  # fmt: skip
    victims = {**daemons, "trainer": trainer}
    chance = random.Random(options.seed)
    done = 0
    strike = time.monotonic() + chance.uniform(*options.every)
    try:
        while trainer.code() is None:
            time.sleep(POLL_S)
            if done >= kills or time.monotonic() < strike:
                continue
            victim = chance.choice(sorted(victims))
            print(f"{name}: kill {victim}", flush=True)
            victims[victim].kill()
            victims[victim].start()
            done += 1
            strike = time.monotonic() + chance.uniform(*options.every)
        if trainer.code() != 0:
            raise SystemExit(f"{name}: the trainer failed: {(base / 'train.log').read_text()[-2000:]}")
    finally:
        for process in victims.values():
            process.kill()
    weights = base / "run" / "weights" / f"{options.steps:04d}" / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    print(f"{name}: {done} kills, weights {digest}", flush=True)
    return digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="directory of rolloutd and sandboxd")
    parser.add_argument("--dir", type=Path, required=True, help="for both runs; must not hold earlier ones")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--every", type=float, nargs=2, default=(5.0, 20.0), metavar=("FROM", "TO"), help="seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if train(options, "undisturbed", 0) != train(options, "killed", options.kills):
        raise SystemExit("the killed run ended with other weights")
    print("the same weights, bit for bit")


if __name__ == "__main__":
    main()
