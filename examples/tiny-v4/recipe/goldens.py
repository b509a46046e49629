"""prompt_golden.json: rendered prompts and their ids, for other implementations of the encoding to compare with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import prompt
from .dialogue import Dialogue, full_messages, question_messages
from .tasks import Task

FULL_CONVERSATIONS = 2


def _rendered(dialogue: Dialogue, messages: list[prompt.Message]) -> dict[str, Any]:
    text = prompt.render(messages, [dialogue.tool])
    return {"messages": messages, "text": text, "ids": dialogue.encode(text)}


def write(path: Path, dialogue: Dialogue, tasks: list[Task]) -> None:
    """`prompts` end where the assistant begins; `conversations` end with its answer's EOS."""
    record = {
        "tools": [dialogue.tool],
        "thinking": "chat",
        "prompts": [_rendered(dialogue, question_messages(t)) for t in tasks],
        "conversations": [_rendered(dialogue, full_messages(t, t.answer)) for t in tasks[:FULL_CONVERSATIONS]],
    }
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
