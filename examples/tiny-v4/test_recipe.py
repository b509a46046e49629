"""Tests of the recipe that need no training: prompt text, task files, tool, checkpoint files, chunked reading.

Run: python -m unittest test_recipe   (in this directory)
"""

from __future__ import annotations

import json
import random
import unittest
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from recipe import checkpoint, prompt, tasks
from recipe.dialogue import Dialogue

HERE = Path(__file__).resolve().parent
TOOL = json.loads((HERE / "tool_sh.json").read_text(encoding="utf-8"))
GOLDEN = json.loads((HERE / "prompt_golden.json").read_text(encoding="utf-8"))
TASK = tasks.Task("What is 47 + 385?", "47+385", "432")


def records(name: str) -> list[dict]:
    return [json.loads(line) for line in (HERE / "tasks" / name).read_text(encoding="utf-8").splitlines()]


class PromptTest(unittest.TestCase):
    def test_tool_call_has_the_exact_markup_and_parses_back(self) -> None:
        call = {"function": {"name": "sh", "arguments": '{"command": "echo $((47+385))"}'}}
        text = prompt.render([{"role": "assistant", "content": "", "tool_calls": [call]}])
        expected = (
            '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="sh">\n<｜DSML｜parameter name="command" string="true">'
            "echo $((47+385))</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        )
        self.assertEqual(text, prompt.BOS + expected + prompt.EOS)
        self.assertEqual(prompt.parse_call(expected), TASK.command)
        self.assertIsNone(prompt.parse_call(expected.removeprefix("\n")))

    def test_tool_results_are_one_user_turn(self) -> None:
        results = [{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, {"role": "user", "content": "so?"}]
        self.assertEqual(
            prompt.render(results),
            "<｜begin▁of▁sentence｜><｜User｜><tool_result>1</tool_result>\n\n<tool_result>2</tool_result>\n\nso?"
            "<｜Assistant｜></think>",
        )

    def test_goldens_are_what_the_renderer_and_the_stored_tokenizer_give(self) -> None:
        tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        for case in GOLDEN["prompts"] + GOLDEN["conversations"]:
            self.assertEqual(prompt.render(case["messages"], GOLDEN["tools"]), case["text"])
            self.assertEqual(tokenizer.encode(case["text"], add_special_tokens=False).ids, case["ids"])
            self.assertEqual(tokenizer.decode(case["ids"], skip_special_tokens=False), case["text"])

    def test_segments_encoded_apart_are_the_whole_text(self) -> None:
        dialogue = Dialogue(Tokenizer.from_file(str(HERE / "tokenizer.json")), TOOL)
        joined = dialogue.prefix() + [i for ids, _ in dialogue.segments(TASK) for i in ids]
        text = dialogue.tokenizer.decode(joined, skip_special_tokens=False)
        self.assertEqual(dialogue.encode(text), joined)


class TaskTest(unittest.TestCase):
    def test_test_tasks_are_unseen_and_ids_are_unique(self) -> None:
        train, test = records("train.jsonl"), records("test.jsonl")
        self.assertEqual((len(train), len(test)), (512, 256))
        self.assertEqual(len({r["id"] for r in train + test}), 768)

        def sums(lines: list[dict]) -> set[str]:
            return {"".join(c for c in r["messages"][0]["content"] if c in "0123456789+-*") for r in lines}

        self.assertFalse(sums(train) & sums(test))

    def test_the_shell_agrees_with_the_answers(self) -> None:
        rng_tasks = tasks.draw_distinct(random.Random(3), 40, set())
        for task in rng_tasks:
            self.assertEqual(tasks.run_command(task.command), task.answer)

    def test_only_sums_are_run(self) -> None:
        for command in ("echo hi", "echo $((1+1)); ls", "echo $((a))", "echo $((1+1))\nls"):
            self.assertTrue(tasks.run_command(command).startswith("error"))


class CheckpointTest(unittest.TestCase):
    def test_dtypes_and_names_are_the_official_ones(self) -> None:
        expected = {
            "embed.weight": "BF16",
            "hc_head_fn": "F32",
            "layers.0.ffn.gate.tid2eid": "I64",
            "layers.0.attn.attn_sink": "F32",
            "layers.1.attn.compressor.ape": "F32",
            "layers.1.attn.indexer.compressor.wkv.weight": "BF16",
            "layers.2.ffn.gate.bias": "F32",
            "layers.2.ffn.experts.7.w2.weight": "BF16",
            "layers.2.hc_ffn_scale": "F32",
        }
        with safe_open(HERE / "model.safetensors", "pt") as stored:
            for name, dtype in expected.items():
                self.assertEqual(stored.get_slice(name).get_dtype(), dtype, name)

    def test_reading_in_chunks_changes_nothing(self) -> None:
        model = checkpoint.load(HERE)
        for layer in model.layers:
            if layer.attn.m == 4:
                layer.attn.indexer.topk = 1 << 20  # near ties at the border would be decided by rounding
        ids = torch.tensor([GOLDEN["conversations"][0]["ids"]])
        with torch.no_grad():
            whole, _ = model(ids)
            for size in (1, 3, 5, 64, 127, 129):
                state, parts = None, []
                for chunk in ids.split(size, dim=1):
                    logits, state = model(chunk, state)
                    parts.append(logits)
                self.assertLess((torch.cat(parts) - whole).abs().max().item(), 1e-3)


if __name__ == "__main__":
    unittest.main()
