"""E2B's snapshots and forks over real sockets, on containers; and requests that name their sandbox by its token."""

import sys
import unittest
import urllib.parse

from connect import Envd
from container_case import ContainerCase


class Snapshots(ContainerCase):
    def box(self, template="base", **fields):
        made = self.daemon.create(template, **fields)
        return made["sandboxID"], Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])

    def post(self, path, body=None, headers=None):
        return self.daemon.request("POST", path, body or {}, headers)

    def remove(self, name):
        return self.daemon.request("DELETE", "/templates/" + urllib.parse.quote(name, safe="")).status

    def test_a_snapshot_is_a_template(self):
        box, envd = self.box()
        envd.run("sh", "-c", "echo one > /work/kept")
        reply = self.post(f"/sandboxes/{box}/snapshots")
        self.assertEqual(reply.status, 201, reply.body)
        snapshot = reply.json()["snapshotID"]
        self.assertEqual(reply.json()["names"], [snapshot])
        envd.run("sh", "-c", "echo two > /work/kept")
        for _ in range(2):
            other, other_envd = self.box(snapshot)
            self.assertEqual(other_envd.run("cat", "/work/kept").out, b"one\n")
            self.assertEqual(self.daemon.request("GET", f"/sandboxes/{other}").json()["templateID"], snapshot)
            self.assertEqual(self.remove(snapshot), 409)
            self.daemon.request("DELETE", f"/sandboxes/{other}")
        self.assertEqual(envd.run("cat", "/work/kept").out, b"two\n")
        self.daemon.request("DELETE", f"/sandboxes/{box}")
        self.assertEqual(self.remove(snapshot), 204)
        self.assertEqual(self.remove(snapshot), 404)

    def test_names_and_repeated_requests(self):
        box, envd = self.box()
        envd.run("touch", "/work/a")
        keyed = {"Idempotency-Key": "once"}
        first = self.post(f"/sandboxes/{box}/snapshots", {"name": "named:v1"}, keyed)
        self.assertEqual((first.status, first.json()["snapshotID"]), (201, "named:v1"))
        self.assertEqual(self.post(f"/sandboxes/{box}/snapshots", {"name": "named:v1"}, keyed).json(), first.json())
        self.assertEqual(self.post(f"/sandboxes/{box}/snapshots", {"name": "other"}, keyed).status, 409)
        self.assertEqual(self.post(f"/sandboxes/{box}/snapshots", {"name": "named:v1"}).status, 409)
        self.assertEqual(self.daemon.request("GET", "/templates/aliases/named%3Av1").status, 200)
        _, other = self.box("named:v1")
        self.assertEqual(other.run("ls", "/work/a").out, b"/work/a\n")

    def test_listed_in_pages(self):
        box, _ = self.box()
        made = [self.post(f"/sandboxes/{box}/snapshots").json()["snapshotID"] for _ in range(3)]
        self.post(f"/sandboxes/{box}/fork")  # the snapshots of forks are nobody's
        seen, token = [], ""
        while True:
            reply = self.daemon.request("GET", f"/snapshots?sandboxID={box}&limit=2&nextToken={token}")
            seen += [entry["snapshotID"] for entry in reply.json()]
            token = reply.headers.get("x-next-token", "")
            if not token:
                break
        self.assertEqual(seen, made[::-1])
        named = self.daemon.request("GET", "/snapshots?name=" + urllib.parse.quote(made[1])).json()
        self.assertEqual([entry["snapshotID"] for entry in named], [made[1]])
        self.assertEqual(self.daemon.request("GET", "/snapshots?nextToken=x").status, 400)

    def test_forks(self):
        box, envd = self.box(envVars={"A": "1"}, metadata={"m": "n"})
        envd.run("sh", "-c", "echo before > /work/f")
        reply = self.post(f"/sandboxes/{box}/fork", {"count": 2, "timeout": 900})
        self.assertEqual(reply.status, 201, reply.body)
        ids = []
        for result in reply.json():
            made = result["sandbox"]
            ids.append(made["sandboxID"])
            fork = Envd(self.daemon, made["sandboxID"], made["envdAccessToken"])
            self.assertEqual(fork.run("sh", "-c", "echo $A; cat /work/f; echo mine > /work/f").out, b"1\nbefore\n")
            info = self.daemon.request("GET", f"/sandboxes/{made['sandboxID']}").json()
            self.assertEqual((info["state"], info["metadata"]), ("running", {"m": "n"}))
        self.assertEqual(len({box, *ids}), 3)
        self.assertEqual(envd.run("cat", "/work/f").out, b"before\n")

    def test_a_fork_that_is_asked_for_again_is_the_same(self):
        box, _ = self.box()
        ids = []
        for _ in range(2):
            reply = self.post(f"/sandboxes/{box}/fork", {"count": 2}, {"Idempotency-Key": "twins"})
            ids.append([result["sandbox"]["sandboxID"] for result in reply.json()])
        self.assertEqual(ids[0], ids[1])
        self.assertEqual(len(set(ids[0])), 2)

    def test_what_is_refused(self):
        box, _ = self.box()
        for body, status in (({"count": 0}, 400), ({"count": 101}, 400), ({"count": "2"}, 400), ({"timeout": -1}, 400)):
            self.assertEqual(self.post(f"/sandboxes/{box}/fork", body).status, status, body)
        self.assertEqual(self.post(f"/sandboxes/{box}/snapshots", {"memory": True}).status, 501)
        self.assertEqual(self.post(f"/sandboxes/{box}/snapshots", {"name": "snapshots/mine"}).status, 400)
        for verb in ("fork", "snapshots"):
            self.assertEqual(self.post(f"/sandboxes/none/{verb}").status, 404)

    # What SDKs up to 2.20 send after a connect.
    def test_the_token_names_the_sandbox(self):
        box, envd = self.box()
        _, other = self.box()
        token = envd.headers["X-Access-Token"]
        for name in ("E2b-Sandbox-Id", "E2b-Sandbox-Port"):
            del envd.headers[name]
        envd.run("sh", "-c", "echo mine > /work/t")
        self.assertEqual(envd.files("GET", "path=/work/t").body, b"mine\n")
        self.assertEqual(other.files("GET", "path=/work/t").status, 404)
        for bad in (token[:-1] + ("0" if token[-1] != "0" else "1"), box, "", "." + token):
            reply = self.daemon.request("GET", "/files?path=/work/t", headers={"X-Access-Token": bad}, owner=False)
            self.assertEqual(reply.status, 401, bad)


if __name__ == "__main__":
    ContainerCase.bin_dir = sys.argv.pop(1)
    unittest.main()
