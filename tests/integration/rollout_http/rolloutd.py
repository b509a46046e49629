"""A rolloutd of its own for a test, serving the tiny model over HTTP: any free port, ended with the test."""

import http.client
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time

MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../examples/tiny-v4")


# A file of the model's directory.
def read(path):
    with open(os.path.join(MODEL, path)) as file:
        return file.read()


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


class Rolloutd:
    def __init__(self, bin_dir, *flags):
        self.bin_dir = bin_dir
        self.flags = flags
        self.state = tempfile.mkdtemp(prefix="reprise-openai-")
        self.token = secrets.token_hex(20)
        self.token_path = os.path.join(self.state, "token")
        with open(os.open(self.token_path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(self.token + "\n")
        self.start()

    def start(self, *flags):
        log = os.path.join(self.state, "log")
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [os.path.join(self.bin_dir, "rolloutd"), "--state", self.state, "--http", "127.0.0.1:0",
                 "--token-file", self.token_path, "--model", MODEL, "--thinking", "chat", "--durability", "os",
                 "--threads", "2", *self.flags, *flags], stderr=out)
        while True:
            with open(log) as words:
                text = words.read()
            found = re.search(r"listening on (http://127\.0\.0\.1:(\d+))", text)
            if found:
                break
            if self.process.poll() is not None:
                raise RuntimeError("rolloutd did not start:\n" + text)
            time.sleep(0.01)  # between two looks
        self.url = found.group(1)
        self.address = ("127.0.0.1", int(found.group(2)))

    def stop(self, kill=False):
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        return self.process.wait(timeout=60)

    def close(self):
        code = self.stop()
        shutil.rmtree(self.state, ignore_errors=True)
        return code

    def connect(self, timeout=60):
        return http.client.HTTPConnection(*self.address, timeout=timeout)

    # One request on a connection of its own.
    def request(self, method, path, body=None, headers=None, owner=True):
        all_headers = dict(headers or {})
        if owner:
            all_headers.setdefault("Authorization", "Bearer " + self.token)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        connection = self.connect()
        try:
            connection.request(method, path, body, all_headers)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def post(self, path, body, **headers):
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    # What the command says, as JSON.
    def reprise(self, *words):
        done = subprocess.run([os.path.join(self.bin_dir, "reprise"), *words, "--json", "--server",
                               f"unix:{self.state}/rolloutd.sock"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
