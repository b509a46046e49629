"""Makes the golden logits that the engine is tested against: `make_golden.py [NAME...]`, default all.

NAME is `tiny-v4` (the checkpoint of examples/tiny-v4; only its golden is written) or a recipe of configurations.py
(random weights; checkpoint and golden are written). The reference is examples/tiny-v4/recipe/model.py in float32 on the
BF16-rounded weights. Nothing is written unless these hold, so that a golden is neither wrong, blind nor fragile:
  * transformers' class gives the same logits, to 1e-5 of their range;
  * the float64 run of the reference gives the same, to 1e-5, and no choice of an expert or of a compressed block is
    close to a tie (MIN_GAP), so another order of summation makes the same choices;
  * replacing any weight tensor by zeros (tid2eid: by another table), or a config value by the one its recipe names,
    moves the logits by at least 1e-3 of their range.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
TINY = HERE.parents[2] / "examples" / "tiny-v4"
sys.path.insert(0, str(TINY))

from configurations import RECIPES, Config, Recipe  # noqa: E402
from recipe import checkpoint  # noqa: E402
from recipe.model import Gate, Indexer, TinyV4  # noqa: E402

AGREE = 1e-5  # of the range of the logits
MATTERS = 1e-3  # of the range of the logits
MIN_GAP = 2e-5  # between the last chosen and the first not chosen, of the largest score
MIN_GAP_TINY = 1e-5  # its weights cannot be drawn again
SEEDS = 400
SHORT = 5  # up to this length a case has the logits of every position
Case = tuple[Tensor, Tensor, Tensor]  # ids, positions, logits


def random_model(config: Config, recipe: Recipe, seed: int) -> TinyV4:
    """Weights scaled so that every tensor has a say; rounded to what the file stores."""
    torch.manual_seed(seed)
    model = TinyV4(config)
    width = config["hc_mult"] * config["hidden_size"]
    for name, x in itertools.chain(model.named_parameters(), model.named_buffers()):
        leaf = name.rsplit(".", 1)[-1]
        if name.endswith(("norm.weight",)):
            x.data = 1 + 0.3 * torch.randn_like(x)
        elif leaf in ("attn_sink", "ape") or leaf.endswith("_base"):
            x.data = torch.randn_like(x)
        elif leaf == "bias":
            x.data = 0.3 * torch.randn_like(x)
        elif leaf.startswith("hc_") and leaf.endswith("_fn"):
            x.data = torch.randn_like(x) * width**-0.5
        elif leaf.endswith("_scale"):
            x.data = 0.5 + torch.rand_like(x)
            x.data[2:] *= recipe.comb_gain
        elif name.endswith(("wo_b.weight", "w2", "w2.weight")):
            x.data *= (2 * config["num_hidden_layers"]) ** 0.5
        elif name.endswith(("w13", "w1.weight", "w3.weight")):
            x.data *= recipe.swiglu_gain
        elif name.endswith("head.weight"):
            x.data *= 2
    return model


@torch.no_grad()
def logits(model: TinyV4, ids: Tensor) -> Tensor:
    return model(ids[None])[0]


def gap(scores: Tensor, chosen: int) -> float:
    """Smallest distance between the last chosen and the first not chosen, of the row's largest finite score."""
    if scores.shape[-1] <= chosen:
        return float("inf")
    best = scores.sort(dim=-1, descending=True).values
    size = scores.masked_fill(scores.isinf(), 0).abs().amax(-1)
    distance = (best[..., chosen - 1] - best[..., chosen]) / size
    distance = distance[best[..., chosen].isfinite()]  # where fewer can be chosen than wanted there is no border
    return distance.min().item() if distance.numel() else float("inf")


def smallest_gap(model: TinyV4, ids: Tensor) -> float:
    """Over every position, router and indexer of one forward pass."""
    gaps: list[float] = []
    handles = []
    indexers = []
    for module in model.modules():
        if isinstance(module, Gate) and not hasattr(module, "tid2eid"):

            def watch_gate(gate: Gate, args: tuple) -> None:
                scores = torch.nn.functional.softplus(args[0] @ gate.weight.T).sqrt() + gate.bias
                gaps.append(gap(scores, gate.active))

            handles.append(module.register_forward_pre_hook(watch_gate))
        elif isinstance(module, Indexer):

            def watch_indexer(scores: Tensor, visible: Tensor, indexer: Indexer = module) -> Tensor:
                gaps.append(gap(scores.masked_fill(~visible, float("-inf")), indexer.topk))
                return Indexer.select(indexer, scores, visible)

            module.select = watch_indexer
            indexers.append(module)
    logits(model, ids)
    for handle in handles:
        handle.remove()
    for indexer in indexers:
        del indexer.select
    return min(gaps, default=float("inf"))


def difference(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).abs().max() / (want.max() - want.min())).item()


def kept_positions(length: int, config: Config) -> Tensor:
    if length <= SHORT:
        return torch.arange(length)
    edges = [config["sliding_window"], 4 * config["index_topk"], *range(128, length, 128)]
    near = {edge + offset for edge in edges for offset in range(-2, 3)}
    kept = near | set(range(0, length, 29)) | set(range(length - 4, length))
    return torch.tensor(sorted(p for p in kept if 0 <= p < length))


def make_cases(model: TinyV4, prompts: list[Tensor], min_gap: float = MIN_GAP) -> tuple[list[Case], float, float]:
    """The cases, their largest difference from float64, and their smallest gap."""
    exact = copy.deepcopy(model).double()
    cases, worst, closest = [], 0.0, float("inf")
    for ids in sorted(prompts, key=len, reverse=True):  # the longest is the likeliest to fail
        closest = min(closest, smallest_gap(model, ids))
        if closest < min_gap:
            break
        ours = logits(model, ids)
        worst = max(worst, difference(ours, logits(exact, ids)))
        if worst > AGREE:
            break
        kept = kept_positions(len(ids), model.config)
        cases.append((ids, kept, ours[kept].contiguous()))
    return cases[::-1], worst, closest


def difference_from_transformers(directory: Path, cases: list[Case]) -> float:
    """Config values it cannot read (other ratios than 0, 4, 128) are given to it under its own names."""
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM

    stored = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention"}
    ratios = stored.pop("compress_ratios")[: stored["num_hidden_layers"]]
    pooled = {m for m in ratios if m not in kinds} or {128}
    assert len(pooled) == 1, "transformers has one ratio for all layers without an indexer"
    stored["layer_types"] = [kinds.get(m, "heavily_compressed_attention") for m in ratios]
    stored["compress_rates"] = {kinds[4]: 4, "heavily_compressed_attention": pooled.pop()}
    config = DeepseekV4Config(**stored)
    assert config.qk_rope_head_dim == stored["qk_rope_head_dim"], "transformers rounds its partial_rotary_factor"
    theirs = DeepseekV4ForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        return max(difference(theirs(ids[None]).logits[0][kept], want) for ids, kept, want in cases)


def blind_spots(model: TinyV4, case: Case, sensitive: Config) -> list[str]:
    """Tensors and config values whose replacement hardly moves the logits of `case`."""
    ids, kept, want = case
    blind = []

    def check(name: str, changed: TinyV4) -> None:
        moved = difference(logits(changed, ids)[kept], want)
        if not moved >= MATTERS:
            blind.append(f"{name} ({moved:.1e})")

    for name, tensor in model.state_dict().items():
        parts = {"": slice(None)}
        if name.endswith("w13"):
            half = tensor.shape[1] // 2
            parts = {"(w1)": (slice(None), slice(half)), "(w3)": (slice(None), slice(half, None))}
        for label, part in parts.items():
            before = tensor.clone()
            tensor[part] = tensor.roll(1, 0) if name.endswith("tid2eid") else 0
            check(name + label, model)
            tensor.copy_(before)
    for key, value in sensitive.items():
        changed = TinyV4({**model.config, key: value})
        changed.load_state_dict(model.state_dict())
        check(key, changed)
    return blind


def clamp_counts(model: TinyV4, ids: Tensor) -> tuple[float, float]:
    """Largest |gate| or |up| before the clamp, and the limit."""
    from recipe.model import Probe

    probe = Probe(watch_clamp=True)
    with torch.no_grad():
        model(ids[None], probe=probe)
    return probe.clamp_max, model.config["swiglu_limit"]


def write_cases(path: Path, cases: list[Case]) -> None:
    tensors = {}
    for i, case in enumerate(cases):
        tensors.update({f"case{i}.{part}": x for part, x in zip(("ids", "positions", "logits"), case)})
    save_file(tensors, path)


def report(name: str, cases: list[Case], **figures: float) -> None:
    rows = sum(len(kept) for _, kept, _ in cases)
    text = ", ".join(f"{key} {value:.1e}" for key, value in figures.items())
    print(f"{name}: {len(cases)} cases, {rows} rows of logits; {text}", flush=True)


def make_random(name: str) -> None:
    recipe = RECIPES[name]
    config = recipe.config()
    for seed in range(SEEDS):
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch)
            checkpoint.save(random_model(config, recipe, seed), directory)
            (directory / "generation_config.json").unlink()
            model = checkpoint.load(directory)
            torch.manual_seed(seed)
            prompts = [torch.randint(config["vocab_size"], (length,)) for length in recipe.lengths]
            cases, worst, closest = make_cases(model, prompts)
            if len(cases) < len(prompts):
                continue
            theirs = difference_from_transformers(directory, cases)
            if theirs > AGREE:
                raise SystemExit(f"{name}: transformers differs by {theirs:.1e} of the range")
            blind = blind_spots(model, cases[-1], recipe.sensitive)
            if blind:
                print(f"{name}: seed {seed} is blind to {', '.join(blind)}", flush=True)
                continue
            target = HERE / name
            target.mkdir(exist_ok=True)
            for file in ("config.json", "model.safetensors"):
                shutil.copyfile(directory / file, target / file)
            write_cases(target / "golden.safetensors", cases)
            pre_clamp, limit = clamp_counts(model, cases[-1][0])
            report(name, cases, seed=seed, float64=worst, transformers=theirs, gap=closest, pre_clamp=pre_clamp, limit=limit)
            return
    raise SystemExit(f"{name}: none of {SEEDS} seeds passes")


def make_tiny() -> None:
    """Conversations of the example's tasks; those with a near tie are passed over."""
    record = json.loads((TINY / "prompt_golden.json").read_text(encoding="utf-8"))
    model = checkpoint.load(TINY)
    dialogues = [torch.tensor(entry["ids"]) for entry in record["conversations"] + record["prompts"]]
    cases, worst, closest = [], 0.0, float("inf")
    for ids in [*dialogues, *(dialogues[0][:n].clone() for n in (1, 3, 4, 5))]:
        made, difference64, found = make_cases(model, [ids], MIN_GAP_TINY)
        if made and len([c for c in cases if len(c[0]) > SHORT]) < (3 if len(ids) > SHORT else 4):
            cases += made
            worst, closest = max(worst, difference64), min(closest, found)
    if not cases or len(cases[0][0]) <= SHORT:
        raise SystemExit("tiny-v4: no conversation without a near tie")
    theirs = difference_from_transformers(TINY, cases)
    if theirs > AGREE:
        raise SystemExit(f"tiny-v4: transformers differs by {theirs:.1e} of the range")
    target = HERE / "tiny-v4"
    target.mkdir(exist_ok=True)
    write_cases(target / "golden.safetensors", cases)
    report("tiny-v4", cases, float64=worst, transformers=theirs, gap=closest)


def main(names: list[str]) -> None:
    known = ["tiny-v4", *RECIPES]
    for name in names or known:
        if name not in known:
            raise SystemExit(f"{name}: unknown; possible: {', '.join(known)}")
        make_tiny() if name == "tiny-v4" else make_random(name)


if __name__ == "__main__":
    main(sys.argv[1:])
