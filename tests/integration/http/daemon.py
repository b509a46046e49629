"""A sandboxd of its own for a test: state in a temporary directory, any free port, ended with the test."""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)


class Daemon:
    def __init__(self, bin_dir, *flags, state=None, token=None):
        self.bin_dir = bin_dir
        self.flags = flags
        self.state = state or tempfile.mkdtemp(prefix="reprise-http-")
        self.token = token or "e2b_" + secrets.token_hex(20)
        path = os.path.join(self.state, "token")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.token + "\n")
        self._start(path)

    # Its words go to a file: what it starts outlives it, and would keep a pipe open.
    def _start(self, token_path):
        log = os.path.join(self.state, "log")
        with open(log, "w") as out:
            self.process = subprocess.Popen(
                [os.path.join(self.bin_dir, "sandboxd"), "--state", self.state, "--http", "127.0.0.1:0",
                 "--token-file", token_path, "--durability", "os", *self.flags], stdout=out, stderr=out)
        while True:
            with open(log) as words:
                text = words.read()
            found = re.search(r"listens on (https?)://127\.0\.0\.1:(\d+)", text)
            if found:
                break
            if self.process.poll() is not None:
                raise RuntimeError("sandboxd did not start:\n" + text)
            time.sleep(0.01)  # between two looks
        self.address = ("127.0.0.1", int(found.group(2)))
        self.url = f"{found.group(1)}://127.0.0.1:{found.group(2)}"

    def stop(self, kill=False):
        if self.process.poll() is None:
            self.process.kill() if kill else self.process.terminate()
        return self.process.wait(timeout=60)

    def restart(self, kill=False):
        self.stop(kill)
        self._start(os.path.join(self.state, "token"))

    # Calls outlive their daemon, but not the test.
    def close(self):
        code = self.stop()
        mine = (self.state + "/").encode()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as words:
                    if mine in words.read():
                        os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass  # gone meanwhile
        shutil.rmtree(self.state, ignore_errors=True)
        return code

    # One request on a connection of its own.
    def request(self, method, path, body=None, headers=None, owner=True, timeout=120):
        all_headers = dict(headers or {})
        if owner:
            all_headers.setdefault("X-API-Key", self.token)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            all_headers.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        try:
            connection.request(method, path, body, all_headers)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    # Whether the function tier can be used on this host.
    def function_tier(self):
        reply = self.request("POST", "/run_code", {"code": "true", "language": "bash"})
        return reply.status == 200 and reply.json()["status"] == "Success"
