"""Requests of an agent outside as trajectories: one log over all turns, branches where a prompt does not go on, retries
that decode nothing twice, a daemon killed in the middle of an answer, and the record that a trainer gets."""

import concurrent.futures
import http.client
import json
import os
import shutil
import struct
import sys
import unittest

from rolloutd import MODEL, Rolloutd, read

TOOL = json.loads(read("tool_sh.json"))
TASKS = [json.loads(line)["messages"] for line in read("tasks/test.jsonl").splitlines()]
CHAT = "/v1/chat/completions"


def chat(messages, **fields):
    return {"model": "tiny-v4", "messages": messages, "tools": [TOOL], "temperature": 1, "max_tokens": 200,
            "return_token_ids": True, "logprobs": True, "top_logprobs": 1, **fields}


# One episode as a harness runs it; the answers. `ask` posts one body.
def episode(ask, task, turns=3):
    messages, answers = list(TASKS[task]), []
    for turn in range(turns):
        answer = ask(chat(messages), turn)
        answers.append(answer)
        message = answer["choices"][0]["message"]
        messages.append(message)
        if answer["choices"][0]["finish_reason"] != "tool_calls":
            break
        for call in message["tool_calls"]:
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "42"})
    return answers


class Trajectories(unittest.TestCase):
    def setUp(self):
        self.daemon = Rolloutd(BIN_DIR)
        self.addCleanup(self.daemon.close)

    def post(self, path, body, status=200, **headers):
        reply = self.daemon.post(path, body, **headers)
        self.assertEqual(reply.status, status, reply.body)
        return reply

    def asker(self, name, **headers):
        return lambda body, turn: self.post(CHAT, body, X_Reprise_Trajectory=name, X_Request_ID=f"{name}.{turn}",
                                            **headers).json()

    def records(self, job="external"):
        return [json.loads(line) for line in self.daemon.reprise("trajectory", "export", "--job", job, "--out", "-").splitlines()]

    def test_turns_become_one_record(self):
        answers = episode(self.asker("a"), task=0)
        self.assertGreater(len(answers), 1)
        finish = self.post("/v1/trajectories/a/finish", {"reward": 0.5, "reward_components": {"style": 0.25}}).json()
        self.assertEqual(finish["records"], ["external/000000/0"])
        record, = self.records()
        self.assertEqual((record["reward"], record["status"], record["valid"]), (0.5, "completed", True))
        self.assertEqual(record["reward_components"], {"style": 0.25})
        self.assertEqual(record["task"]["key"], "a")
        # Every answer's prompt and tokens lie in the record as they were, and only answers are on the mask.
        mask = [0] * len(record["token_ids"])
        logprobs = [0.0] * len(record["token_ids"])
        for answer in answers:
            prompt, choice = answer["prompt_token_ids"], answer["choices"][0]
            ids, begin = choice["token_ids"], len(prompt)
            self.assertEqual(record["token_ids"][:begin + len(ids)], prompt + ids)
            mask[begin:begin + len(ids)] = [1] * len(ids)
            logprobs[begin:begin + len(ids)] = [one["logprob"] for one in choice["logprobs"]["content"]]
        self.assertEqual(record["loss_mask"], mask)
        for ours, theirs in zip(record["logprobs"], logprobs):
            self.assertAlmostEqual(ours, theirs, places=5)
        self.assertEqual([segment["role"] for segment in record["segments"]][:3], ["prompt", "sampled", "tool"])

    def test_retries_decode_nothing_twice(self):
        first = episode(self.asker("a"), task=1)
        decoded = json.loads(self.daemon.reprise("rollout", "show", "external"))["decoded_this_run"]
        self.assertEqual(episode(self.asker("a"), task=1), first)
        reply = self.post(CHAT, chat(TASKS[1]), X_Reprise_Trajectory="a", X_Request_ID="a.0")
        self.assertEqual(reply.headers["x-reprise-replayed"], "true")
        streamed = self.daemon.post(CHAT, chat(TASKS[1], stream=True), X_Reprise_Trajectory="a", X_Request_ID="a.0")
        self.assertEqual(streamed.status, 409)
        self.assertIn("divergence", streamed.json()["error"]["message"])
        # Over a restart too, and after the end.
        self.post("/v1/trajectories/a/finish", {"reward": 1})
        self.daemon.stop(kill=True)
        self.daemon.start()
        self.assertEqual(episode(self.asker("a"), task=1), first)
        self.assertEqual(json.loads(self.daemon.reprise("rollout", "show", "external"))["decoded_this_run"], 0)
        self.assertGreater(int(decoded), 0)
        self.post(CHAT, chat(TASKS[1]), 409, X_Reprise_Trajectory="a", X_Request_ID="new")
        self.post("/v1/trajectories/a/finish", {"reward": 1})
        self.post("/v1/trajectories/a/finish", {"reward": 0}, 409)
        self.post("/v1/trajectories/b/finish", {"reward": 0}, 404)

    def test_a_prompt_that_does_not_go_on_is_a_branch(self):
        ask = self.asker("a")
        ask(chat(TASKS[2]), 0)
        ask(chat(TASKS[3]), 1)
        self.post("/v1/trajectories/a/finish", {"reward": 1})
        records = self.records()
        self.assertEqual([(record["branch"], record["n_branches"], record["rollout_id"]) for record in records],
                         [(0, 2, "external/000000/0"), (1, 2, "external/000000/0")])
        self.assertEqual([record["reward"] for record in records], [1, 1])
        self.assertEqual(sum(role["role"] == "sampled" for role in records[1]["segments"]), 1)

    def test_groups(self):
        headers = {"X_Reprise_Group": "g", "X_Reprise_Group_Size": "3", "X_Reprise_Job": "mine"}
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda name: episode(self.asker(name, **headers), task=4), "abc"))
        self.post(CHAT, chat(TASKS[4]), 409, X_Reprise_Trajectory="d", **headers)
        for name, reward in zip("abc", (1, None, 0)):
            body = {} if reward is None else {"reward": reward}
            self.post(f"/v1/trajectories/{name}/finish", body, X_Reprise_Job="mine")
        records = self.records("mine")
        self.assertEqual({record["group_id"] for record in records}, {"mine/000000"})
        self.assertEqual(sorted(str(record["reward"]) for record in records), ["0", "1", "None"])
        # No reward is not a reward of 0.
        self.assertEqual([record["failure"]["kind"] for record in records if record["reward"] is None], ["grader"])

    def test_killed_in_the_middle_of_an_answer(self):
        expected = episode(self.asker("calm"), task=5)
        length = sum(len(answer["choices"][0]["token_ids"]) for answer in expected)
        # The same episode in another trajectory of the same seed, with the daemon killed at several tokens.
        body = chat(TASKS[5], seed=11)
        whole = self.post(CHAT, body, X_Reprise_Trajectory="whole").json()["choices"][0]
        for point in (1, 3, len(whole["token_ids"]) - 1):
            name = f"cut{point}"
            self.daemon.stop(kill=True)
            self.daemon.start("--fail-point", f"exchange.sampled:{point}")
            with self.assertRaises((http.client.HTTPException, OSError)):
                self.daemon.post(CHAT, body, X_Reprise_Trajectory=name, X_Request_ID=name)
            self.assertEqual(self.daemon.process.wait(timeout=60), -9)
            self.daemon.start()
            again = self.post(CHAT, body, X_Reprise_Trajectory=name, X_Request_ID=name).json()["choices"][0]
            self.assertEqual(again["token_ids"], whole["token_ids"])
            self.assertEqual(again["logprobs"], whole["logprobs"])
            self.post(f"/v1/trajectories/{name}/finish", {"reward": 1})
        self.assertGreater(length, 0)
        records = {record["task"]["key"]: record for record in self.records()}
        self.assertEqual(len({record["digest"] for key, record in records.items() if key.startswith("cut")}), 1)
        self.assertEqual([one["cause"] for one in records["cut3"]["resume"]], ["retry"])

    def test_weights_that_change_in_the_middle_of_an_answer(self):
        update = os.path.join(self.daemon.state, "update")
        shutil.copytree(MODEL, update)
        path = os.path.join(update, "model.safetensors")
        with open(path, "r+b") as file:  # another output matrix: the lowest bit of each value
            size = struct.unpack("<Q", file.read(8))[0]
            begin, end = json.loads(file.read(size))["head.weight"]["data_offsets"]
            file.seek(8 + size + begin)
            data = bytearray(file.read(end - begin))
            data[::2] = bytes(byte ^ 1 for byte in data[::2])
            file.seek(8 + size + begin)
            file.write(data)
        # No end of sequence: as long as it may be.
        body = chat(TASKS[0], stream=True, max_tokens=600, temperature=2, logit_bias={"1": -1000}, tools=[])
        connection = self.daemon.connect()
        self.addCleanup(connection.close)
        connection.request("POST", CHAT, json.dumps(body),
                           {"Authorization": "Bearer " + self.daemon.token, "X-Reprise-Trajectory": "a"})
        stream = connection.getresponse()
        stream.readline()  # it has begun
        for path, fields in (("/pause_generation", {}), ("/update_weights_from_disk", {"model_path": update}),
                             ("/continue_generation", {})):
            self.assertTrue(self.post(path, fields).json()["success"])
        self.assertIn(b"[DONE]", stream.read())
        self.post("/v1/trajectories/a/finish", {"reward": 1})
        record, = self.records()
        spans = record["version_spans"]
        self.assertEqual([span[0] for span in spans], [0, 1], "the answer ended before its weights changed")
        self.assertEqual((spans[0][1], spans[0][2], spans[1][2]),
                         (record["prompt_len"], spans[1][1], len(record["token_ids"])))
        at = spans[1][1]
        self.assertEqual(record["weight_switches"], [{"at_token": at, "version": 1, "kv_kept": 0}])
        # The next turn begins under the new weights, and reads everything with them.
        messages = TASKS[0] + [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
        answer = self.post(CHAT, chat(messages, max_tokens=2), X_Reprise_Trajectory="b").json()
        self.post("/v1/trajectories/b/finish", {"reward": 1})
        other = self.records()[1]
        self.assertEqual([span[0] for span in other["version_spans"]], [1])
        self.assertEqual(other["weight_switches"], [])
        self.assertEqual(other["token_ids"], answer["prompt_token_ids"] + answer["choices"][0]["token_ids"])


if __name__ == "__main__":
    BIN_DIR = sys.argv.pop(1)
    unittest.main()
