"""The web viewer in a headless browser: jobs, groups, a trajectory turn by turn, search, keys, two branches side by side, and
a job that goes on while it is looked at. What it shows is compared with the exported records."""

import itertools
import json
import os
import sys
import tempfile
import unittest

from browser import PROGRAM, Browser
from rolloutd import MODEL, DaemonProcess, Rolloutd, read

TASKS = [json.loads(line)["messages"] for line in read("tasks/test.jsonl").splitlines()]
JOB = f"""
id = "seen"
model = "{MODEL}"
tasks = "{MODEL}/tasks/train.jsonl"
limit = 8
group_size = 2
seed = 1
thinking = "chat"
[limits]
max_tokens = 512
max_turns = 8
[sandbox]
tier = "function"
[[tools]]
definition = "{MODEL}/tool_sh.json"
command = ["/bin/sh", "-c", "{{command}}"]
"""
END_OF_THINKING = next(token["id"] for token in json.loads(read("tokenizer.json"))["added_tokens"]
                       if token["content"] == "</think>")
# The buttons below the headings of groups.
ROWS = "[...document.querySelectorAll('#list h2 ~ h2 ~ button')]"


@unittest.skipUnless(PROGRAM, "no Chromium: apt-get install chromium-headless-shell")
class Viewer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.state = tempfile.TemporaryDirectory(prefix="reprise-viewer-")
        cls.addClassCleanup(cls.state.cleanup)
        cls.sandboxd = DaemonProcess(BIN_DIR, "sandboxd", "listens on", ())
        cls.addClassCleanup(cls.sandboxd.close)
        cls.daemon = Rolloutd(BIN_DIR, "--sandboxd", f"unix:{cls.sandboxd.state}/sandboxd.sock")
        cls.addClassCleanup(cls.daemon.close)
        job, out = os.path.join(cls.state.name, "job.toml"), os.path.join(cls.state.name, "out")
        with open(job, "w") as file:
            file.write(JOB)
        cls.daemon.reprise("rollout", "run", job, "--out", out)
        with open(os.path.join(out, "trajectories.jsonl")) as file:
            cls.records = {record["rollout_id"]: record for record in map(json.loads, file)}
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.browser.errors.clear()
        self.browser.open("about:blank")
        self.browser.open(self.daemon.url + "/#seen")
        if self.browser.value("!sessionStorage.token"):
            self.browser.wait_for("document.getElementById('login').open")
            self.browser.value("document.getElementById('token').focus()")
            self.browser.type(self.daemon.token)
            self.browser.press("Enter")
            self.browser.errors.clear()  # of the request without a token
        self.browser.wait_for("document.getElementById('said').innerText === '16 of 16 trajectories'")

    # Keeps a picture where one is wanted: of this moment, or of a case's end.
    def shoot(self):
        path = os.path.join(SHOTS, self.id().rsplit(".", 1)[-1] + ".png")
        if SHOTS and not os.path.exists(path):
            os.makedirs(SHOTS, exist_ok=True)
            self.browser.screenshot(path)

    def tearDown(self):
        self.shoot()
        self.assertEqual(self.browser.errors, [])

    # Chooses what the list calls `name`, and waits until it is shown.
    def choose(self, name):
        self.browser.value(f"{ROWS}.find((row) => row.innerText.startsWith({json.dumps(name)})).click()")
        self.browser.wait_for(f"[...document.querySelectorAll('#shown h2')].some((one) => one.innerText.includes({json.dumps(name)}))")

    # Chooses a job that the list may not show yet.
    def open_job(self, name, trajectories):
        button = f"[...document.querySelectorAll('#list button')].find((one) => one.innerText.startsWith('{name}'))"
        self.browser.wait_for(f"!!{button}")
        self.browser.value(button + ".click()")
        self.browser.wait_for(f"document.getElementById('said').innerText === '{trajectories} of {trajectories} trajectories'")

    def test_a_trajectory_turn_by_turn(self):
        record = next(record for record in self.records.values() if record["tool_calls"])
        self.choose(record["rollout_id"].split("/", 1)[1])
        roles = self.browser.value("[...document.querySelectorAll('#shown section')].map((one) => one.dataset.role)")
        self.assertEqual(roles, [segment["role"] for segment in record["segments"]])
        self.assertEqual(self.browser.count("#shown .token"), sum(record["loss_mask"]))
        self.assertEqual(self.browser.count("#shown .call"), len(record["tool_calls"]))
        self.assertIn("exit code", self.browser.text("#shown .call"))
        # Each token's colour and words are of its own log-probability and weights.
        at = record["loss_mask"].index(1)
        title = self.browser.value("document.querySelector('#shown .token').title")
        self.assertIn(f"token {record['token_ids'][at]} at {at}\nlog-probability {record['logprobs'][at]:.4f}", title)
        self.assertIn("weights 0", title)
        worst = min(record["logprobs"])
        colours = self.browser.value("[...document.querySelectorAll('#shown .token')].map((one) => "
                                     "[one.title.match(/probability (\\S+)/)[1], one.style.background])")
        strength = {float(logprob): float(colour.rsplit(" ", 1)[-1].rstrip(")")) if "/" in colour else
                    float(colour.rsplit(",", 1)[-1].rstrip(")")) for logprob, colour in colours}
        self.assertEqual(max(strength, key=strength.get), float(f"{worst:.4f}"))
        self.assertIn("<", self.browser.text("#shown pre"))  # the prompt as it is, not as markup
        self.assertIn(f"seed {record['seed']}", self.browser.text("#shown"))

    def test_search_and_keys(self):
        for _ in range(3):
            self.browser.press("j")
        # The row with that number is chosen, and its trajectory shown.
        at = "(([...rows], at) => rows[at].getAttribute('aria-current') === 'true' && !!document.querySelector('#shown h2')" \
             "?.innerText.includes(rows[at].innerText.split(' ')[0]))"
        self.browser.wait_for(f"{at}({ROWS}, 2)")
        self.browser.press("k")
        self.browser.wait_for(f"{at}({ROWS}, 1)")
        self.browser.press("/")
        self.assertEqual(self.browser.value("document.activeElement.id"), "search")
        wanted = list(self.records.values())[-1]
        self.browser.type(wanted["group_id"].split("/")[-1])
        expected = sum(record["group_id"] == wanted["group_id"] for record in self.records.values())
        self.browser.wait_for(f"document.getElementById('said').innerText === '{expected} of 16 trajectories'")
        self.assertEqual(self.browser.value(f"{ROWS}.length"), expected)

    def test_two_trajectories_side_by_side(self):
        pairs = list(itertools.combinations(self.records.values(), 2))
        first, second = next(pair for pair in pairs if pair[0]["token_ids"] != pair[1]["token_ids"]
                             and pair[0]["group_id"] == pair[1]["group_id"])
        ids = first["token_ids"], second["token_ids"]
        parts = next((at for at, (a, b) in enumerate(zip(*ids)) if a != b), min(map(len, ids)))
        self.choose(first["rollout_id"].split("/", 1)[1])
        self.browser.press("c")
        self.choose(second["rollout_id"].split("/", 1)[1])
        self.assertIn(f"the same up to token {parts}", self.browser.text("#shown .shared summary"))
        columns = self.browser.value("[...document.querySelectorAll('#shown .beside > div')].map((one) => one.querySelectorAll('.token').length)")
        self.assertEqual(columns, [sum(record["loss_mask"][parts:]) for record in (first, second)])
        self.shoot()
        self.browser.press("c")
        self.browser.wait_for("!document.querySelector('#shown .beside')")

    def test_thinking_is_folded_until_it_is_wanted(self):
        headers = {"X_Reprise_Job": "thinks", "X_Reprise_Trajectory": "t"}
        body = {"prompt": [3, 4, 5], "temperature": 2, "seed": 1, "max_tokens": 200, "logit_bias": {str(END_OF_THINKING): 10},
                "return_token_ids": True}
        ids = self.daemon.post("/v1/completions", body, **headers).json()["choices"][0]["token_ids"]
        close = ids.index(END_OF_THINKING)
        self.assertGreater(close, 0, "choose another seed")
        self.open_job("thinks", 1)
        self.choose("000000/0")
        self.assertEqual(self.browser.text(".thinking summary"), f"thinking, {close} tokens")
        self.assertEqual(self.browser.count(".token"), len(ids) - 1)
        self.assertFalse(self.browser.value("document.querySelector('.thinking').open"))
        self.browser.press("t")
        self.assertTrue(self.browser.value("document.querySelector('.thinking').open"))
        self.browser.press("t")

    def test_a_job_goes_on_while_it_is_looked_at(self):
        headers = {"X_Reprise_Job": "live", "X_Reprise_Trajectory": "a"}
        body = {"messages": TASKS[0], "max_tokens": 4}
        self.assertEqual(self.daemon.post("/v1/chat/completions", body, **headers).status, 200)
        self.open_job("live", 1)
        headers["X_Reprise_Trajectory"] = "b"
        self.assertEqual(self.daemon.post("/v1/chat/completions", body, **headers).status, 200)
        self.browser.wait_for("document.getElementById('said').innerText === '2 of 2 trajectories'")

    def test_speaks_up_when_the_daemon_is_gone(self):
        self.browser.value("fetch = () => Promise.reject(new Error('connection refused'))")
        self.browser.wait_for("document.getElementById('said').innerText.includes('connection refused')")
        self.browser.errors.clear()


if __name__ == "__main__":
    BIN_DIR = sys.argv.pop(1)
    SHOTS = os.environ.get("REPRISE_SCREENSHOTS", "")  # a directory that keeps one picture a case
    unittest.main()
