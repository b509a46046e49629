"""E2B's control plane and envd over real sockets: on the function tier (processes), and on containers (files)."""

import base64
import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
import unittest
import urllib.parse

from connect import ConnectError, Envd
from container_case import ContainerCase
from daemon import Daemon
from function_case import FunctionCase

BIN_DIR = None


class Lifecycle(FunctionCase):
    def box(self, **fields):
        made = self.daemon.create("any@function", **fields)
        return made["sandboxID"], Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])

    def test_both_create_paths_and_what_they_answer(self):
        for path, seconds in (("/v2/sandboxes", 300), ("/sandboxes", 15)):
            made = self.daemon.create("any@function", path, metadata={"a": "b"}, unknownField=1,
                                      allow_internet_access=True, network={"denyOut": ["0.0.0.0/0"]})
            self.assertEqual(made["templateID"], "any@function")
            info = self.daemon.request("GET", f"/sandboxes/{made['sandboxID']}").json()
            self.assertEqual((info["state"], info["metadata"]), ("running", {"a": "b"}))
            started, ends = (time.strptime(info[k][:19], "%Y-%m-%dT%H:%M:%S") for k in ("startedAt", "endAt"))
            self.assertAlmostEqual(time.mktime(ends) - time.mktime(started), seconds, delta=3)

    def test_what_cannot_be_done_is_refused(self):
        for fields, status in (({"network": {"egressProxy": {"url": "x"}}}, 501), ({"network": {"allowOut": ["a b"]}}, 400),
                               ({"network": {"allowOut": "1.1.1.1"}}, 400), ({"volumeMounts": [{"name": "x"}]}, 501),
                               ({"timeout": 86401}, 400), ({"timeout": -1}, 400), ({"metadata": {"a": 1}}, 400),
                               ({"metadata": {"reprise.tier": "cloud"}}, 400)):
            reply = self.daemon.request("POST", "/v2/sandboxes", {"templateID": "any@function", **fields})
            self.assertEqual((reply.status, reply.json()["code"]), (status, status), fields)
        reply = self.daemon.request("POST", "/v2/sandboxes", {"templateID": "base"})
        self.assertEqual(reply.status, 501, reply.body)
        self.assertEqual(self.daemon.request("POST", "/v2/sandboxes", {}).status, 400)
        self.assertEqual(self.daemon.request("POST", "/v2/sandboxes", "[").status, 400)
        sandbox_id, _ = self.box()
        for verb in ("fork", "snapshots"):
            self.assertEqual(self.daemon.request("POST", f"/sandboxes/{sandbox_id}/{verb}", {}).status, 501)

    def test_network_rules_are_kept_and_replaced(self):
        all_traffic = "0.0.0.0/0"
        fields = {"templateID": "any@function", "allow_internet_access": True,
                  "network": {"allowOut": ["1.1.1.1"], "denyOut": [all_traffic, "::/0"]}}
        made = self.daemon.request("POST", "/v2/sandboxes", fields)
        if made.status == 501:
            self.skipTest(made.json()["message"])
        path = f"/sandboxes/{made.json()['sandboxID']}"
        network = lambda: self.daemon.request("GET", path).json()["network"]
        self.assertEqual(network(), {"allowOut": ["1.1.1.1"], "denyOut": [all_traffic]})
        change = lambda body: self.daemon.request("PUT", path + "/network", body).status
        self.assertEqual(change({"allowOut": ["*.example.org", "8.8.8.0/24:53/udp"]}), 204)
        self.assertEqual(network()["allowOut"], ["*.example.org", "8.8.8.0/24:53/udp"])
        self.assertEqual(change({"allowOut": ["127.0.0.1"]}), 400)
        self.assertEqual(network()["allowOut"], ["*.example.org", "8.8.8.0/24:53/udp"])
        self.assertEqual(change({"denyOut": [all_traffic]}), 204)
        self.assertEqual(network(), {"allowOut": [], "denyOut": [all_traffic]})  # without --e2b-internet
        self.assertEqual(self.daemon.request("PUT", "/sandboxes/none/network", {}).status, 404)

    def test_list_with_filters_and_pages(self):
        ids = [self.box(metadata={"group": "pages", "n": str(i)})[0] for i in range(5)]
        query = "/v2/sandboxes?state=running&metadata=" + urllib.parse.quote("group=pages")
        seen, token = [], ""
        while True:
            reply = self.daemon.request("GET", f"{query}&limit=2&nextToken={urllib.parse.quote(token)}")
            seen += [box["sandboxID"] for box in reply.json()]
            token = reply.headers.get("x-next-token", "")
            if not token:
                break
            self.assertEqual(len(reply.json()), 2)
        self.assertEqual(seen, ids[::-1])
        self.assertEqual(self.daemon.request("GET", query + "%26n%3D3").json()[0]["sandboxID"], ids[3])
        self.assertEqual(self.daemon.request("GET", query.replace("running", "paused")).json(), [])

    def test_delete_and_what_is_gone(self):
        sandbox_id, envd = self.box()
        self.assertEqual(envd.daemon.request("GET", "/health", headers=envd.headers, owner=False).status, 204)
        self.assertEqual(self.daemon.request("DELETE", f"/sandboxes/{sandbox_id}").status, 204)
        self.assertEqual(self.daemon.request("DELETE", f"/sandboxes/{sandbox_id}").status, 404)
        self.assertEqual(self.daemon.request("GET", f"/sandboxes/{sandbox_id}").status, 404)
        for method, path in (("GET", "/health"), ("GET", "/files?path=a")):
            reply = self.daemon.request(method, path, headers=envd.headers, owner=False)
            self.assertEqual((reply.status, reply.json()),
                             (502, {"sandboxId": sandbox_id, "message": "The sandbox was not found", "code": 502}))
        stream = envd.start("true")
        self.assertEqual(stream.response.status, 502)
        stream.close()

    def test_a_sandbox_ends_in_time(self):
        sandbox_id, envd = self.box(timeout=86400)
        running = envd.start("sleep", "600")
        running.started()
        self.assertEqual(self.daemon.request("POST", f"/sandboxes/{sandbox_id}/timeout", {"timeout": 1}).status, 204)
        running.finish()  # the end of the sandbox ends the command
        self.assertFalse(running.end["exited"])
        deadline = time.monotonic() + 60
        while self.daemon.request("GET", f"/sandboxes/{sandbox_id}").status != 404:
            self.assertLess(time.monotonic(), deadline)

    def test_who_may(self):
        sandbox_id, envd = self.box()
        _, other = self.box()
        for headers in ({}, {"X-API-Key": "e2b_00"}, {"Authorization": "Bearer x"}):
            reply = self.daemon.request("GET", f"/sandboxes/{sandbox_id}", headers=headers, owner=False)
            self.assertEqual(reply.status, 401)
        envd.headers["X-Access-Token"] = other.headers["X-Access-Token"]
        stream = envd.start("true")
        self.assertEqual(stream.response.status, 401)
        stream.close()
        reply = self.daemon.request("GET", f"/sandboxes/{sandbox_id}",
                                    headers={"Authorization": f"Bearer {self.daemon.token}"}, owner=False)
        self.assertEqual(reply.status, 200)

    def test_commands(self):
        _, envd = self.box(envVars={"A": "sandbox", "B": "sandbox"})
        done = envd.run("/bin/bash", "-l", "-c", "echo $A $B; echo err >&2; exit 3", envs={"A": "call"})
        self.assertEqual((done.out, done.err), (b"call sandbox\n", b"err\n"))
        self.assertEqual(done.end, {"exitCode": 3, "exited": True, "status": "exit status 3"})
        done = envd.run("sh", "-c", "kill -SEGV $$")
        self.assertEqual((done.end["exitCode"], done.end["exited"], done.end["status"]), (-1, False, "signal: SEGV"))
        big = envd.run("sh", "-c", "head -c 3000000 /dev/zero")
        self.assertEqual(len(big.out), 3000000)

    def test_time_limit_of_a_command(self):
        _, envd = self.box()
        stream = envd.start("sleep", "600", **{"Connect-Timeout-Ms": "300"})
        with self.assertRaises(ConnectError) as caught:
            stream.finish()
        self.assertEqual(caught.exception.code, "deadline_exceeded")

    def test_standard_input_and_signals(self):
        _, envd = self.box()
        cat = envd.start("cat", stdin=True, tag="kitty")
        pid = cat.started()
        envd.process("SendInput", {"process": {"pid": pid}, "input": {"stdin": base64.b64encode(b"one ").decode()}})
        cat.until(b"one ")
        envd.process("SendInput", {"process": {"tag": "kitty"}, "input": {"stdin": "dHdv"}})
        envd.process("CloseStdin", {"process": {"pid": pid}})
        self.assertEqual((cat.finish().out, cat.end["exitCode"]), (b"one two", 0))
        sleeper = envd.start("sleep", "600")
        pid = sleeper.started()
        self.assertIn(pid, [p["pid"] for p in envd.process("List", {})["processes"]])
        envd.process("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
        self.assertEqual(sleeper.finish().end["status"], "signal: KILL")
        self.assertEqual(envd.process("List", {})["processes"], [])
        for number in (pid, 999):
            with self.assertRaises(ConnectError) as caught:
                envd.process("SendSignal", {"process": {"pid": number}, "signal": "SIGNAL_SIGKILL"})
            self.assertEqual(caught.exception.code, "not_found")

    def test_a_terminal(self):
        _, envd = self.box()
        shell = envd.stream("Start", {"process": {"cmd": "sh", "args": ["-i"], "envs": {"TERM": "vt100", "PS1": "$ "}},
                                      "pty": {"size": {"cols": 100, "rows": 30}}})
        pid = shell.started()

        def type_in(keys):
            envd.process("SendInput", {"process": {"pid": pid}, "input": {"pty": base64.b64encode(keys).decode()}})
        type_in(b"stty size; tty; echo $TERM\n")
        shell.until(b"30 100\r\n/dev/pts/0\r\nvt100\r\n")
        envd.process("Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 120, "rows": 40}}})
        type_in(b"stty size\n")
        shell.until(b"40 120\r\n")
        shell.close()
        again = envd.stream("Connect", {"process": {"pid": pid}})
        again.until(b"40 120\r\n")
        type_in(b"sh -c 'echo u\"p\"; exec sleep 600'\n")
        again.until(b"up\r\n")
        type_in(b"\x03")
        type_in(b"exit $?\n")
        again.finish()
        self.assertEqual((again.end["exitCode"], again.err), (130, b""))
        self.assertEqual(again.kinds, {"pty"})

    def test_a_client_that_goes_comes_back_to_all_output(self):
        _, envd = self.box()
        first = envd.start("sh", "-c", "echo before; cat; echo after", stdin=True)
        pid = first.started()
        first.until(b"before\n")
        first.close()
        again = envd.stream("Connect", {"process": {"pid": pid}})
        again.until(b"before\n")
        envd.process("CloseStdin", {"process": {"pid": pid}})
        self.assertEqual((again.finish().out, again.end["exitCode"]), (b"before\nafter\n", 0))
        late = envd.stream("Connect", {"process": {"pid": pid}}).finish()
        self.assertEqual((late.out, late.end["exitCode"]), (b"before\nafter\n", 0))
        with self.assertRaises(ConnectError) as caught:
            envd.stream("Connect", {"process": {"pid": 12345}}).finish()
        self.assertEqual(caught.exception.code, "not_found")

    def test_keep_alive_events(self):
        _, envd = self.box()
        stream = envd.start("cat", stdin=True, **{"Keepalive-Ping-Interval": "1"})
        pid = stream.started()
        self.assertEqual(stream.event(), {"keepalive": {}})
        envd.process("CloseStdin", {"process": {"pid": pid}})
        stream.finish()

    def test_a_retry_with_its_key_is_one_process(self):
        _, envd = self.box()
        first = envd.run("sh", "-c", "date +%N", **{"Idempotency-Key": "k"})
        again = envd.run("sh", "-c", "date +%N", **{"Idempotency-Key": "k"})
        self.assertEqual((first.out, first.pid), (again.out, again.pid))
        with self.assertRaises(ConnectError) as caught:
            envd.run("true", **{"Idempotency-Key": "k"})
        self.assertEqual(caught.exception.code, "failed_precondition")

    def test_replay_of_a_trajectory(self):
        def begin():
            return self.box(metadata={"reprise.trajectory": "job/0/1"})
        sandbox_id, envd = begin()
        first = [envd.run("sh", "-c", f"echo {i}; date +%N") for i in range(3)]
        self.assertNotIn("x-reprise-replayed", first[0].headers)
        again_id, envd = begin()
        self.assertEqual(again_id, sandbox_id)
        for i in range(3):
            again = envd.run("sh", "-c", f"echo {i}; date +%N")
            self.assertEqual((again.out, again.pid), (first[i].out, i + 1))
            self.assertEqual(again.headers["x-reprise-replayed"], "true")
        self.assertNotIn("x-reprise-replayed", envd.run("echo", "new").headers)
        _, envd = begin()
        with self.assertRaises(ConnectError) as caught:
            envd.run("echo", "another")
        self.assertEqual(caught.exception.code, "failed_precondition")
        self.assertIn("divergence", str(caught.exception))
        self.daemon.request("DELETE", f"/sandboxes/{sandbox_id}")
        _, envd = begin()  # it has ended: its calls are replayed all the same, and nothing runs
        self.assertEqual(envd.run("sh", "-c", "echo 0; date +%N").out, first[0].out)
        for i in range(1, 3):
            envd.run("sh", "-c", f"echo {i}; date +%N")
        envd.run("echo", "new")
        stream = envd.start("echo", "newer")
        self.assertEqual(stream.response.status, 502)
        stream.close()

    def test_what_the_protocol_refuses(self):
        _, envd = self.box()
        reply = self.daemon.request("POST", "/process.Process/Start", b"{}",
                                    {**envd.headers, "Content-Type": "application/json"}, owner=False)
        self.assertEqual(reply.status, 415)
        for body in (b"", b"\0\0\0\0\5{}", b"\1\0\0\0\2{}", b"\0\0\0\0\1{"):
            reply = self.daemon.request("POST", "/process.Process/Start", body,
                                        {**envd.headers, "Content-Type": "application/connect+json"}, owner=False)
            self.assertEqual((reply.status, reply.body[0]), (200, 2), body)
            self.assertIn("error", json.loads(reply.body[5:]))
        with self.assertRaises(ConnectError) as caught:
            envd.stream("Start", {"process": {"cmd": "bash"}, "pty": {"size": {"cols": 1, "rows": 65536}}}).finish()
        self.assertEqual(caught.exception.code, "invalid_argument")
        sleeper = envd.start("sleep", "600")
        pid = sleeper.started()
        with self.assertRaises(ConnectError) as caught:
            envd.process("Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 9, "rows": 9}}})
        self.assertEqual(caught.exception.code, "invalid_argument")
        envd.process("SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
        sleeper.finish()
        with self.assertRaises(ConnectError) as caught:
            envd.filesystem("Stat", path="/etc")
        self.assertEqual(caught.exception.code, "unimplemented")

    def test_metrics_and_logs(self):
        sandbox_id, envd = self.box()
        envd.run("echo", "hello")
        metrics = self.daemon.request("GET", f"/sandboxes/{sandbox_id}/metrics").json()
        self.assertGreater(metrics[0]["memTotal"], 0)
        for path in (f"/sandboxes/{sandbox_id}/logs", f"/v2/sandboxes/{sandbox_id}/logs"):
            lines = self.daemon.request("GET", path).json()["logs"]
            self.assertIn("echo hello -> OUTCOME_EXITED 0", lines[0]["line"])


class Restart(unittest.TestCase):
    def test_numbers_leases_and_running_commands_outlive_the_daemon(self):
        daemon = Daemon(BIN_DIR, "--containerd", "")
        try:
            if not daemon.function_tier():
                self.skipTest("the function tier is not usable on this host")
            made = daemon.create("any@function", timeout=3600)
            envd = Envd(daemon, made["sandboxID"], made["envdAccessToken"])
            envd.run("true")
            running = envd.start("sh", "-c", "echo begun; cat; echo ended", stdin=True)
            pid = running.started()
            running.until(b"begun\n")
            before = daemon.request("GET", f"/sandboxes/{made['sandboxID']}").json()
            daemon.restart(kill=True)
            self.assertEqual(daemon.request("GET", f"/sandboxes/{made['sandboxID']}").json(), before)
            again = envd.stream("Connect", {"process": {"pid": pid}})
            again.until(b"begun\n")
            envd.process("CloseStdin", {"process": {"pid": pid}})
            self.assertEqual((again.finish().out, again.end["exitCode"]), (b"begun\nended\n", 0))
            self.assertGreater(envd.run("true").pid, pid)
            daemon.request("POST", f"/sandboxes/{made['sandboxID']}/timeout", {"timeout": 0})
            daemon.restart()
            deadline = time.monotonic() + 60
            while daemon.request("GET", f"/sandboxes/{made['sandboxID']}").status != 404:
                self.assertLess(time.monotonic(), deadline)
        finally:
            daemon.close()


class Containers(ContainerCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        made = cls.daemon.create("base")
        cls.sandbox_id = made["sandboxID"]
        cls.token = made["envdAccessToken"]
        cls.envd = Envd(cls.daemon, cls.sandbox_id, cls.token)

    def upload(self, query, parts, **headers):
        body = b"".join(b"--BB\r\nContent-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\n\r\n%s\r\n" %
                        (name.encode(), content) for name, content in parts) + b"--BB--\r\n"
        return self.envd.files("POST", query, body, **{"Content-Type": "multipart/form-data; boundary=BB", **headers})

    def test_files_out_and_in(self):
        reply = self.upload("path=a.txt", [("ignored", b"hello")])
        self.assertEqual((reply.status, reply.json()),
                         (200, [{"path": "/work/a.txt", "name": "a.txt", "type": "file"}]))
        self.assertEqual(self.envd.files("GET", "path=a.txt").body, b"hello")
        reply = self.upload("", [("deep/er/b", b"1"), ("/tmp/c", b""), ("ü name", b"\r\n--B\0")])
        self.assertEqual([entry["path"] for entry in reply.json()], ["/work/deep/er/b", "/tmp/c", "/work/ü name"])
        self.assertEqual(self.envd.files("GET", "path=/tmp/c").body, b"")
        self.assertEqual(self.envd.files("GET", "path=%C3%BC%20name").body, b"\r\n--B\0")
        big = os.urandom(5 << 20)
        reply = self.envd.files("POST", "path=/tmp/big", big, **{"Content-Type": "application/octet-stream"})
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.envd.files("GET", "path=/tmp/big").body, big)
        digest = hashlib.sha256(big).hexdigest().encode()
        self.assertIn(digest, self.envd.run("sha256sum", "/tmp/big").out)

    def test_parts_of_files(self):
        self.upload("path=/tmp/digits", [("x", b"0123456789")])
        self.envd.run("ln", "-s", "digits", "/tmp/to-digits")
        for path in ("/tmp/digits", "/tmp/to-digits"):
            for asked, status, body, told in (
                    ("bytes=2-4", 206, b"234", "bytes 2-4/10"), ("bytes=8-", 206, b"89", "bytes 8-9/10"),
                    ("bytes=-3", 206, b"789", "bytes 7-9/10"), ("bytes=9-99", 206, b"9", "bytes 9-9/10"),
                    ("bytes=1-2,4-5", 200, b"0123456789", None), ("bytes=4-1", 200, b"0123456789", None)):
                reply = self.envd.files("GET", "path=" + path, Range=asked)
                self.assertEqual((reply.status, reply.body, reply.headers.get("content-range")), (status, body, told), asked)
                self.assertEqual(reply.headers["accept-ranges"], "bytes")
            reply = self.envd.files("GET", "path=" + path, Range="bytes=10-")
            self.assertEqual((reply.status, reply.headers["content-range"]), (416, "bytes */10"))
        reply = self.envd.files("GET", "path=/tmp/digits", **{"Range": "bytes=2-4", "If-Range": '"x"'})
        self.assertEqual((reply.status, reply.body), (200, b"0123456789"))
        self.assertEqual(self.envd.files("GET", "path=/no/such", Range="bytes=0-1").status, 404)
        big = os.urandom(3 << 20)
        self.envd.files("POST", "path=/tmp/large", big, **{"Content-Type": "application/octet-stream"})
        reply = self.envd.files("GET", "path=/tmp/large", Range=f"bytes={1 << 20}-{(2 << 20) + 7}")
        self.assertTrue(reply.body == big[1 << 20:(2 << 20) + 8])

    def test_gzip(self):
        big = os.urandom(1 << 20) + b"x" * (4 << 20)
        octets = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
        self.assertEqual(self.envd.files("POST", "path=/tmp/zipped", gzip.compress(big), **octets).status, 200)
        self.assertTrue(self.envd.files("GET", "path=/tmp/zipped").body == big)
        reply = self.envd.files("GET", "path=/tmp/zipped", **{"Accept-Encoding": "gzip, br"})
        self.assertEqual((reply.headers["content-encoding"], reply.headers["vary"]), ("gzip", "Accept-Encoding"))
        self.assertLess(len(reply.body), len(big) // 2)
        self.assertTrue(gzip.decompress(reply.body) == big)
        reply = self.envd.files("GET", "path=/tmp/zipped", **{"Accept-Encoding": "gzip", "Range": "bytes=0-3"})
        self.assertEqual((reply.status, reply.body, "content-encoding" in reply.headers), (206, big[:4], False))
        self.envd.run("sh", "-c", ": > /tmp/nothing")
        reply = self.envd.files("GET", "path=/tmp/nothing", **{"Accept-Encoding": "gzip"})
        self.assertEqual(gzip.decompress(reply.body), b"")
        multipart = b"--BB\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\npart\r\n--BB--\r\n"
        reply = self.envd.files("POST", "path=/tmp/part", gzip.compress(multipart), **{
            "Content-Type": "multipart/form-data; boundary=BB", "Content-Encoding": "gzip"})
        self.assertEqual((reply.status, self.envd.files("GET", "path=/tmp/part").body), (200, b"part"))
        for body in (b"no gzip", gzip.compress(b"cut off")[:-3]):
            self.assertEqual(self.envd.files("POST", "path=/tmp/bad", body, **octets).status, 400)
        self.assertEqual(self.envd.files("POST", "path=/tmp/bad", b"", **{**octets, "Content-Encoding": "br"}).status, 415)

    def test_files_that_cannot_be(self):
        self.assertEqual(self.envd.files("GET", "path=/no/such").status, 404)
        self.assertEqual(self.envd.files("GET", "").status, 400)
        self.assertIn(self.envd.files("GET", "path=/etc").status, (400, 409))
        self.assertEqual(self.upload("path=x", [("a", b"1"), ("b", b"2")]).status, 400)
        self.assertEqual(self.envd.files("POST", "path=x", b"--BB\r\n",
                                         **{"Content-Type": "multipart/form-data; boundary=BB"}).status, 400)
        self.assertEqual(self.envd.files("GET", "path=a", **{"X-Access-Token": "no"}).status, 401)

    def test_signed_urls(self):
        def sign(path, operation, expiration=None):
            text = f"{path}:{operation}::{self.token}" + ("" if expiration is None else f":{expiration}")
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            query = {"path": path, "signature": "v1_" + digest}
            if expiration is not None:
                query["signature_expiration"] = expiration
            return "/files?" + urllib.parse.urlencode(query)
        self.upload("path=/tmp/signed", [("x", b"signed")])
        soon = int(time.time()) + 600
        for url in (sign("/tmp/signed", "read"), sign("/tmp/signed", "read", soon)):
            self.assertEqual(self.daemon.request("GET", url, owner=False).body, b"signed")
        for url in (sign("/tmp/signed", "write"), sign("/tmp/signed", "read", 1000),
                    sign("/tmp/signed", "read", soon).replace(str(soon), str(soon + 1)),
                    sign("/tmp/other", "read").replace("other", "signed")):
            self.assertEqual(self.daemon.request("GET", url, owner=False).status, 401, url)

    def test_filesystem(self):
        fs = self.envd.filesystem
        entry = fs("MakeDir", path="/tmp/d/e")["entry"]
        self.assertEqual((entry["path"], entry["type"]), ("/tmp/d/e", "FILE_TYPE_DIRECTORY"))
        with self.assertRaises(ConnectError) as caught:
            fs("MakeDir", path="/tmp/d/e")
        self.assertEqual(caught.exception.code, "already_exists")
        self.upload("path=/tmp/d/e/f", [("f", b"12345")])
        self.envd.run("ln", "-s", "e", "/tmp/d/link")
        entry = fs("Stat", path="/tmp/d/e/f")["entry"]
        self.assertEqual((entry["name"], entry["size"], entry["type"], entry["permissions"]),
                         ("f", "5", "FILE_TYPE_FILE", "-rw-r--r--"))
        self.assertRegex(entry["modifiedTime"], r"^20\d\d-.*Z$")
        entries = fs("ListDir", path="/tmp/d", depth=2)["entries"]
        self.assertEqual([e["path"] for e in entries], ["/tmp/d/e", "/tmp/d/e/f", "/tmp/d/link"])
        self.assertEqual((entries[2]["type"], entries[2]["symlinkTarget"]), ("FILE_TYPE_DIRECTORY", "e"))
        self.assertEqual(len(fs("ListDir", path="/tmp/d")["entries"]), 2)
        self.assertEqual(fs("Move", source="/tmp/d/e/f", destination="/tmp/d/new/g")["entry"]["path"], "/tmp/d/new/g")
        fs("Remove", path="/tmp/d")
        fs("Remove", path="/tmp/d")
        with self.assertRaises(ConnectError) as caught:
            fs("Stat", path="/tmp/d")
        self.assertEqual(caught.exception.code, "not_found")
        with self.assertRaises(ConnectError) as caught:
            fs("ListDir", path="/etc/passwd")
        self.assertEqual(caught.exception.code, "invalid_argument")

    def test_watches(self):
        fs = self.envd.filesystem
        fs("MakeDir", path="/tmp/w/sub")
        flat = fs("CreateWatcher", path="/tmp/w")["watcherId"]
        deep = self.envd.watch("/tmp/w", recursive=True, **{"Keepalive-Ping-Interval": "1"})
        self.assertEqual(deep.event(), {"start": {}})
        self.envd.run("sh", "-c", "cd /tmp/w; echo 1 > a; chmod 600 a; mv a b; echo 2 > sub/c; rm b")
        expected = [("a", "CREATE"), ("a", "WRITE"), ("a", "CHMOD"), ("a", "RENAME"), ("b", "CREATE"),
                    ("sub/c", "CREATE"), ("sub/c", "WRITE"), ("b", "REMOVE")]
        seen = []
        while seen[-1:] != expected[-1:]:
            event = deep.event()
            if "filesystem" in event:
                seen.append((event["filesystem"]["name"], event["filesystem"]["type"].removeprefix("EVENT_TYPE_")))
        self.assertEqual(seen, expected)
        self.assertEqual(deep.event(), {"keepalive": {}})
        deep.close()
        polled = []
        deadline = time.monotonic() + 60
        while ("b", "EVENT_TYPE_REMOVE") not in polled:
            self.assertLess(time.monotonic(), deadline)
            polled += [(e["name"], e["type"]) for e in fs("GetWatcherEvents", watcherId=flat)["events"]]
        self.assertEqual(polled, [(name, "EVENT_TYPE_" + kind) for name, kind in expected if "/" not in name])
        fs("RemoveWatcher", watcherId=flat)
        for verb, fields, code in (("GetWatcherEvents", {"watcherId": flat}, "not_found"),
                                   ("RemoveWatcher", {"watcherId": flat}, "not_found"),
                                   ("CreateWatcher", {"path": "/tmp/none"}, "not_found"),
                                   ("CreateWatcher", {"path": "/etc/passwd"}, "invalid_argument")):
            with self.assertRaises(ConnectError) as caught:
                fs(verb, **fields)
            self.assertEqual(caught.exception.code, code, verb)
        command = subprocess.Popen([os.path.join(BIN_DIR, "reprise"), "sandbox", "watch", self.sandbox_id, "/tmp/w", "-r",
                                    "--events", "2", "--json", "--server", f"unix:{self.daemon.state}/sandboxd.sock"],
                                   stdout=subprocess.PIPE, text=True)
        self.assertEqual(json.loads(command.stdout.readline()), {"kind": "started", "path": ""})
        self.envd.run("touch", "/tmp/w/sub/new", "/tmp/w/x")
        self.assertEqual([json.loads(line) for line in command.stdout][:1], [{"kind": "created", "path": "sub/new"}])
        self.assertEqual(command.wait(timeout=60), 0)
        gone = self.envd.watch("/tmp/w")
        gone.event()
        self.envd.run("rm", "-r", "/tmp/w")
        with self.assertRaises(ConnectError) as caught:
            while True:
                gone.event()
        self.assertEqual(caught.exception.code, "not_found")
        made = self.daemon.create("base")
        other = Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])
        ends = other.watch("/tmp")
        ends.event()
        self.daemon.request("DELETE", f"/sandboxes/{made['sandboxID']}")
        with self.assertRaises(ConnectError) as caught:
            ends.event()
        self.assertEqual(caught.exception.code, "unavailable")

    def test_state_is_kept_between_commands(self):
        self.envd.run("/bin/bash", "-c", "echo kept > /root/state")
        done = self.envd.run("/bin/bash", "-l", "-c", "cat state; pwd", cwd="/root")
        self.assertEqual(done.out, b"kept\n/root\n")

    def test_pause_and_resume(self):
        path = f"/sandboxes/{self.sandbox_id}"
        self.assertEqual(self.daemon.request("POST", path + "/pause", {}).status, 204)
        self.assertEqual(self.daemon.request("POST", path + "/pause", {}).status, 409)
        self.assertEqual(self.daemon.request("GET", path).json()["state"], "paused")
        ids = [box["sandboxID"] for box in self.daemon.request("GET", "/v2/sandboxes?state=paused").json()]
        self.assertEqual(ids, [self.sandbox_id])
        reply = self.daemon.request("POST", f"/v2{path}/connect", {"timeout": 600})
        self.assertEqual((reply.status, reply.json()["sandboxID"]), (201, self.sandbox_id))
        self.assertEqual(self.daemon.request("POST", f"/v2{path}/connect", {}).status, 200)
        self.assertEqual(self.envd.run("echo", "awake").out, b"awake\n")


if __name__ == "__main__":
    ContainerCase.bin_dir = FunctionCase.bin_dir = BIN_DIR = sys.argv.pop(1)
    unittest.main(verbosity=2)
