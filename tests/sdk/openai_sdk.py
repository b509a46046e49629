"""The published openai client, unmodified, against rolloutd: completions and chat, whole and streamed, tools, token ids,
errors, the asynchronous client, and a trajectory driven by headers."""

import asyncio
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration/rollout_http"))

import openai  # noqa: E402
from harness import Checks  # noqa: E402
from rolloutd import Rolloutd, read  # noqa: E402

TOOL = json.loads(read("tool_sh.json"))
TASK = json.loads(read("tasks/test.jsonl").splitlines()[0])["messages"]


def tools():
    return [TOOL if "function" in TOOL else {"type": "function", "function": TOOL}]


class Sdk:
    def __init__(self, daemon):
        self.daemon = daemon
        self.client = openai.OpenAI(base_url=daemon.url + "/v1", api_key=daemon.token, max_retries=0)

    def chat(self, **fields):
        return self.client.chat.completions.create(
            model="tiny-v4", **{"messages": TASK, "tools": tools(), "temperature": 0, "max_tokens": 200, **fields})

    def models(self):
        assert [model.id for model in self.client.models.list()] == ["tiny-v4"]

    def tool_loop(self):
        answer = self.chat()
        assert answer.choices[0].finish_reason == "tool_calls", answer
        call = answer.choices[0].message.tool_calls[0]
        assert "command" in json.loads(call.function.arguments)
        messages = TASK + [answer.choices[0].message,
                           {"role": "tool", "tool_call_id": call.id, "content": "22400"}]
        last = self.chat(messages=messages)
        assert last.choices[0].finish_reason == "stop" and last.choices[0].message.content, last

    def streamed_tools(self):
        whole = self.chat().choices[0].message.tool_calls[0].function
        with self.client.chat.completions.stream(model="tiny-v4", messages=TASK, tools=tools(), temperature=0,
                                                 max_tokens=200) as stream:
            for _ in stream:
                pass
            final = stream.get_final_completion()
        function = final.choices[0].message.tool_calls[0].function
        assert (function.name, function.arguments) == (whole.name, whole.arguments)

    def thinking(self):
        answer = self.chat(extra_body={"thinking": {"type": "enabled"}}, tools=openai.NOT_GIVEN, max_tokens=30)
        assert answer.usage.completion_tokens <= 30

    def logprobs_and_ids(self):
        answer = self.chat(logprobs=True, top_logprobs=3, extra_body={"return_token_ids": True})
        choice = answer.choices[0]
        assert len(choice.logprobs.content) == len(choice.token_ids) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
        text = self.client.completions.create(model="tiny-v4", prompt=answer.prompt_token_ids, temperature=0,
                                              max_tokens=200, logprobs=2, extra_body={"return_token_ids": True})
        assert text.choices[0].token_ids == choice.token_ids
        assert len(text.choices[0].logprobs.top_logprobs[0]) in (2, 3)

    def streamed_text(self):
        pieces = list(self.client.completions.create(model="tiny-v4", prompt="1 + 1", max_tokens=8, stream=True,
                                                     stream_options={"include_usage": True}))
        assert pieces[-1].usage.completion_tokens == 8 or pieces[-2].choices[0].finish_reason == "stop"

    def errors(self):
        for expected, ask in (
                (openai.BadRequestError, lambda: self.chat(temperature=-1)),
                (openai.NotFoundError, lambda: self.client.chat.completions.create(model="no", messages=TASK)),
                (openai.AuthenticationError, lambda: self.client.with_options(api_key="x" * 20).models.list())):
            try:
                ask()
            except expected as error:
                if expected is openai.BadRequestError:
                    assert error.param == "temperature", error
                continue
            raise AssertionError(f"no {expected.__name__}")

    def many(self):
        async def run():
            async with openai.AsyncOpenAI(base_url=self.daemon.url + "/v1", api_key=self.daemon.token) as client:
                return await asyncio.gather(*[
                    client.chat.completions.create(model="tiny-v4", messages=TASK, seed=seed, max_tokens=50)
                    for seed in (1, 2, 3, 4, 1)])
        answers = asyncio.run(run())
        assert answers[0].choices[0].message == answers[4].choices[0].message

    def trajectory(self):
        headers = {"X-Reprise-Trajectory": "sdk", "X-Request-ID": "sdk-0"}
        first = self.chat(extra_headers=headers)
        assert self.chat(extra_headers=headers) == first
        self.client.post("/trajectories/sdk/finish", body={"reward": 1.0}, cast_to=object)


if __name__ == "__main__":
    daemon = Rolloutd(sys.argv[1])
    checks = Checks("openai")
    try:
        sdk = Sdk(daemon)
        for name in ("models", "tool_loop", "streamed_tools", "thinking", "logprobs_and_ids", "streamed_text", "errors",
                     "many", "trajectory"):
            checks(name, getattr(sdk, name))
    finally:
        daemon.close()
    sys.exit(checks.end())
