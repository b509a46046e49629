"""E2B's template builds over real sockets, as its SDKs ask for them, on containers."""

import hashlib
import io
import sys
import tarfile
import time
import unittest
import urllib.parse

from connect import Envd
from container_case import ContainerCase


class Templates(ContainerCase):
    def announce(self, name):
        reply = self.daemon.request("POST", "/v3/templates", {"name": name, "cpuCount": 1, "memoryMB": 512})
        self.assertEqual(reply.status, 202, reply.body)
        made = reply.json()
        return made["templateID"], made["buildID"]

    def upload(self, template, files):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o644
                tar.addfile(info, io.BytesIO(content))
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        place = self.daemon.request("GET", f"/templates/{template}/files/{digest}")
        self.assertEqual(place.status, 201, place.body)
        if not place.json()["present"]:
            path = place.json()["url"].replace(self.daemon.url, "")
            self.assertEqual(self.daemon.request("PUT", path.split("?")[0], data.getvalue(), owner=False).status, 401)
            self.assertEqual(self.daemon.request("PUT", path, data.getvalue(), owner=False).status, 200)
        return digest

    # Waits for the end of a build; its status and the lines of its log.
    def build(self, name, steps, files=None, **order):
        template, build = self.announce(name)
        hashes = {source: self.upload(template, files) for source in files or {}}
        for step in steps:
            if step["type"] == "COPY":
                step["filesHash"] = hashes.get(step["args"][0]) or next(iter(hashes.values()))
        order.setdefault("fromImage", "base")
        path = f"/v2/templates/{template}/builds/{build}"
        reply = self.daemon.request("POST", path, {"steps": steps, "force": False, **order})
        self.assertEqual((reply.status, reply.headers.get("content-length")), (202, "0"), reply.body)
        lines = []
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            status = self.daemon.request(
                "GET", f"/templates/{template}/builds/{build}/status?logsOffset={len(lines)}").json()
            lines += [entry["message"] for entry in status["logEntries"]]
            if status["status"] in ("ready", "error") and not status["logEntries"]:
                return status, lines
            time.sleep(0.05)  # as the SDK does, between two looks
        self.fail(f"the build of {name} did not end: {lines}")

    def box(self, template, **fields):
        reply = self.daemon.request("POST", "/v2/sandboxes", {"templateID": template, **fields})
        self.assertEqual(reply.status, 201, reply.body)
        made = reply.json()
        return Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])

    @staticmethod
    def step(kind, *args, **fields):
        return {"type": kind, "args": list(args), "force": False, **fields}

    def test_every_kind_of_step(self):
        step = self.step
        status, lines = self.build("all", [
            step("USER", "root"), step("WORKDIR", "/app"), step("COPY", "a.txt", "/app/", "", ""),
            step("COPY", "dir", "data", "", "0600"), step("ENV", "A", "1", "B", "x y"),
            step("RUN", "echo built by $A in $PWD > log; echo said"), step("WORKDIR", "sub"), step("USER", "user")],
            files={"a.txt": b"file", "dir/b": b"deep"})
        self.assertEqual(status["status"], "ready", lines)
        self.assertIn("said", lines)
        envd = self.box("all", envVars={"B": "mine"})
        self.assertEqual(envd.run("sh", "-c", "pwd; cd ..; cat log a.txt data/b; echo; stat -c %a data/b; echo $A $B").out,
                         b"/app/sub\nbuilt by 1 in /app\nfiledeep\n600\n1 mine\n")
        template = self.daemon.request("GET", "/templates/aliases/all").json()["templateID"]
        self.assertEqual(self.box(template).run("cat", "/app/a.txt").out, b"file")

    def test_what_was_built_is_not_built_again(self):
        run = self.step("RUN", "head -c 16 /proc/sys/kernel/random/uuid > /made")
        self.build("first", [run])
        first = self.box("first").run("cat", "/made").out
        _, lines = self.build("second", [dict(run), self.step("RUN", "echo more > /more")])
        self.assertTrue(lines[0].startswith("[CACHED 1/2] RUN"), lines)
        second = self.box("second")
        self.assertEqual(second.run("cat", "/made", "/more").out, first + b"more\n")
        self.build("third", [dict(run)], force=True)
        self.assertNotEqual(self.box("third").run("cat", "/made").out, first)
        self.build("fourth", [self.step("RUN", "cat /more > /again")], fromImage="", fromTemplate="second")
        self.assertEqual(self.box("fourth").run("cat", "/again").out, b"more\n")

    def test_a_step_that_fails(self):
        status, lines = self.build("broken", [self.step("RUN", "true"), self.step("RUN", "echo why >&2; exit 3")])
        self.assertEqual((status["status"], status["reason"]["message"], status["reason"]["step"]),
                         ("error", "step 2 failed: exit status 3", "2"))
        self.assertIn("why", lines)
        self.assertEqual(self.daemon.request("GET", "/templates/aliases/broken").status, 404)
        self.assertEqual(self.daemon.request("GET", "/sandboxes?template=broken").json(), [])

    def test_what_cannot_be(self):
        status, _ = self.build("nothing", [], fromImage="no/such")
        self.assertEqual(status["status"], "error")
        self.assertIn("image no/such is not known here", status["reason"]["message"])
        template, build = self.announce("bad")
        path = f"/v2/templates/{template}/builds/{build}"
        for body, code in (({"steps": [self.step("HEALTHCHECK", "x")], "fromImage": "base"}, 501), ({}, 400),
                           ({"steps": [self.step("ENV", "A")], "fromImage": "base"}, 400),
                           ({"fromImage": "base", "fromImageRegistry": {"type": "registry"}}, 501)):
            self.assertEqual(self.daemon.request("POST", path, body).status, code, body)
        self.assertEqual(self.daemon.request("POST", f"/v2/templates/{template}/builds/none", {}).status, 404)
        self.assertEqual(self.daemon.request("GET", f"/templates/{template}/files/../x").status, 400)
        self.assertEqual(self.daemon.request("GET", f"/templates/{template}/files/xyz").status, 400)

    def test_a_start_command_is_ready_when_the_sandbox_is(self):
        status, lines = self.build("served", [], startCmd="sleep 0.3; echo up > /tmp/up; sleep 600",
                                   readyCmd="test -e /tmp/up")
        self.assertEqual(status["status"], "ready", lines)
        self.assertEqual(self.box("served").run("cat", "/tmp/up").out, b"up\n")

    def test_templates_outlive_the_daemon(self):
        self.build("kept", [self.step("RUN", "echo 1 > /kept"), self.step("ENV", "K", "2")])
        self.daemon.restart(kill=True)
        self.assertEqual(self.box("kept").run("sh", "-c", "cat /kept; echo $K").out, b"1\n2\n")
        _, lines = self.build("kept", [self.step("RUN", "echo 1 > /kept")])
        self.assertTrue(lines[0].startswith("[CACHED 1/1]"), lines)
        self.assertEqual(self.daemon.request("DELETE", "/templates/" + urllib.parse.quote("kept")).status, 204)
        self.assertEqual(self.daemon.request("GET", "/templates/aliases/kept").status, 404)


if __name__ == "__main__":
    ContainerCase.bin_dir = sys.argv.pop(1)
    unittest.main()
