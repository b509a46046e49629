"""Harbor, unmodified, runs a small task in its E2B environment: it builds the task's Dockerfile as a template, creates a
sandbox of it, lets the oracle agent solve the task there, runs the verifier, and reads the reward."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from harness import Checks, served

TASK = {
    "task.toml": """schema_version = "1.4"
[task]
name = "reprise/fix-add"
description = "A program that subtracts where it should add."
[verifier]
timeout_sec = 120.0
environment_mode = "shared"
[agent]
timeout_sec = 120.0
[environment]
network_mode = "public"
build_timeout_sec = 300.0
os = "linux"
""",
    "instruction.md": "add.sh must add its two arguments.\n",
    "environment/Dockerfile": "FROM base\nWORKDIR /app\nCOPY add.sh /app/add.sh\nENV EXPECTED=5\nRUN chmod 755 add.sh\n",
    "environment/add.sh": "#!/bin/sh\necho $(($1 - $2))\n",
    "solution/solve.sh": "#!/bin/bash\nsed -i 's/ - / + /' /app/add.sh\n",
    "tests/test.sh": "#!/bin/bash\nmkdir -p /logs/verifier\n"
                     "if [ \"$(/app/add.sh 2 3)\" = \"$EXPECTED\" ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n",
}


# The rewards of one run of the task by `agent`.
def rewards(task, agent, out):
    harbor = os.path.join(os.path.dirname(sys.executable), "harbor")
    done = subprocess.run([harbor, "run", "-p", task, "-a", agent, "-e", "e2b", "-o", out, "-y", "-q"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    results = [json.loads(path.read_text()) for path in pathlib.Path(out).glob("*/*/result.json")]
    assert done.returncode == 0 and len(results) == 1, done.stdout[-4000:]
    assert results[0].get("exception_info") is None, results[0]["exception_info"]
    return results[0]["verifier_result"]["rewards"]


def main():
    check = Checks("harbor")
    with served(sys.argv[1]) as (daemon, template), tempfile.TemporaryDirectory() as scratch:
        if template is None:
            return 0
        os.environ.update(E2B_API_URL=daemon.url, E2B_SANDBOX_URL=daemon.url, E2B_API_KEY=daemon.token,
                          HARBOR_TELEMETRY="off")
        for name, text in TASK.items():
            path = pathlib.Path(scratch, "task", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        def run(agent, expected):
            said = rewards(os.path.join(scratch, "task"), agent, os.path.join(scratch, agent))
            assert said == {"reward": expected}, said
        check("container: the oracle solves a task", lambda: run("oracle", 1.0))
        check("container: an agent that does nothing does not", lambda: run("nop", 0.0))
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
