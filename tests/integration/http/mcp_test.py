"""The Model Context Protocol server of sandboxd, by the standard library: sessions, versions, tools, retries."""

import json
import os
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import containers  # noqa: E402
from daemon import Daemon  # noqa: E402
from function_case import FunctionCase  # noqa: E402

BIN_DIR = sys.argv.pop(1)
NEWEST = "2025-11-25"


class Session:
    def __init__(self, daemon, version=NEWEST):
        self.daemon = daemon
        self.id = 0
        self.headers = {}
        self.reply = self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})
        self.result = self.reply.json()["result"]
        self.headers = {"Mcp-Session-Id": self.reply.headers["mcp-session-id"],
                        "MCP-Protocol-Version": self.result["protocolVersion"]}
        assert self.notify("notifications/initialized").status == 202

    def post(self, message, **headers):
        return self.daemon.request("POST", "/mcp", message, {
            "Authorization": f"Bearer {self.daemon.token}", "Accept": "application/json, text/event-stream",
            **self.headers, **headers}, owner=False)

    def notify(self, method, **params):
        return self.post({"jsonrpc": "2.0", "method": method, "params": params})

    # The result of a request; `id` repeats an earlier one.
    def ask(self, method, id=None, **params):
        if id is None:
            self.id += 1
            id = self.id
        reply = self.post({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        assert (reply.status, reply.json()["id"]) == (200, id), reply.body
        return reply.json()["result"]

    def tool(self, name, id=None, **arguments):
        return self.ask("tools/call", id, name=name, arguments=arguments)

    # The fields of a tool that did what it was asked to.
    def done(self, name, id=None, **arguments):
        result = self.tool(name, id, **arguments)
        assert not result["isError"], result
        return result["structuredContent"]


class Function(FunctionCase):
    def test_versions_are_negotiated(self):
        for asked, answered in (("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("1999-01-01", NEWEST)):
            self.assertEqual(Session(self.daemon, asked).result["protocolVersion"], answered)
        session = Session(self.daemon)
        self.assertIn("tools", session.result["capabilities"])
        self.assertEqual(session.ask("ping"), {})
        reply = session.post({"jsonrpc": "2.0", "id": 9, "method": "ping"}, **{"MCP-Protocol-Version": "1999-01-01"})
        self.assertEqual(reply.status, 400)

    def test_tools_describe_themselves(self):
        tools = {tool["name"]: tool for tool in Session(self.daemon).ask("tools/list")["tools"]}
        self.assertLessEqual({"run_command", "read_file", "write_file", "list_dir", "create_sandbox", "stop_sandbox",
                              "list_sandboxes", "make_dir", "remove_path"}, set(tools))
        schema = tools["run_command"]["inputSchema"]
        self.assertEqual((schema["type"], schema["required"]), ("object", ["sandbox", "command"]))
        self.assertTrue(tools["read_file"]["annotations"]["readOnlyHint"])

    def test_a_command(self):
        session = Session(self.daemon)
        box = session.done("create_sandbox", tier="function", env={"A": "1"})["sandbox"]
        result = session.tool("run_command", sandbox=box, command="cat; echo $A $B; echo oops >&2; exit 3", stdin="in\n",
                              env={"B": "2"})
        self.assertEqual(result["structuredContent"], {"stdout": "in\n1 2\n", "stderr": "oops\n", "exit_code": 3,
                                                       "truncated": False, "outcome": "OUTCOME_EXITED", "replayed": False})
        self.assertEqual(result["content"], [{"type": "text", "text": "in\n1 2\n[stderr]\noops\n[exit code 3]"}])
        self.assertFalse(result["isError"])
        slow = session.tool("run_command", sandbox=box, command="sleep 600", timeout_seconds=0.2)
        self.assertTrue(slow["isError"])
        self.assertEqual(slow["structuredContent"]["outcome"], "OUTCOME_TIMED_OUT")
        self.assertIn(box, [each["sandbox"] for each in session.done("list_sandboxes")["sandboxes"]])
        self.assertTrue(session.done("stop_sandbox", sandbox=box)["was_running"])
        self.assertTrue(session.tool("run_command", sandbox=box, command="true")["isError"])

    def test_a_request_sent_again_is_the_same_call(self):
        session = Session(self.daemon)
        box = session.done("create_sandbox", id=100, tier="function")["sandbox"]
        self.assertEqual(session.done("create_sandbox", id=100, tier="function")["sandbox"], box)
        first = session.done("run_command", id=101, sandbox=box, command="date +%N")
        for daemon_restarts in (False, True):
            if daemon_restarts:
                self.daemon.restart(kill=True)
            again = session.done("run_command", id=101, sandbox=box, command="date +%N")
            self.assertEqual((again["stdout"], again["replayed"]), (first["stdout"], True))
        # Another command under the same id is refused; the text "101" is another id, and so is 101 elsewhere.
        other = session.tool("run_command", id=101, sandbox=box, command="true")
        self.assertTrue(other["isError"])
        self.assertIn("divergence", other["content"][0]["text"])
        self.assertFalse(session.done("run_command", id="101", sandbox=box, command="true")["replayed"])
        self.assertFalse(Session(self.daemon).done("run_command", id=101, sandbox=box, command="true")["replayed"])

    def test_a_request_is_cancelled(self):
        session = Session(self.daemon)
        box = session.done("create_sandbox", tier="function")["sandbox"]
        results = []
        asking = threading.Thread(
            target=lambda: results.append(session.tool("run_command", id="slow", sandbox=box, command="sleep 600")))
        asking.start()
        while asking.is_alive():  # the call may not have begun yet
            self.assertEqual(session.notify("notifications/cancelled", requestId="slow").status, 202)
            asking.join(0.05)
        self.assertEqual(results[0]["structuredContent"]["outcome"], "OUTCOME_CANCELLED")

    def test_what_is_refused(self):
        session = Session(self.daemon)
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for headers, status in (({"Authorization": "Bearer no"}, 401), ({"Mcp-Session-Id": "abc.def"}, 404),
                                ({"Mcp-Session-Id": ""}, 400), ({"Origin": "http://elsewhere.example"}, 403)):
            self.assertEqual(session.post(request, **headers).status, status, headers)
        for body, status, code in (("{", 400, -32700), ([request], 400, -32600), ({"id": 1}, 400, -32600),
                                   ({**request, "id": 1.5}, 400, -32600), ({**request, "method": "no/such"}, 404, -32601),
                                   ({**request, "method": "tools/call", "params": {"name": "no"}}, 400, -32602),
                                   ({**request, "method": "tools/call", "params": []}, 400, -32602)):
            reply = session.post(body)
            self.assertEqual((reply.status, reply.json()["error"]["code"]), (status, code), body)
        for name, arguments, words in (("create_sandbox", {"tier": "cloud"}, "tier must be one of"),
                                       ("create_sandbox", {"tier": "function", "gpu": 1}, 'no argument "gpu"'),
                                       ("run_command", {"sandbox": "none", "command": "true"}, "does not exist"),
                                       ("run_command", {"sandbox": "none"}, "command must be"),
                                       ("read_file", {"sandbox": "none", "path": "x", "max_bytes": -1}, "max_bytes")):
            result = session.tool(name, **arguments)
            self.assertTrue(result["isError"])
            self.assertIn(words, result["content"][0]["text"])
        get = self.daemon.request("GET", "/mcp")
        self.assertEqual((get.status, get.headers["allow"]), (405, "POST, DELETE"))
        self.assertEqual(self.daemon.request("DELETE", "/mcp", headers=session.headers).status, 204)


class Files(unittest.TestCase):
    def test_files(self):
        if reason := containers.why_not():
            self.skipTest(reason)
        containerd = containers.Containerd()
        daemon = Daemon(BIN_DIR, "--containerd", containerd.address)
        try:
            daemon.import_image("base", containerd.root)
            session = Session(daemon)
            box = session.done("create_sandbox", tier="container", image="base")["sandbox"]
            session.done("write_file", sandbox=box, path="d/text", content="grüße\n")
            self.assertEqual(session.done("read_file", sandbox=box, path="/work/d/text"),
                             {"content": "grüße\n", "encoding": "utf-8"})
            session.done("write_file", sandbox=box, path="d/bytes", content="/wAB", encoding="base64")
            self.assertEqual(session.done("read_file", sandbox=box, path="d/bytes"),
                             {"content": "/wAB", "encoding": "base64"})
            session.done("make_dir", sandbox=box, path="d/sub")
            self.assertEqual([(e["name"], e["type"], e["size"] if e["type"] == "file" else 0)
                              for e in session.done("list_dir", sandbox=box, path="d")["entries"]],
                             [("bytes", "file", 3), ("sub", "directory", 0), ("text", "file", 8)])
            self.assertIn("longer than 2 bytes",
                          session.tool("read_file", sandbox=box, path="d/text", max_bytes=2)["content"][0]["text"])
            self.assertEqual(session.done("run_command", sandbox=box, command="cat d/text")["stdout"], "grüße\n")
            session.done("remove_path", sandbox=box, path="d")
            self.assertTrue(session.tool("list_dir", sandbox=box, path="d")["isError"])
            session.done("stop_sandbox", sandbox=box)
        finally:
            daemon.close()
            containerd.close()


if __name__ == "__main__":
    FunctionCase.bin_dir = BIN_DIR
    unittest.main()
