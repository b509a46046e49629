"""The HTTP port as an operator meets it: its flags, TLS, and the end of the daemon under open streams."""

import http.client
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import unittest

from connect import Envd
from daemon import Daemon, dashboard_families

BIN_DIR = None


class Port(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="reprise-port-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def refused(self, *flags):
        done = subprocess.run([os.path.join(BIN_DIR, "sandboxd"), "--state", self.dir, "--containerd", "",
                               "--log-level", "off", *flags], stderr=subprocess.PIPE, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        return done.stderr

    def token(self, mode=0o600):
        path = os.path.join(self.dir, f"token-{mode:o}")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, mode), "w") as file:
            file.write("0123456789abcdef0123456789abcdef")
        return path

    def test_flags_that_are_refused(self):
        self.assertIn("--token-file", self.refused("--http", "127.0.0.1:0"))
        self.assertIn("chmod 600", self.refused("--http", "127.0.0.1:0", "--token-file", self.token(0o644)))
        token = self.token()
        self.assertIn("HOST:PORT", self.refused("--http", "nonsense", "--token-file", token))
        self.assertIn("--http-key", self.refused("--http", "127.0.0.1:0", "--token-file", token, "--http-cert", token))
        self.assertIn("certificate", self.refused("--http", "127.0.0.1:0", "--token-file", token,
                                                  "--http-cert", token, "--http-key", token))

    def test_tls(self):
        cert, key = os.path.join(self.dir, "cert.pem"), os.path.join(self.dir, "key.pem")
        made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                               "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext",
                               "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert], capture_output=True)
        self.assertEqual(made.returncode, 0, made.stderr)
        daemon = Daemon(BIN_DIR, "--containerd", "", "--http-cert", cert, "--http-key", key)
        try:
            self.assertTrue(daemon.url.startswith("https://"))
            context = ssl.create_default_context(cafile=cert)
            connection = http.client.HTTPSConnection(*daemon.address, context=context, timeout=60)
            for _ in range(2):  # the connection is kept
                connection.request("GET", "/v1/ping")
                self.assertEqual(connection.getresponse().read(), b'"pong"')
            connection.close()
            with self.assertRaises((http.client.HTTPException, OSError)):
                daemon.request("GET", "/v1/ping")  # not TLS
        finally:
            self.assertEqual(daemon.close(), 0)

    def test_the_daemon_ends_under_an_open_stream_and_the_command_lives_on(self):
        daemon = Daemon(BIN_DIR, "--containerd", "")
        try:
            if not daemon.function_tier():
                self.skipTest("the function tier is not usable on this host")
            made = daemon.request("POST", "/v2/sandboxes", {"templateID": "any@function"}).json()
            envd = Envd(daemon, made["sandboxID"], made["envdAccessToken"])
            stream = envd.start("sh", "-c", "echo begun; cat; echo ended", stdin=True)
            pid = stream.started()
            stream.until(b"begun\n")
            self.assertEqual(daemon.stop(), 0)
            with self.assertRaisesRegex(Exception, "unavailable|cut off"):
                stream.finish()
            stream.close()
            daemon.restart()
            again = envd.stream("Connect", {"process": {"pid": pid}})
            again.until(b"begun\n")
            envd.process("CloseStdin", {"process": {"pid": pid}})
            self.assertEqual(again.finish().out, b"begun\nended\n")
        finally:
            daemon.close()

    def test_metrics_tell_sandboxes_and_calls(self):
        daemon = Daemon(BIN_DIR, "--containerd", "")
        try:
            self.assertEqual(daemon.request("GET", "/metrics", owner=False).status, 401)
            reply = daemon.request("GET", "/metrics")
            self.assertEqual(reply.status, 200)
            self.assertIn("version=0.0.4", reply.headers["content-type"])
            self.assertIn(b"\nreprise_journal_healthy 1\n", reply.body)
            self.assertIn(b"\nreprise_calls_unfinished 0\n", reply.body)
            if not daemon.function_tier():
                self.skipTest("the function tier is not usable on this host")
            def values():
                lines = daemon.request("GET", "/metrics").body.decode().splitlines()
                return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}

            before = values()
            daemon.request("POST", "/v2/sandboxes", {"templateID": "any@function"})
            daemon.request("POST", "/run_code", {"language": "bash", "code": "exit 3"})
            after = values()
            for name, more in (('reprise_sandboxes{tier="function",state="running"}', 1),
                               ('reprise_sandbox_create_seconds_count{tier="function"}', 1),
                               ('reprise_calls_total{outcome="exited"}', 1),
                               ("reprise_call_run_seconds_count", 1), ("reprise_call_queue_seconds_count", 1),
                               ("reprise_journal_commit_seconds_count", 1)):
                self.assertEqual(after[name] - before.get(name, 0), more, name)
            self.assertGreater(after["reprise_journal_bytes_total"], before["reprise_journal_bytes_total"])
            self.assertEqual(dashboard_families("Sandbox daemon") - daemon.families(), set())
        finally:
            daemon.close()


if __name__ == "__main__":
    BIN_DIR = sys.argv.pop(1)
    unittest.main(verbosity=2)
