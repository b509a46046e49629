"""Speed of transformers' DeepSeek-V4, the rival of bench_decode, on the same models and settings.

Prints one JSON line: tokens a second of reading prompts and of greedy decoding with its cache. float32, as many threads
as cores, eager attention (its only one). The random model is what bench_decode left in build/bench.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"tiny": ROOT / "examples" / "tiny-v4", "100m": ROOT / "build" / "bench" / "model-100m"}
# Model, context, batch, new tokens, repeats of which the best counts: as in bench_decode.cc.
SETTINGS = (
    ("tiny", 300, 1, 100, 3),
    ("tiny", 300, 16, 100, 3),
    ("100m", 1024, 1, 16, 2),
    ("100m", 1024, 8, 16, 1),
    ("100m", 1024, 32, 16, 1),
    ("100m", 8192, 1, 16, 1),
)

try:
    import torch
    import transformers
except ImportError as missing:
    print(f"bench_decode.py: no {missing.name}: the rival is not measured (set REPRISE_PYTHON to a Python that has it)")
    sys.exit(0)


@torch.inference_mode()
def rates(model: torch.nn.Module, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Tokens a second over all sequences, decoded and read; prompt [B, T]."""
    start = time.perf_counter()
    state = model(prompt, use_cache=True, logits_to_keep=1)
    read = prompt.numel() / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(new_tokens):
        token = state.logits[:, -1:].argmax(-1)
        state = model(token, cache=state.cache, use_cache=True, logits_to_keep=1)
    return prompt.shape[0] * new_tokens / (time.perf_counter() - start), read


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    line = {"bench": "decode", "engine": f"transformers {transformers.__version__}", "threads": torch.get_num_threads()}
    loaded, model = "", None
    for name, context, batch, new_tokens, repeats in SETTINGS:
        if not MODELS[name].is_dir():
            print(f"bench_decode.py: no {MODELS[name]}: run bench_decode first, which makes it")
            continue
        if loaded != name:
            model = transformers.DeepseekV4ForCausalLM.from_pretrained(MODELS[name], dtype=torch.float32).eval()
            loaded = name
        ids = torch.tensor([(t * 31 + t * t) % model.config.vocab_size for t in range(context)])
        runs = [rates(model, ids.expand(batch, -1), new_tokens) for _ in range(repeats)]
        line[f"{name}_{context}_batch{batch}_decode_per_s"] = round(max(decoded for decoded, _ in runs), 1)
        line[f"{name}_{context}_batch{batch}_prefill_per_s"] = round(max(read for _, read in runs), 1)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
