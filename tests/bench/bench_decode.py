"""Speed of transformers' DeepSeek-V4 on examples/tiny-v4, the rival of bench_decode.

Prints one JSON line: tokens a second of greedy decoding with its cache, for batch 1 and batch 16, after a prompt of about
300 tokens, and of reading that prompt. float32, as many threads as cores, eager attention (its only one).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny-v4"
CONTEXT = 300
NEW_TOKENS = 100
BATCHES = (1, 16)
REPEATS = 3  # the best is reported

try:
    import torch
    import transformers
except ImportError as missing:
    print(f"bench_decode.py: no {missing.name}: the rival is not measured (set REPRISE_PYTHON to a Python that has it)")
    sys.exit(0)


@torch.inference_mode()
def rates(model: torch.nn.Module, prompt: torch.Tensor) -> tuple[float, float]:
    """Tokens a second over all sequences, decoded and read; prompt [B, T]."""
    start = time.perf_counter()
    state = model(prompt, use_cache=True, logits_to_keep=1)
    read = prompt.numel() / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(NEW_TOKENS):
        token = state.logits[:, -1:].argmax(-1)
        state = model(token, cache=state.cache, use_cache=True, logits_to_keep=1)
    return prompt.shape[0] * NEW_TOKENS / (time.perf_counter() - start), read


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.DeepseekV4ForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    record = json.loads((TINY / "prompt_golden.json").read_text(encoding="utf-8"))
    ids = torch.tensor(record["conversations"][0]["ids"][:CONTEXT])
    speeds = {}
    for batch in BATCHES:
        runs = [rates(model, ids.expand(batch, -1)) for _ in range(REPEATS)]
        speeds[f"batch{batch}_tokens_per_s"] = round(max(decoded for decoded, _ in runs), 1)
        speeds[f"batch{batch}_prefill_tokens_per_s"] = round(max(read for _, read in runs), 1)
    line = {"bench": "decode", "engine": f"transformers {transformers.__version__}", "context": len(ids)}
    line |= {"new_tokens": NEW_TOKENS, "threads": torch.get_num_threads(), **speeds}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
