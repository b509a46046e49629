"""Connect-protocol calls as E2B's SDKs make them, by the standard library alone."""

import base64
import http.client
import json
import struct


class ConnectError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


class Envd:
    def __init__(self, daemon, sandbox_id, token):
        self.daemon = daemon
        self.headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token,
                        "Connect-Protocol-Version": "1"}

    def unary(self, service, verb, message, **headers):
        reply = self.daemon.request("POST", f"/{service}/{verb}", json.dumps(message),
                                    {**self.headers, "Content-Type": "application/json", **headers}, owner=False)
        body = json.loads(reply.body)
        if reply.status != 200:
            raise ConnectError(body["code"], body["message"])
        return body

    def process(self, verb, message):
        return self.unary("process.Process", verb, message)

    def filesystem(self, verb, **message):
        return self.unary("filesystem.Filesystem", verb, message)

    def stream(self, verb, message, **headers):
        return Stream(self, f"process.Process/{verb}", message, headers)

    def watch(self, path, recursive=False, **headers):
        return Stream(self, "filesystem.Filesystem/WatchDir", {"path": path, "recursive": recursive}, headers)

    def start(self, *argv, stdin=False, cwd=None, envs=None, tag=None, **headers):
        config = {"cmd": argv[0], "args": list(argv[1:]), "envs": envs or {}}
        if cwd is not None:
            config["cwd"] = cwd
        message = {"process": config, "stdin": stdin}
        if tag is not None:
            message["tag"] = tag
        return self.stream("Start", message, **headers)

    # stdout, stderr and the end of a command.
    def run(self, *argv, **options):
        return self.start(*argv, **options).finish()

    def files(self, method, query, body=None, **headers):
        return self.daemon.request(method, "/files?" + query, body, {**self.headers, **headers}, owner=False)


class Stream:
    def __init__(self, envd, route, message, headers):
        payload = json.dumps(message).encode()
        self.connection = http.client.HTTPConnection(*envd.daemon.address, timeout=120)
        self.connection.request("POST", "/" + route, struct.pack(">BI", 0, len(payload)) + payload,
                                {**envd.headers, "Content-Type": "application/connect+json", **headers})
        self.response = self.connection.getresponse()
        self.headers = {name.lower(): value for name, value in self.response.getheaders()}
        self.out = self.err = b""  # a terminal's output is in `out`
        self.kinds = set()  # of data that came
        self.end = self.pid = None

    # The next event; None after the last.
    def event(self):
        head = self.response.read(5)
        if len(head) < 5:
            raise EOFError("the stream was cut off")
        flags, size = struct.unpack(">BI", head)
        message = json.loads(self.response.read(size))
        if flags & 2:
            assert self.response.read() == b"", "more after the end"
            self.connection.close()
            if "error" in message:
                raise ConnectError(message["error"]["code"], message["error"]["message"])
            return None
        event = message.get("event", message)  # of a process; of a watch
        if "start" in event:
            self.pid = event["start"].get("pid")
        if "data" in event:
            self.kinds |= set(event["data"])
            self.out += base64.b64decode(event["data"].get("stdout", event["data"].get("pty", "")))
            self.err += base64.b64decode(event["data"].get("stderr", ""))
        if "end" in event:
            self.end = event["end"]
        return event

    def started(self):
        assert "start" in self.event(), "the first event is not the start"
        return self.pid

    def until(self, text):
        while text not in self.out:
            if self.event() is None:
                raise EOFError("the stream ended early")
        return self.out

    def finish(self):
        while self.event() is not None:
            pass
        return self

    def close(self):
        self.response.close()
        self.connection.close()
