"""OpenAI's API of rolloutd from outside, with the standard library alone: answers whole and streamed, tools, token ids
and log-probabilities, ends, errors, limits, and clients that go away."""

import concurrent.futures
import json
import select
import socket
import sys
import time
import unittest

from rolloutd import Rolloutd, read

TOOL = json.loads(read("tool_sh.json"))
MESSAGES = json.loads(read("tasks/test.jsonl").splitlines()[0])["messages"]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields):
    return {"model": "tiny-v4", "messages": MESSAGES, "tools": [TOOL], "seed": 7, "max_tokens": 200, **fields}


# A stream's events put together: one message, and its token ids.
def joined(events):
    message, ids, reason = {"content": "", "reasoning_content": "", "tool_calls": []}, [], None
    for event in events:
        for choice in event["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            ids += choice.get("token_ids") or []
            for call in delta.get("tool_calls") or []:
                if "id" in call:
                    message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return message, ids, reason


class OpenAi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Rolloutd(BIN_DIR)

    @classmethod
    def tearDownClass(cls):
        assert cls.daemon.close() == 0

    def post(self, path, body, status=200, **headers):
        reply = self.daemon.post(path, body, **headers)
        self.assertEqual(reply.status, status, reply.body)
        return reply

    def test_models(self):
        models = self.daemon.request("GET", "/v1/models").json()["data"]
        self.assertEqual([model["id"] for model in models], ["tiny-v4"])
        self.assertEqual(self.daemon.request("GET", "/v1/models/tiny-v4").json()["object"], "model")
        self.assertEqual(self.daemon.request("GET", "/v1/models/other").status, 404)

    def test_a_call_of_a_tool(self):
        answer = self.post(CHAT, chat(temperature=0, return_token_ids=True)).json()
        choice = answer["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        call = choice["message"]["tool_calls"][0]
        self.assertEqual(call["function"]["name"], "sh")
        self.assertIn("command", json.loads(call["function"]["arguments"]))
        self.assertEqual(answer["usage"]["completion_tokens"], len(choice["token_ids"]))
        self.assertEqual(answer["usage"]["prompt_tokens"], len(answer["prompt_token_ids"]))
        # The result goes back, and the model answers.
        after = MESSAGES + [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "42"}]
        answer = self.post(CHAT, chat(messages=after, temperature=0)).json()
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        self.assertTrue(answer["choices"][0]["message"]["content"])

    def test_a_stream_is_the_whole_answer_in_pieces(self):
        for seed in range(4):
            body = chat(seed=seed, return_token_ids=True, logprobs=True, top_logprobs=2)
            whole = self.post(CHAT, body).json()
            events = self.post(CHAT, {**body, "stream": True, "stream_options": {"include_usage": True}}).events()
            message, ids, reason = joined(events)
            choice = whole["choices"][0]
            self.assertEqual(ids, choice["token_ids"])
            self.assertEqual(reason, choice["finish_reason"])
            calls = [call["function"] for call in choice["message"].get("tool_calls", [])]
            if reason == "tool_calls":
                self.assertEqual(message["tool_calls"], calls)
                self.assertEqual(message["content"], choice["message"]["content"] or "")
            self.assertEqual(events[0]["prompt_token_ids"], whole["prompt_token_ids"])
            self.assertEqual(events[-1]["choices"], [])
            self.assertEqual(events[-1]["usage"]["completion_tokens"], whole["usage"]["completion_tokens"])
            logprobs = [one for event in events for part in event["choices"]
                        for one in (part["logprobs"] or {}).get("content", [])]
            self.assertEqual(logprobs, choice["logprobs"]["content"])

    def test_token_ids_in_and_out(self):
        first = self.post(CHAT, chat(return_token_ids=True, temperature=0)).json()
        prompt, ids = first["prompt_token_ids"], first["choices"][0]["token_ids"]
        again = self.post(TEXT, {"model": "tiny-v4", "prompt": prompt, "max_tokens": 200, "temperature": 0,
                                 "return_token_ids": True, "logprobs": 1}).json()["choices"][0]
        self.assertEqual(again["token_ids"], ids)
        self.assertEqual(again["prompt_token_ids"], prompt)
        self.assertEqual(len(again["logprobs"]["token_logprobs"]), len(ids))
        self.assertTrue(all(value <= 0 for value in again["logprobs"]["token_logprobs"]))
        # From the middle on, the rest is the same.
        rest = self.post(TEXT, {"model": "tiny-v4", "prompt": prompt + ids[:5], "max_tokens": 200, "temperature": 0,
                                "return_token_ids": True}).json()
        self.assertEqual(rest["choices"][0]["token_ids"], ids[5:])

    def test_many_at_one_time_are_each_as_alone(self):
        def ask(seed):
            return self.post(CHAT, chat(seed=seed, return_token_ids=True)).json()["choices"][0]["token_ids"]

        alone = [ask(seed) for seed in range(6)]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            self.assertEqual(list(pool.map(ask, range(6))), alone)
        self.assertGreater(len({tuple(ids) for ids in alone}), 1)

    def test_choices_and_prompts(self):
        answer = self.post(CHAT, chat(n=4, return_token_ids=True)).json()
        self.assertEqual([choice["index"] for choice in answer["choices"]], [0, 1, 2, 3])
        self.assertEqual(answer["choices"][0]["token_ids"],
                         self.post(CHAT, chat(return_token_ids=True)).json()["choices"][0]["token_ids"])
        answer = self.post(TEXT, {"model": "tiny-v4", "prompt": ["1+1", "2+2"], "n": 2, "echo": True}).json()
        self.assertEqual(len(answer["choices"]), 4)
        self.assertTrue(answer["choices"][3]["text"].endswith("2+2" + answer["choices"][3]["text"].split("2+2", 1)[1]))

    def test_ends(self):
        base = {"model": "tiny-v4", "prompt": self.post(CHAT, chat(return_token_ids=True)).json()["prompt_token_ids"],
                "temperature": 0, "max_tokens": 100, "return_token_ids": True, "skip_special_tokens": False}
        whole = self.post(TEXT, base).json()["choices"][0]
        self.assertEqual((whole["finish_reason"], whole["stop_reason"]), ("stop", None))
        short = self.post(TEXT, {**base, "max_tokens": 3}).json()["choices"][0]
        self.assertEqual((short["finish_reason"], short["token_ids"]), ("length", whole["token_ids"][:3]))
        word = whole["text"][4:8]
        cut = self.post(TEXT, {**base, "stop": [word]}).json()["choices"][0]
        self.assertEqual((cut["finish_reason"], cut["stop_reason"]), ("stop", word))
        self.assertEqual(cut["text"], whole["text"][:whole["text"].index(word)])
        by_id = self.post(TEXT, {**base, "stop_token_ids": [whole["token_ids"][4]]}).json()["choices"][0]
        self.assertEqual(by_id["stop_reason"], whole["token_ids"][4])
        banned = self.post(TEXT, {**base, "logit_bias": {str(whole["token_ids"][0]): -100}}).json()["choices"][0]
        self.assertNotEqual(banned["token_ids"][0], whole["token_ids"][0])
        longer = self.post(TEXT, {**base, "min_tokens": len(whole["token_ids"]) + 2}).json()["choices"][0]
        self.assertGreaterEqual(len(longer["token_ids"]), len(whole["token_ids"]) + 2)

    def test_cached_tokens(self):
        prompt = list(range(10, 310)) * 2
        body = {"model": "tiny-v4", "prompt": prompt, "max_tokens": 1}
        self.post(TEXT, body)
        usage = self.post(TEXT, body).json()["usage"]
        self.assertGreater(usage["prompt_tokens_details"]["cached_tokens"], 0)

    def test_errors_name_the_field(self):
        for field, value in (("temperature", -1), ("temperature", "hot"), ("top_p", 0), ("top_k", 1.5), ("n", 0),
                             ("max_tokens", 0), ("stop", [""]), ("messages", []), ("logit_bias", {"x": 1}),
                             ("tool_choice", "maybe"), ("response_format", {"type": "json_object"}),
                             ("top_logprobs", 3), ("messages", [{"role": "nobody", "content": "x"}]),
                             ("reasoning_effort", "some"), ("frequency_penalty", 3), ("max_tokens", 10**7)):
            error = self.post(CHAT, chat(**{field: value}), status=400).json()["error"]
            self.assertEqual(error["param"], field, error)
            self.assertEqual(error["type"], "invalid_request_error")
        for prompt in (None, [], "", [10**9], [[1], [-1]], {"a": 1}):
            error = self.post(TEXT, {"model": "tiny-v4", "prompt": prompt, "add_special_tokens": False}, 400).json()
            self.assertEqual(error["error"]["param"], "prompt")
        self.assertEqual(self.post(CHAT, "{", 400).json()["error"]["type"], "invalid_request_error")
        self.assertEqual(self.post(CHAT, chat(model="gpt"), 404).json()["error"]["code"], "model_not_found")
        refused = self.daemon.request("POST", CHAT, chat(), owner=False)
        self.assertEqual((refused.status, refused.json()["error"]["code"]), (401, "invalid_api_key"))

    def test_calls_that_must_be_made_and_fit(self):
        def tool(name, **more):
            schema = {"type": "object", "additionalProperties": False, "required": ["path"],
                      "properties": {"path": {"type": "string", "maxLength": 12}, "mode": {"enum": ["r", "w"]},
                                     "lines": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}}}
            return {"type": "function", "function": {"name": name, "parameters": schema, **more}}

        tools = [tool("open"), tool("open_all")]
        for choice, names in (("required", {"open", "open_all"}),
                              ({"type": "function", "function": {"name": "open_all"}}, {"open_all"})):
            for seed in range(4):
                body = chat(tools=tools, tool_choice=choice, temperature=3, seed=seed, max_tokens=900,
                            parallel_tool_calls=False)
                answer = self.post(CHAT, body).json()["choices"][0]
                self.assertEqual(answer["finish_reason"], "tool_calls", answer)
                self.assertFalse(answer["message"]["content"])
                [call] = answer["message"]["tool_calls"]
                self.assertIn(call["function"]["name"], names)
                arguments = json.loads(call["function"]["arguments"])
                self.assertLessEqual(set(arguments), {"path", "mode", "lines"})
                self.assertLessEqual(len(arguments["path"]), 12)
                self.assertIn(arguments.get("mode", "r"), ("r", "w"))
                self.assertTrue(all(isinstance(line, int) for line in arguments.get("lines", [])))
                message, _, reason = joined(self.post(CHAT, {**body, "stream": True}).events())
                self.assertEqual((reason, message["tool_calls"]), ("tool_calls", [call["function"]]))
        hot = chat(temperature=3, max_tokens=60, n=8, tools=[tool("open", strict=True)])
        for choice in self.post(CHAT, hot).json()["choices"]:
            self.assertNotIn("DSML", choice["message"]["content"] or "")
        other = {"type": "string", "pattern": "a+"}
        odd = {"type": "function", "function": {"name": "odd", "parameters": {
            "type": "object", "properties": {"p": other}}}}
        for fields, param in (({"tools": [odd], "tool_choice": "required"}, "tools"),
                              ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
                              ({"tools": [], "tool_choice": "required"}, "tool_choice"),
                              ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos")):
            error = self.post(CHAT, chat(**fields), status=400).json()["error"]
            self.assertEqual(error["param"], param, error)
        self.assertEqual(self.post(CHAT, chat(tools=[odd], max_tokens=1)).status, 200)

    def test_content_of_a_schema(self):
        schema = {"type": "object", "required": ["n", "who"], "properties": {
            "n": {"type": "integer", "minimum": 0}, "who": {"type": "string", "maxLength": 5}}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
        for fields in ({"response_format": form}, {"guided_json": schema}):
            answer = self.post(CHAT, chat(tools=[], temperature=2, max_tokens=300, **fields)).json()["choices"][0]
            self.assertEqual(answer["finish_reason"], "stop", answer)
            value = json.loads(answer["message"]["content"])
            self.assertEqual(set(value), {"n", "who"})
            self.assertTrue(isinstance(value["n"], int) and value["n"] >= 0 and len(value["who"]) <= 5)
        thinking = chat(tools=[], temperature=2, max_tokens=2000, response_format=form,
                        thinking={"type": "enabled"}, logit_bias={"630": 8})
        message = self.post(CHAT, thinking).json()["choices"][0]["message"]
        self.assertEqual(set(json.loads(message["content"])), {"n", "who"})
        base = {"model": "tiny-v4", "prompt": "x", "max_tokens": 300, "guided_json": json.dumps(schema)}
        self.assertEqual(set(json.loads(self.post(TEXT, base).json()["choices"][0]["text"])), {"n", "who"})

    # A connection whose endless request has the only place: one that comes while the request before it still has that
    # place is refused, and made again.
    def occupy(self, daemon, stream):
        body = json.dumps({"model": "tiny-v4", "prompt": [5, 6, 7], "max_tokens": 900000, "ignore_eos": True,
                           "stream": stream})
        running = b'\nreprise_num_requests_running{model_name="tiny-v4"} %d\n'
        while True:
            while running % 0 not in daemon.request("GET", "/metrics").body:
                pass
            raw = socket.create_connection(daemon.address)
            raw.sendall(f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {daemon.token}\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
            while not select.select([raw], [], [], 0)[0]:
                if not stream and running % 1 in daemon.request("GET", "/metrics").body:
                    return raw
            if b" 200 " in raw.recv(32):
                return raw
            raw.close()

    def test_a_client_that_goes_away_gives_back_its_place(self):
        daemon = Rolloutd(BIN_DIR, "--http-requests", "1")
        try:
            for stream in (True, False):
                raw = self.occupy(daemon, stream)
                self.assertEqual(daemon.post(TEXT, {"model": "tiny-v4", "prompt": [5]}).status, 429)
                raw.close()
                deadline = time.monotonic() + 30
                while daemon.post(TEXT, {"model": "tiny-v4", "prompt": [5], "max_tokens": 1}).status != 200:
                    self.assertLess(time.monotonic(), deadline)
        finally:
            self.assertEqual(daemon.close(), 0)

    def test_too_many_requests(self):
        daemon = Rolloutd(BIN_DIR, "--http-requests", "1")
        try:
            connection = daemon.connect()
            body = {"model": "tiny-v4", "prompt": [5], "max_tokens": 30000, "ignore_eos": True, "stream": True}
            connection.request("POST", TEXT, json.dumps(body), {"Authorization": "Bearer " + daemon.token})
            response = connection.getresponse()
            response.read(1)
            full = daemon.post(TEXT, {"model": "tiny-v4", "prompt": [5]})
            self.assertEqual((full.status, full.json()["error"]["code"]), (429, "rate_limit_exceeded"))
            self.assertIn("retry-after", full.headers)
            # Stopping under a stream cuts the answer off with an error, and ends cleanly.
            self.assertEqual(daemon.stop(), 0)
            self.assertIn(b"stopping", response.read())
        finally:
            daemon.close()


if __name__ == "__main__":
    BIN_DIR = sys.argv.pop(1)
    unittest.main()
