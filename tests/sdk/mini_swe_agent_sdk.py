"""mini-swe-agent, unmodified, solves a small task in a sandbox through SWE-ReX: its agent, its LiteLLM model (which talks
to a scripted server on this machine) and its environment for swe-rex, deployed where sandboxd is instead of in Docker."""

import asyncio
import os
import sys

from harness import Checks, served
from scripted_model import ScriptedModel

os.environ.update(MSWEA_COST_TRACKING="ignore_errors", MSWEA_SILENT_STARTUP="1")

BUGGY = "add() {\n  echo $(($1 - $2))\n}\n"
COMMANDS = [
    "cat add.sh",
    ". ./add.sh; test $(add 2 3) = 5 || echo broken",
    "sed -i 's/\\$1 - \\$2/$1 + $2/' add.sh && . ./add.sh && add 2 3",
    "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat add.sh",
]


def solves(daemon, template):
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.environments.extra.swerex_docker import SwerexDockerEnvironment, SwerexDockerEnvironmentConfig
    from minisweagent.models.litellm_model import LitellmModel
    from swerex.deployment.remote import RemoteDeployment
    from swerex.runtime.abstract import ReadFileRequest, WriteFileRequest

    made = daemon.request("POST", "/v2/sandboxes", {"templateID": template, "timeout": 3600}).json()
    host, port = daemon.address

    class Environment(SwerexDockerEnvironment):
        def __init__(self, **kwargs):
            self.config = SwerexDockerEnvironmentConfig(**kwargs)
            self.deployment = RemoteDeployment(host=f"http://{host}", port=port, auth_token=made["envdAccessToken"])
            asyncio.run(self.deployment.start())

    env = Environment(image=template, cwd="/work")
    asyncio.run(env.deployment.runtime.write_file(WriteFileRequest(path="/work/add.sh", content=BUGGY)))
    model = ScriptedModel(COMMANDS)
    try:
        agent = DefaultAgent(
            LitellmModel(model_name="openai/scripted", model_kwargs={"api_base": model.url, "api_key": "none"}), env,
            system_template="You fix programs.", instance_template="Fix add.sh: {{task}}")
        outcome = agent.run("add 2 3 must be 5")
    finally:
        model.close()
    assert outcome["exit_status"] == "Submitted", outcome
    assert "$1 + $2" in outcome["submission"], outcome
    said = [message["content"] for message in model.asked[-1] if message["role"] == "tool"]
    assert "broken" in said[1] and "5\n" in said[2], said
    file = asyncio.run(env.deployment.runtime.read_file(ReadFileRequest(path="/work/add.sh")))
    assert file.content == BUGGY.replace("-", "+"), file.content
    # Each command that the model gave is one call in the sandbox's log.
    lines = [entry["message"] for entry in
             daemon.request("GET", f"/v2/sandboxes/{made['sandboxID']}/logs").json()["logEntries"]]
    for command in COMMANDS:
        assert sum(f" -c {command} ->" in line for line in lines) == 1, (command, lines)


def main():
    check = Checks("mini-swe-agent")
    with served(sys.argv[1]) as (daemon, template):
        if template is None:
            return 0
        check("container: solves a task", lambda: solves(daemon, template))
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
