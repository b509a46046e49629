"""The job that is cut: sums of examples/tiny-v4, with every call leaving one line outside of its sandbox.

Each tool call and each reward command appends its call id to a file on the host, through a writable bind, before it does
its work. A call that runs twice is two lines, a call that never ran is none. Both take a moment, so that daemons die while
calls run, and the reward stands behind some hundred kilobytes of output, so that lost output changes it.
"""

from __future__ import annotations

import json
from pathlib import Path

TASKS = 64
GROUP_SIZE = 2
TRAJECTORIES = TASKS * GROUP_SIZE
JOB_ID = "crash"
REWARD = 0.75  # of a right answer; the last line of the reward command's output

_TOOL = 'echo "$REPRISE_CALL_ID" >> /mnt/counter/calls || exit 111\nsleep 0.05\n{command}'
_GRADE = (
    'echo "$REPRISE_CALL_ID" >> /mnt/counter/calls || exit 111\n'
    'test "$REPRISE_RESPONSE" = "$EXPECTED" || exit 1\n'
    f"seq 1 20000\nsleep 0.02\necho {REWARD}"
)

_JOB = f"""\
id = "{JOB_ID}"
model = {{model}}
tasks = "tasks.jsonl"
group_size = {GROUP_SIZE}
seed = 7
thinking = "chat"

[sampling]
temperature = 1.0
structured = true

[limits]
max_tokens = 512
max_turns = 8
max_in_flight = 16

[sandbox]
tier = "function"
binds = [{{{{ host_path = "counter", sandbox_path = "/mnt/counter", writable = true }}}}]

[[tools]]
definition = {{tool}}
command = ["/bin/sh", "-c", {{script}}]
limits = {{{{ timeout_ms = 60000 }}}}
"""


def counter_dir(directory: Path) -> Path:
    """The directory below which the job binds: sandboxd's --bind-root."""
    return directory / "counter"


def write_job(directory: Path, source: Path) -> Path:
    """Writes job file, task set and an empty counter into `directory`; returns the job file."""
    tiny = source / "examples" / "tiny-v4"
    lines = (tiny / "tasks" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:TASKS]
    with open(directory / "tasks.jsonl", "w", encoding="utf-8") as out:
        for line in lines:
            task = json.loads(line)
            task["reward"] = {
                "kind": "command",
                "command": ["sh", "-c", _GRADE],
                "env": {"EXPECTED": task["metadata"]["answer"]},
            }
            out.write(json.dumps(task) + "\n")
    counter_dir(directory).mkdir()
    calls = counter_dir(directory) / "calls"
    calls.touch()
    calls.chmod(0o666)  # the sandbox's user is nobody on the host
    # A JSON string is a TOML basic string.
    quoted = {"model": str(tiny), "tool": str(tiny / "tool_sh.json"), "script": _TOOL}
    job = directory / "job.toml"
    job.write_text(_JOB.format(**{k: json.dumps(v) for k, v in quoted.items()}), encoding="utf-8")
    return job


def counted_calls(directory: Path) -> list[str]:
    """Ids of the calls that ran, one for each time that one did."""
    return (counter_dir(directory) / "calls").read_text(encoding="utf-8").split()
