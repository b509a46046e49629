"""SWE-ReX's runtime routes over real sockets: commands on the function tier, sessions and files on containers."""

import sys
import unittest
import uuid

from container_case import ContainerCase
from function_case import FunctionCase


class Swerex:
    def __init__(self, daemon, template):
        self.daemon = daemon
        made = daemon.create(template)
        self.id, self.token = made["sandboxID"], made["envdAccessToken"]

    def post(self, verb, body, request_id=None, prefix=""):
        headers = {"X-API-Key": f"{self.id}.{self.token}", "X-Request-ID": request_id or str(uuid.uuid4())}
        return self.daemon.request("POST", f"{prefix}/{verb}", body, headers, owner=False)

    def ok(self, verb, body, **options):
        reply = self.post(verb, body, **options)
        assert reply.status == 200, reply.body
        return reply.json()

    def error(self, verb, body):
        reply = self.post(verb, body)
        assert reply.status == 511, (reply.status, reply.body)
        return reply.json()["swerexception"]

    def run(self, command, **fields):
        return self.ok("run_in_session", {"action_type": "bash", "command": command, **fields})


class Commands(FunctionCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.rex = Swerex(cls.daemon, "any@function")

    def test_who_may(self):
        for key, path, status in ((f"{self.rex.id}.{self.rex.token}", "/is_alive", 200),
                                  (f"{self.rex.id}.{self.daemon.token}", "/is_alive", 200),
                                  (self.daemon.token, f"/swerex/{self.rex.id}/is_alive", 200),
                                  (self.rex.token, f"/swerex/{self.rex.id}/is_alive", 200),
                                  (self.daemon.token, "/is_alive", 401), (f"{self.rex.id}.x", "/is_alive", 401)):
            reply = self.daemon.request("GET", path, headers={"X-API-Key": key}, owner=False)
            self.assertEqual(reply.status, status, (key, path))
            if status == 200:
                self.assertEqual(reply.json(), {"is_alive": True, "message": ""})

    def test_execute(self):
        self.assertEqual(self.rex.ok("execute", {"command": ["echo", "a b"]}),
                         {"stdout": "a b\n", "stderr": "", "exit_code": 0})
        done = self.rex.ok("execute", {"command": "echo $X; pwd; echo e >&2; exit 4", "shell": True, "cwd": "/tmp",
                                       "env": {"X": "1"}, "merge_output_streams": True})
        self.assertEqual(done, {"stdout": "1\n/tmp\ne\n", "stderr": "", "exit_code": 4})
        error = self.rex.error("execute", {"command": ["false"], "check": True})
        self.assertEqual(error["class_path"], "swerex.exceptions.NonZeroExitCodeError")
        error = self.rex.error("execute", {"command": ["sleep", "600"], "timeout": 0.2})
        self.assertEqual(error["class_path"], "swerex.exceptions.CommandTimeoutError")
        self.assertEqual(self.rex.post("execute", {}).status, 422)

    def test_a_repeated_request_is_one_command(self):
        body = {"command": "date +%N", "shell": True}
        first, again = (self.rex.post("execute", body, request_id="once") for _ in range(2))
        self.assertEqual(first.body, again.body)
        self.assertEqual(again.headers.get("x-reprise-replayed"), "true")

    def test_sessions_need_state(self):
        error = self.rex.error("create_session", {"session": "default"})
        self.assertIn("container tier", error["message"])


class Sessions(ContainerCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.rex = Swerex(cls.daemon, "base")
        cls.rex.ok("create_session", {"session": "default", "session_type": "bash"})

    def test_a_session_keeps_its_state(self):
        self.rex.run("cd /tmp; x='a  b'; export Y=$'two\\nlines'; f() { echo f:$1; }; alias g='echo aliased'")
        done = self.rex.run("pwd; echo \"$x\"; f 1; g; sh -c 'echo \"$Y\"'")
        self.assertEqual((done["output"], done["exit_code"]), ("/tmp\na  b\nf:1\naliased\ntwo\nlines\n", 0))
        self.rex.run("z=1; exit 3", check="silent")
        self.assertEqual(self.rex.run("echo $z; (exit 5)", check="silent")["exit_code"], 5)
        self.assertEqual(self.rex.run("echo $z >&2")["output"], "1\n")

    def test_exit_codes(self):
        error = self.rex.error("run_in_session", {"command": "echo said; false", "error_msg": "note"})
        self.assertEqual(error["class_path"], "swerex.exceptions.NonZeroExitCodeError")
        self.assertIn("said", error["message"])
        self.assertIsNone(self.rex.run("false", check="ignore")["exit_code"])
        error = self.rex.error("run_in_session", {"command": "sleep 600", "timeout": 0.3})
        self.assertEqual(error["class_path"], "swerex.exceptions.CommandTimeoutError")
        self.rex.ok("run_in_session", {"action_type": "bash_interrupt", "session": "default"})

    def test_a_repeated_command_runs_once(self):
        body = {"command": "echo x >> /tmp/count; wc -l < /tmp/count"}
        first, again = (self.rex.ok("run_in_session", body, request_id="same") for _ in range(2))
        self.assertEqual((first["output"].strip(), again["output"].strip()), ("1", "1"))

    def test_sessions_come_and_go(self):
        self.rex.ok("write_file", {"path": "/tmp/rc", "content": "sourced=yes\n"})
        self.rex.ok("create_session", {"session": "two", "startup_source": ["/tmp/rc"]})
        self.assertEqual(self.rex.run("echo $sourced", session="two")["output"], "yes\n")
        self.assertEqual(self.rex.run("echo \"[$sourced]\"")["output"], "[]\n")
        self.assertIn("SessionExistsError", self.rex.error("create_session", {"session": "two"})["class_path"])
        self.rex.ok("close_session", {"session": "two"})
        for verb in ("close_session", "run_in_session"):
            error = self.rex.error(verb, {"session": "two", "command": "true"})
            self.assertEqual(error["class_path"], "swerex.exceptions.SessionDoesNotExistError")

    def test_files(self):
        self.rex.ok("write_file", {"path": "/tmp/new/dir/f", "content": "text ü"})
        self.assertEqual(self.rex.ok("read_file", {"path": "/tmp/new/dir/f"}), {"content": "text ü"})
        self.assertEqual(self.rex.error("read_file", {"path": "/no"})["class_path"], "builtins.FileNotFoundError")
        body = (b"--BB\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n\0data\r\n"
                b"--BB\r\nContent-Disposition: form-data; name=\"target_path\"\r\n\r\n/tmp/up/loaded\r\n"
                b"--BB\r\nContent-Disposition: form-data; name=\"unzip\"\r\n\r\nfalse\r\n--BB--\r\n")
        reply = self.daemon.request("POST", f"/swerex/{self.rex.id}/upload", body,
                                    {"Content-Type": "multipart/form-data; boundary=BB"})
        self.assertEqual((reply.status, reply.json()), (200, {}))
        self.assertEqual(self.rex.ok("execute", {"command": ["cat", "/tmp/up/loaded"]})["stdout"], "\0data")
        self.assertEqual(self.rex.ok("execute", {"command": "ls /tmp/.reprise-upload-* | wc -l", "shell": True})
                         ["stdout"].strip(), "0")


if __name__ == "__main__":
    ContainerCase.bin_dir = FunctionCase.bin_dir = sys.argv.pop(1)
    unittest.main(verbosity=2)
