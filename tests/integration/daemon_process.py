"""A daemon of its own for a test: state in a temporary directory, any free port, ended with the test."""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import processes  # noqa: E402

HELPERS_END_S = 2
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    # Of a stream: the data of its events, the last of which is [DONE].
    def events(self):
        data = [line[len("data: "):] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        assert data[-1] == "[DONE]", data[-1:]
        return [json.loads(event) for event in data[:-1]]


class DaemonProcess:
    # `program` answers http(s) once it has said so in words that match `says`, the address's group.
    def __init__(self, bin_dir, program, says, flags, state=None, token=None):
        self.bin_dir = bin_dir
        self.program = program
        self.says = says
        self.flags = flags
        self.state = state or tempfile.mkdtemp(prefix=f"reprise-{program}-")
        self.token = token or "e2b_" + secrets.token_hex(20)
        self.token_path = os.path.join(self.state, "token")
        with open(os.open(self.token_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.token + "\n")
        self.start()

    # Its words go to a file: what it starts outlives it, and would keep a pipe open.
    def start(self, *flags):
        log = os.path.join(self.state, "log")
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [os.path.join(self.bin_dir, self.program), "--state", self.state, "--http", "127.0.0.1:0",
                 "--token-file", self.token_path, "--durability", "os", *self.flags, *flags], stdout=out, stderr=out)
        while True:
            with open(log) as words:
                text = words.read()
            found = re.search(self.says + r" (https?)://127\.0\.0\.1:(\d+)", text)
            if found:
                break
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.program} did not start:\n" + text)
            time.sleep(0.01)  # between two looks
        self.address = ("127.0.0.1", int(found.group(2)))
        self.url = f"{found.group(1)}://127.0.0.1:{found.group(2)}"

    def stop(self, kill=False):
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        return self.process.wait(timeout=60)

    def restart(self, kill=False):
        self.stop(kill)
        self.start()

    # Calls outlive their daemon, but not the test; what ends by itself may clean up behind itself.
    def close(self):
        code = self.stop()
        end = time.monotonic() + HELPERS_END_S
        while (helpers := processes.naming(self.state + "/")) and time.monotonic() < end:
            time.sleep(0.02)  # between two looks
        for pid in helpers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # gone meanwhile
        shutil.rmtree(self.state, ignore_errors=True)
        return code

    # Imports the root file system or archive at `path` as an image.
    def import_image(self, name, path):
        subprocess.run([os.path.join(self.bin_dir, "reprise"), "image", "import", name, path, "--server",
                        f"unix:{self.state}/sandboxd.sock"], check=True, stdout=subprocess.DEVNULL)

    # The header that shows the owner's token.
    def owner(self):
        return "Authorization", "Bearer " + self.token

    def connect(self, timeout=120):
        return http.client.HTTPConnection(*self.address, timeout=timeout)

    # One request on a connection of its own.
    def request(self, method, path, body=None, headers=None, owner=True, timeout=120):
        all_headers = dict(headers or {})
        if owner:
            all_headers.setdefault(*self.owner())
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            all_headers.setdefault("Content-Type", "application/json")
        connection = self.connect(timeout)
        try:
            connection.request(method, path, body, all_headers)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    # The metric families that /metrics declares.
    def families(self):
        return set(re.findall(r"^# TYPE (\S+) ", self.request("GET", "/metrics").body.decode(), re.MULTILINE))


# The metric families that the dashboard shows under one of its rows.
def dashboard_families(row):
    with open(os.path.join(ROOT, "docs/grafana.json")) as file:
        panels = json.load(file)["panels"]
    names, inside = set(), False
    for panel in panels:
        if panel["type"] == "row":
            inside = panel["title"] == row
        elif inside:
            for target in panel["targets"]:
                names.update(re.findall(r"reprise_[a-z0-9_]+", target["expr"]))
    assert names, row
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
