"""The tokenizer: byte-level BPE in the form the real model ships, with merges learned on this task's own text.

The three splitting passes are the official ones. Merges are learned with every digit split off, so a number is always
one token a digit and copying it is copying single tokens.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers import models, pre_tokenizers, trainers

from . import prompt

# Base entries that are special tokens, at ids 0, 1, 2; the others follow the merges.
_LEADING = (prompt.BOS, prompt.EOS, prompt.PAD)
_TRAILING = (
    prompt.USER,
    prompt.ASSISTANT,
    prompt.THINK_OPEN,
    prompt.THINK_CLOSE,
    prompt.DSML,
    prompt.REMINDER,
    "<｜action｜>",
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜extracted_url｜>",
    "<｜read_url｜>",
)
# As shipped: role and think tokens are added tokens without the "special" flag.
_NOT_SPECIAL = {prompt.USER, prompt.ASSISTANT, prompt.THINK_OPEN, prompt.THINK_CLOSE}

_SPLITS = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def _pre_tokenizer(first: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    splits = [_split(pattern) for pattern in first + _SPLITS]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _learn(corpus: list[str], entries: int) -> dict[str, Any]:
    """Vocabulary and merges as JSON: three specials, 256 bytes, then merges up to `entries` in all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer((r"\p{N}",))
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        min_frequency=2,
        special_tokens=list(_LEADING),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    specials = re.compile("|".join(re.escape(token) for token in _LEADING + _TRAILING))
    pieces = [piece for text in corpus for piece in specials.split(text) if piece]
    tokenizer.train_from_iterator(pieces, trainer)
    return json.loads(tokenizer.to_str())["model"]


def _added(token: str, token_id: int) -> dict[str, Any]:
    normalized = token in (prompt.USER, prompt.ASSISTANT)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized}
    return {"id": token_id, "content": token, **flags, "special": token not in _NOT_SPECIAL}


def build(corpus: list[str], vocab_size: int) -> dict[str, Any]:
    """tokenizer.json for `corpus` with at most `vocab_size` entries."""
    model = _learn(corpus, vocab_size - len(_TRAILING))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    base = len(model["vocab"])
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} for pattern in _SPLITS
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(t, i) for i, t in enumerate(_LEADING)]
        + [_added(t, base + i) for i, t in enumerate(_TRAILING)],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*splits, {**byte_level, "add_prefix_space": False, "use_regex": False}],
        },
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": model["vocab"],
            "merges": merges,
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json: the prompt text holds BOS itself, so none is added."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": prompt.BOS,
        "eos_token": prompt.EOS,
        "pad_token": prompt.EOS,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 1048576,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write(directory: Path, corpus: list[str], vocab_size: int) -> Tokenizer:
    """Writes tokenizer.json and tokenizer_config.json, and returns the tokenizer read back from the file."""
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(build(corpus, vocab_size), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    config = json.dumps(tokenizer_config(), ensure_ascii=False, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(config, encoding="utf-8")
    return Tokenizer.from_file(str(path))
