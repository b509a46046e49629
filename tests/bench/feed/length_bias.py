"""Whether interruptions change how long trajectories are.

The same job three times: undisturbed; with rolloutd killed (SIGKILL) every few seconds and started again on its state; and,
with kills as far apart, by restarting from scratch: what was not finished at a kill is begun anew with another seed, which is
what a system without a token log does. Long trajectories then survive less often, and the batch is shorter. Printed: the
distributions and the two-sample Kolmogorov-Smirnov statistic of each against the undisturbed run, with the value that chance
exceeds in 1 of 20 such comparisons. Bar: D = 0, the same lengths one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "examples" / "tiny-v4"
TRAJECTORIES = 48
MAX_TOKENS = 400
KILLS_MAX = 40  # a run that needs more is given up
POLL_S = 0.02


def write_job(directory: Path, name: str, tasks: list[int], seed: int) -> Path:
    """One trajectory a task, hot enough that they end anywhere; nobody judges what they say."""
    lines = [json.dumps({"id": f"task-{i}", "prompt": f"What is {i} + {2 * i}?"}) for i in tasks]
    (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    path = directory / f"{name}.toml"
    path.write_text(
        f'id = "{name}"\nmodel = {json.dumps(str(TINY))}\ntasks = "{name}.jsonl"\nseed = {seed}\nthinking = "chat"\n'
        f"[sampling]\ntemperature = 8.0\n[limits]\nmax_tokens = {MAX_TOKENS}\nmax_turns = 1\nmax_in_flight = {TRAJECTORIES}\n"
        '[reward]\nkind = "match"\nanswer = "x"\n'
    )
    return path


class Rolloutd:
    """rolloutd that runs one job to its end."""

    def __init__(self, binaries: Path, state: Path, job: Path) -> None:
        state.mkdir(exist_ok=True)
        self._out = state / "out"
        argv = [str(binaries / "rolloutd"), "--state", str(state), "--job", str(job), "--out", str(self._out)]
        self._log = open(state / "log", "ab")
        begin = (state / "log").stat().st_size
        self._process = subprocess.Popen(argv, stdout=self._log, stderr=self._log)
        while b"listening on" not in (state / "log").read_bytes()[begin:] and self._process.poll() is None:
            time.sleep(POLL_S)

    def ended_within(self, seconds: float) -> bool:
        """Counted from when it listens: a life is as long as it works."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if code != 0:
            raise SystemExit(f"length_bias.py: rolloutd ended with {code}: see {self._log.name}")
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def lengths(self) -> dict[str, int]:
        """Response tokens by task."""
        lines = (self._out / "trajectories.jsonl").read_text().splitlines()
        return {one["task"]["key"]: len(one["response_ids"]) for one in map(json.loads, lines) if one["status"] != "aborted"}


def whole(binaries: Path, base: Path) -> tuple[dict[str, int], float]:
    daemon = Rolloutd(binaries, base / "calm", write_job(base, "job", list(range(TRAJECTORIES)), 1))
    begin = time.monotonic()
    daemon.ended_within(3600)
    return daemon.lengths(), time.monotonic() - begin


def interrupted(binaries: Path, base: Path, every_s: float) -> tuple[dict[str, int], int]:
    job = base / "job.toml"
    for kills in range(KILLS_MAX):
        daemon = Rolloutd(binaries, base / "cut", job)
        if daemon.ended_within(every_s):
            return daemon.lengths(), kills
        daemon.kill()
    raise SystemExit(f"length_bias.py: the job is not done after {KILLS_MAX} kills")


def from_scratch(binaries: Path, base: Path, every_s: float) -> tuple[dict[str, int], int]:
    """Each life is a state of its own: what it had finished is kept, the rest is another job."""
    left, lengths = list(range(TRAJECTORIES)), {}
    for kills in range(KILLS_MAX):
        name = f"scratch-{kills}"
        state = base / name
        job = write_job(base, name, left, 100 + kills)
        daemon = Rolloutd(binaries, state, job)
        if not daemon.ended_within(every_s):
            lengths |= finished(binaries, state, name)
            daemon.kill()
            left = [i for i in left if f"task-{i}" not in lengths]
            continue
        return lengths | daemon.lengths(), kills
    return lengths, KILLS_MAX


def finished(binaries: Path, state: Path, name: str) -> dict[str, int]:
    """Of the trajectories that a running daemon has sealed."""
    found = {}
    argv = [str(binaries / "reprise"), "trajectory", "ls", "--server", f"unix:{state}/rolloutd.sock", "--job", name, "--json"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True)
    for one in json.loads(listed.stdout):
        if one["status"] in ("completed", "truncated"):
            found[one["task_id"]] = one["sampled"]
    return found


def distance(a: list[int], b: list[int]) -> float:
    """Kolmogorov-Smirnov: the largest difference of the two empirical distributions."""
    points = sorted(set(a) | set(b))
    return max(abs(sum(x <= p for x in a) / len(a) - sum(x <= p for x in b) / len(b)) for p in points)


def row(name: str, lengths: dict[str, int], calm: list[int], kills: int) -> float:
    values = sorted(lengths.values())
    cut = statistics.quantiles(values, n=10)
    d = distance(values, calm)
    print(f"{name:34}{kills:6}{len(values):6}{statistics.mean(values):9.1f}{cut[0]:8.0f}{cut[4]:8.0f}{cut[8]:8.0f}{d:9.3f}")
    return d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release/bin")
    parser.add_argument("--lives", type=float, default=4, help="kills are this fraction of an undisturbed run apart")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reprise-length-") as scratch:
        base = Path(scratch)
        calm, seconds = whole(options.bin, base)
        every_s = seconds / options.lives
        cut, kills = interrupted(options.bin, base, every_s)
        anew, scratch_kills = from_scratch(options.bin, base, every_s)
        values = list(calm.values())
        print(f"undisturbed: {seconds:.1f} s; killed every {every_s:.1f} s; response tokens of {len(calm)} trajectories")
        print(f"{'':34}{'kills':>6}{'n':>6}{'mean':>9}{'p10':>8}{'p50':>8}{'p90':>8}{'KS D':>9}")
        row("undisturbed", calm, values, 0)
        ours = row("reprise, killed and resumed", cut, values, kills)
        row("restarted from scratch", anew, values, scratch_kills)
        n, m = len(calm), len(anew)
        print(f"chance exceeds D = {1.358 * math.sqrt((n + m) / (n * m)):.3f} in 1 of 20 comparisons of two such samples")
        same = cut == calm
        print(f"bar: D = 0; found: D = {ours:.3f}, every trajectory of the same length: {same}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
