"""DeepSeek-V4 prompt text, chat mode only: messages and tools in, the exact bytes of the prompt out.

Written from the published format. Thinking mode, developer messages and response formats are left out, because this
model is trained and used without them; a message that would need them is an error, never a guess.
"""

from __future__ import annotations

import json
import re
from typing import Any

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
DSML = "｜DSML｜"
REMINDER = "<｜latest_reminder｜>"
QUICK_INSTRUCTIONS = {
    task: f"<｜{task}｜>" for task in ("action", "query", "authority", "domain", "title", "read_url")
}

Message = dict[str, Any]

TOOLS_BLOCK = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

{tool_schemas}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""

_CALL = re.compile(
    r'\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="sh">\n'
    r'<｜DSML｜parameter name="command" string="true">(.*)</｜DSML｜parameter>\n'
    r"</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    re.DOTALL,
)


def to_json(value: Any) -> str:
    """JSON as prompts hold it: Python's separators, key order as received, non-ASCII kept."""
    return json.dumps(value, ensure_ascii=False)


def tools_block(tools: list[dict[str, Any]]) -> str:
    """The declaration of `tools` (OpenAI form), ending with its newline."""
    schemas = "\n".join(to_json(tool["function"]) for tool in tools)
    return TOOLS_BLOCK.replace("{tool_schemas}", schemas)


def _parameter(name: str, value: Any) -> str:
    is_string = isinstance(value, str)
    text = value if is_string else to_json(value)
    return f'<{DSML}parameter name="{name}" string="{"true" if is_string else "false"}">{text}</{DSML}parameter>'


def tool_calls_block(calls: list[dict[str, Any]]) -> str:
    """The DSML block of an assistant turn, without the two newlines before it."""
    invokes = []
    for call in calls:
        function = call["function"]
        params = "\n".join(_parameter(k, v) for k, v in json.loads(function["arguments"]).items())
        invokes.append(f'<{DSML}invoke name="{function["name"]}">\n{params}\n</{DSML}invoke>')
    return f"<{DSML}tool_calls>\n" + "\n".join(invokes) + f"\n</{DSML}tool_calls>"


def parse_call(text: str) -> str | None:
    """The command of an assistant turn (without EOS) that is exactly one well-formed `sh` call, else None."""
    match = _CALL.fullmatch(text)
    return match.group(1) if match else None


def _merge_tool_results(messages: list[Message]) -> list[Message]:
    """Tool messages become user turns; user text after a tool result joins its turn."""
    merged: list[Message] = []
    for message in messages:
        if message["role"] not in ("tool", "user"):
            merged.append(message)
            continue
        text = message["content"]
        if message["role"] == "tool":
            text = f"<tool_result>{text}</tool_result>"
        last = merged[-1] if merged else None
        if last is not None and last["role"] == "user" and "task" not in last:
            last["content"] += "\n\n" + text
        else:
            merged.append({**message, "role": "user", "content": text})
    return merged


def _transition(message: Message) -> str:
    task = message.get("task")
    if task == "action":
        return ASSISTANT + THINK_CLOSE + QUICK_INSTRUCTIONS[task]
    if task is not None:
        return QUICK_INSTRUCTIONS[task]
    return ASSISTANT + THINK_CLOSE if message["role"] == "user" else ""


def _body(message: Message, tools: list[dict[str, Any]]) -> str:
    role, content = message["role"], message.get("content") or ""
    if role == "system":
        return content + ("\n\n" + tools_block(tools) if tools else "")
    if role == "user":
        return USER + content
    if role == "latest_reminder":
        return REMINDER + content
    if role == "assistant":
        calls = message.get("tool_calls")
        return content + ("\n\n" + tool_calls_block(calls) if calls else "") + EOS
    raise ValueError(f"chat-mode prompt: role {role!r} is not supported")


def render(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    """The prompt. Tools without a system message act as if an empty one carried them."""
    tools = tools or []
    if tools and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": ""}, *messages]
    merged = _merge_tool_results(messages)
    parts = [BOS]
    for i, message in enumerate(merged):
        parts.append(_body(message, tools if i == 0 else []))
        if i + 1 == len(merged) or merged[i + 1]["role"] in ("assistant", "latest_reminder"):
            parts.append(_transition(message))
    return "".join(parts)
