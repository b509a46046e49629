"""SGLang's /generate of rolloutd, and what watches the daemon: /metrics and the viewer's page and data."""

import concurrent.futures
import json
import re
import sys
import unittest

from rolloutd import Rolloutd, dashboard_families, read

TASK = json.loads(read("tasks/test.jsonl").splitlines()[0])["messages"]
TOOL = json.loads(read("tool_sh.json"))
GENERATE = "/generate"


# {name{labels}: value} of a scrape; every family is declared before its samples.
def scrape(text):
    values, declared = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            declared.add(line.split()[2])
        if line.startswith("#"):
            continue
        name, value = line.rsplit(" ", 1)
        family = re.sub(r"\{.*", "", name)
        assert family in declared or re.sub(r"_(bucket|sum|count)$", "", family) in declared, line
        values[name] = float(value)
    return values


class Generate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = Rolloutd(BIN_DIR)
        chat = cls.daemon.post("/v1/chat/completions", {"messages": TASK, "tools": [TOOL], "temperature": 0,
                                                        "max_tokens": 100, "return_token_ids": True}).json()
        cls.prompt, cls.ids = chat["prompt_token_ids"], chat["choices"][0]["token_ids"]

    @classmethod
    def tearDownClass(cls):
        assert cls.daemon.close() == 0

    def post(self, body, status=200, **headers):
        reply = self.daemon.post(GENERATE, body, **headers)
        self.assertEqual(reply.status, status, reply.body)
        return reply

    def test_ids_in_and_out(self):
        answer = self.post({"input_ids": self.prompt, "return_logprob": True, "top_logprobs_num": 2,
                            "sampling_params": {"temperature": 0, "max_new_tokens": 100}}).json()
        self.assertEqual(answer["output_ids"], self.ids)
        meta = answer["meta_info"]
        self.assertEqual([entry[1] for entry in meta["output_token_logprobs"]], self.ids)
        self.assertEqual(len(meta["output_top_logprobs"][0]), 2)
        self.assertEqual(meta["finish_reason"], {"type": "stop", "matched": self.ids[-1]})
        self.assertEqual((meta["prompt_tokens"], meta["completion_tokens"]), (len(self.prompt), len(self.ids)))

    def test_a_schema_of_the_answer(self):
        schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
        params = {"temperature": 2, "max_new_tokens": 60, "json_schema": json.dumps(schema)}
        value = json.loads(self.post({"input_ids": self.prompt, "sampling_params": params}).json()["text"])
        self.assertTrue(2 <= len(value) <= 4 and set(value) <= {True, False}, value)
        for more in ({"regex": "a+"}, {"json_schema": "{"}, {"json_schema": '{"format": "x"}'}):
            self.post({"input_ids": self.prompt, "sampling_params": {**params, **more}}, 400)

    def test_stream(self):
        events = self.post({"input_ids": self.prompt, "stream": True,
                            "sampling_params": {"temperature": 0, "max_new_tokens": 5}}).events()
        self.assertEqual([len(event["output_ids"]) for event in events], [1, 2, 3, 4, 5, 5])
        self.assertEqual(events[-1]["meta_info"]["finish_reason"], {"type": "length", "length": 5})

    def test_batches(self):
        answers = self.post({"input_ids": [self.prompt, self.prompt[:-1]], "sampling_params": {"max_new_tokens": 2}})
        self.assertEqual([len(answer["output_ids"]) for answer in answers.json()], [2, 2])
        answers = self.post({"text": "1 + 1", "sampling_params": {"n": 3, "max_new_tokens": 1}}).json()
        self.assertEqual(len(answers), 3)

    def test_errors(self):
        for body, field in (({}, "text"), ({"text": "a", "input_ids": [1]}, "text"), ({"input_ids": [-1]}, "input_ids"),
                            ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
                            ({"text": "a", "sampling_params": {"regex": "a"}}, "regex"),
                            ({"text": "a", "return_logprob": True, "logprob_start_len": 0}, "logprob_start_len")):
            self.assertEqual(self.post(body, 400).json()["error"]["param"], field)

    def test_a_trajectory(self):
        body = {"input_ids": self.prompt, "sampling_params": {"max_new_tokens": 4}}
        first = self.post(body, X_Reprise_Trajectory="g", X_Request_ID="g0").json()
        self.assertEqual(self.post(body, X_Reprise_Trajectory="g", X_Request_ID="g0").json()["output_ids"],
                         first["output_ids"])
        second = {**body, "input_ids": self.prompt + first["output_ids"] + [5, 6]}
        self.post(second, X_Reprise_Trajectory="g")
        self.daemon.post("/v1/trajectories/g/finish", {"reward": 1})
        record = self.daemon.request("GET", "/v1/jobs/external/000000/0").json()
        self.assertEqual([segment["role"] for segment in record["segments"]], ["prompt", "sampled", "tool", "sampled"])
        self.assertEqual((record["reward"], record["status"]), (1, "completed"))
        sampled = record["segments"][1]
        self.assertEqual(sampled["ids"], first["output_ids"])
        self.assertTrue(len(sampled["texts"]) == len(sampled["logprobs"]) == len(sampled["ids"]))

    def test_pause_and_continue(self):
        body = {"input_ids": self.prompt, "sampling_params": {"max_new_tokens": 3}}
        self.assertTrue(self.daemon.post("/pause_generation", {}).json()["success"])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waits = pool.submit(self.post, body)
            model = '{model_name="tiny-v4"}'
            while scrape(self.daemon.request("GET", "/metrics").body.decode())["reprise_num_requests_waiting" + model] < 1:
                pass
            self.assertFalse(waits.done())
            self.assertTrue(self.daemon.post("/continue_generation", {}).json()["success"])
            self.assertEqual(len(waits.result(timeout=60).json()["output_ids"]), 3)

    def test_weights(self):
        refused = self.daemon.post("/update_weights_from_disk", {"model_path": "/nowhere"})
        self.assertFalse(refused.json()["success"])
        self.assertEqual(self.daemon.post("/update_weights_from_disk", {"model_path": "here"}).status, 400)
        self.assertEqual(self.daemon.request("GET", "/get_model_info").json()["weight_version"], "0")
        answer = self.post({"input_ids": self.prompt, "sampling_params": {"max_new_tokens": 1}}).json()
        self.assertEqual(answer["meta_info"]["weight_version"], "0")

    def test_health_and_info(self):
        self.assertEqual(self.daemon.request("GET", "/health", owner=False).status, 200)
        self.assertTrue(self.daemon.request("GET", "/get_model_info").json()["is_generation"])

    def test_metrics(self):
        before = scrape(self.daemon.request("GET", "/metrics").body.decode())
        self.post({"input_ids": self.prompt, "sampling_params": {"max_new_tokens": 7, "ignore_eos": True}})
        reply = self.daemon.request("GET", "/metrics")
        self.assertTrue(reply.headers["content-type"].startswith("text/plain; version=0.0.4"))
        after = scrape(reply.body.decode())
        model = '{model_name="tiny-v4"}'

        def rise(name):
            return after[name] - before.get(name, 0)

        self.assertEqual(rise("reprise_generation_tokens_total" + model), 7)
        self.assertEqual(rise("reprise_request_generation_tokens_total"), 7)
        self.assertEqual(rise("reprise_request_prompt_tokens_total"), len(self.prompt))
        self.assertEqual(rise('reprise_request_success_total{finished_reason="length"}'), 1)
        self.assertEqual(rise("reprise_time_to_first_token_seconds_count"), 1)
        self.assertEqual(rise("reprise_inter_token_latency_seconds_count"), 6)
        self.assertEqual(rise('reprise_e2e_request_latency_seconds_bucket{le="+Inf"}'), 1)
        self.assertGreater(rise("reprise_engine_steps_total" + model), 6)
        # A request is counted out between two steps, after its answer.
        for _ in range(1000):
            if after["reprise_num_requests_running" + model] == 0:
                break
            after = scrape(self.daemon.request("GET", "/metrics").body.decode())
        self.assertEqual(after["reprise_num_requests_running" + model], 0)
        self.assertEqual(self.daemon.request("GET", "/metrics", owner=False).status, 401)
        self.assertEqual(dashboard_families("Rollout daemon") - self.daemon.families(), set())

    def test_viewer(self):
        page = self.daemon.request("GET", "/", owner=False)
        self.assertEqual(page.status, 200)
        self.assertIn("default-src 'none'", page.headers["content-security-policy"])
        self.assertEqual(page.body, read("../../clients/web/viewer.html").encode())
        self.assertEqual(self.daemon.request("GET", "/v1/jobs", owner=False).status, 401)
        self.daemon.post("/v1/completions", {"prompt": [7], "max_tokens": 2}, **{"X-Reprise-Trajectory": "v",
                                                                                 "X-Reprise-Job": "seen"})
        job, = [job for job in self.daemon.request("GET", "/v1/jobs").json() if job["id"] == "seen"]
        self.assertEqual((job["trajectories"], job["sealed"], job["external"]), (1, 0, True))
        row, = self.daemon.request("GET", "/v1/jobs/seen/trajectories").json()
        self.assertEqual((row["records"], row["sampled"], row["reward"]), (["seen/000000/0"], 2, None))
        self.assertEqual(self.daemon.request("GET", "/v1/jobs/none/trajectories").status, 404)


if __name__ == "__main__":
    BIN_DIR = sys.argv.pop(1)
    unittest.main()
