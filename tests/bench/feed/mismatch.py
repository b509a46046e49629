"""How far the log-probabilities that trainers get are from what a trainer computes, and from what our own engine computes
when it reads the same tokens at once.

A job is killed in the middle (SIGKILL), taken up again, and gets new weights while it runs. Then every sampled token of its
records is computed again: by transformers' DeepSeek-V4 in float32, and by `reprise model logits`, which reads the whole
sequence in one pass where the job decoded it token by token. Tokens of a version are compared with that version's checkpoint;
the job makes its KV states again when weights change, so that each version saw the whole sequence.
Bars: mean KL to transformers below 1e-6; 0 bits that differ from our own.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "examples" / "tiny-v4"
TASKS, SAMPLES, MAX_TOKENS = 6, 2, 400
TEMPERATURE = 8.0
KL_BAR = 1e-6
POLL_S = 0.02

try:
    import numpy as np
    import torch
    import transformers
except ImportError as missing:
    print(f"mismatch.py: no {missing.name}: nothing is compared (set REPRISE_PYTHON to a Python that has torch and transformers)")
    sys.exit(0)


def write_job(directory: Path) -> Path:
    lines = [json.dumps({"id": f"task-{i}", "prompt": f"What is {17 * i + 3} + {5 * i + 40}?"}) for i in range(TASKS)]
    (directory / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    path = directory / "job.toml"
    path.write_text(
        f'id = "mismatch"\nmodel = {json.dumps(str(TINY))}\ntasks = "tasks.jsonl"\ngroup_size = {SAMPLES}\nseed = 11\n'
        f'thinking = "chat"\n[sampling]\ntemperature = {TEMPERATURE}\n[limits]\nmax_tokens = {MAX_TOKENS}\nmax_turns = 1\n'
        '[weights]\nkv = "recompute"\n[reward]\nkind = "match"\nanswer = "x"\n'
    )
    return path


def write_checkpoint(directory: Path) -> None:
    """tiny-v4 with every value of its output matrix a little larger."""
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("tasks", "*.py", "recipe"))
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    begin, end = json.loads(data[8 : 8 + size])["head.weight"]["data_offsets"]
    words = np.frombuffer(data, np.uint16, (end - begin) // 2, 8 + size + begin).astype(np.uint32) << 16
    larger = words.view(np.float32) * (1 + np.arange(words.size, dtype=np.float32) % 3 / 16)
    data[8 + size + begin : 8 + size + end] = (larger.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    path.write_bytes(data)


class Job:
    def __init__(self, binaries: Path, base: Path) -> None:
        self.binaries, self.base, self.state = binaries, base, base / "state"
        self.state.mkdir()
        self.job = write_job(base)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        argv = [str(self.binaries / "rolloutd"), "--state", str(self.state), "--job", str(self.job), "--out", str(self.base / "out"), *more]
        with open(self.base / "log", "ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log)

    def ask(self, *words: str) -> object:
        """What `reprise` prints, or None while the daemon does not answer."""
        argv = [str(self.binaries / "reprise"), *words, "--server", f"unix:{self.state}/rolloutd.sock", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def sampled(self) -> int:
        return sum(one["sampled"] for one in self.ask("trajectory", "ls") or [])

    def run(self, update: Path) -> list[dict]:
        killed = self.start("--fail-point", "commit.after:40")
        killed.wait(600)
        daemon = self.start()
        before = None
        while daemon.poll() is None:
            now = self.sampled()
            before = before or now
            if before and now > before + TASKS * SAMPLES * 8:
                break
            time.sleep(POLL_S)
        if self.ask("weights", "load", str(update)) is None and daemon.poll() is None:
            raise SystemExit(f"mismatch.py: the weights were not loaded: see {self.base}/log")
        if daemon.wait(600) != 0:
            raise SystemExit(f"mismatch.py: rolloutd failed: {(self.base / 'log').read_text()[-2000:]}")
        return [json.loads(line) for line in (self.base / "out" / "trajectories.jsonl").read_text().splitlines()]


def our_logits(binaries: Path, base: Path, checkpoint: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    tokens, out = base / "tokens.json", base / "logits.safetensors"
    tokens.write_text(json.dumps(sequences))
    argv = [str(binaries / "reprise"), "model", "logits", str(checkpoint), "--tokens", str(tokens), "--out", str(out)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    data = out.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    rows = []
    for i in range(len(sequences)):
        tensor = header["logits" if len(sequences) == 1 else f"logits.{i}"]
        begin, end = tensor["data_offsets"]
        rows.append(np.frombuffer(data, "<f4", (end - begin) // 4, 8 + size + begin).reshape(tensor["shape"]))
    return rows


def as_sampled(logits: np.ndarray, token: int) -> float:
    """The sampler's log-probability, in its order and precision (engine/sampler.cc)."""
    values = [float(value) for value in logits]
    most, scale = max(values), 1.0 / float(np.float32(TEMPERATURE))
    total = 0.0
    for value in values:
        total += math.exp((value - most) * scale)
    return float(np.float32((values[token] - most) * scale - math.log(total)))


@torch.inference_mode()
def transformers_logprobs(checkpoint: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    """[T, vocab] of each, of the distribution that was sampled from."""
    model = transformers.DeepseekV4ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = []
    for ids in sequences:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
        rows.append((logits / TEMPERATURE).log_softmax(-1).numpy())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "build/release/bin")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # of a tiny model: more wait for each other on a busy machine
    with tempfile.TemporaryDirectory(prefix="reprise-mismatch-") as scratch:
        base = Path(scratch)
        checkpoints = {0: TINY, 1: base / "update"}
        write_checkpoint(checkpoints[1])
        records = Job(options.bin, base).run(checkpoints[1])
        sequences = [one["token_ids"] for one in records]
        found: dict[str, list[float]] = defaultdict(list)
        bits: dict[str, list[int]] = defaultdict(list)
        for version, checkpoint in checkpoints.items():
            theirs = transformers_logprobs(checkpoint, sequences)
            ours = our_logits(options.bin, base, checkpoint, sequences)
            for one, their, our in zip(records, theirs, ours):
                resumed = min((at["at_token"] for at in one["resume"]), default=len(one["token_ids"]))
                for i, at_version in enumerate(one["weight_versions"]):
                    if at_version != version:
                        continue
                    token = one["token_ids"][i]
                    phase = "after new weights" if version else "after a resume" if i >= resumed else "undisturbed"
                    d = float(their[i - 1, token]) - one["logprobs"][i]
                    again = as_sampled(our[i - 1], token)
                    for key in (phase, "all"):
                        found[key].append(d)
                        bits[key].append((struct.unpack("<I", struct.pack("<f", again))[0]
                                          ^ struct.unpack("<I", struct.pack("<f", one["logprobs"][i]))[0]).bit_count())  # fmt: skip
    print(f"{len(records)} trajectories, temperature {TEMPERATURE}; transformers {transformers.__version__} in float32")
    print(f"{'tokens':20}{'count':>8}{'mean KL':>12}{'mean |d|':>12}{'max |d|':>12}{'bits that differ from our own prefill':>40}")
    for phase in ("undisturbed", "after a resume", "after new weights", "all"):
        d = np.array(found[phase])
        if len(d) == 0:
            raise SystemExit(f"mismatch.py: no token {phase}: the job was too short on this machine")
        kl = float(np.mean(np.expm1(d) - d))
        print(f"{phase:20}{len(d):8}{kl:12.2e}{np.mean(np.abs(d)):12.2e}{np.max(np.abs(d)):12.2e}{sum(bits[phase]):40}")
    print(f"bars: mean KL < {KL_BAR:.0e}, 0 bits; found {kl:.2e} and {sum(bits['all'])}")
    sys.exit(0 if kl < KL_BAR and sum(bits["all"]) == 0 else 1)


if __name__ == "__main__":
    main()
