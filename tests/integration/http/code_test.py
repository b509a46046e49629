"""E2B's code interpreter (/execute, /contexts) and SandboxFusion's /run_jupyter over real sockets, on the function tier."""

import base64
import http.client
import json
import sys
import time
import unittest

from function_case import FunctionCase


class Code(FunctionCase):
    def setUp(self):
        self.made = self.daemon.request("POST", "/v2/sandboxes", {"templateID": "code-interpreter-v1@function",
                                                                  "envVars": {"BOX": "1"}}).json()
        self.headers = {"E2b-Sandbox-Id": self.made["sandboxID"], "E2b-Sandbox-Port": "49999",
                        "X-Access-Token": self.made["envdAccessToken"]}

    def tearDown(self):
        self.daemon.request("DELETE", f"/sandboxes/{self.made['sandboxID']}")

    def call(self, method, path, body=None, **headers):
        return self.daemon.request(method, path, body, {**self.headers, **headers}, owner=False)

    def events(self, code, key=None, **fields):
        headers = {"Idempotency-Key": key} if key else {}
        reply = self.call("POST", "/execute", {"code": code, **fields}, **headers)
        self.assertEqual(reply.status, 200, reply.body)
        events = [json.loads(line) for line in reply.body.splitlines()]
        self.assertEqual([e["type"] for e in events].count("end_of_execution"), 1)
        self.assertEqual(events[-1]["type"], "end_of_execution")
        return events

    # What was printed, the main result, and the error of a run.
    def run_code(self, code, **fields):
        events = self.events(code, **fields)
        out = "".join(e["text"] for e in events if e["type"] == "stdout")
        result = next((e["text"] for e in events if e["type"] == "result" and e["is_main_result"]), None)
        error = next((e["name"] for e in events if e["type"] == "error"), None)
        return out, result, error

    def test_state_is_kept(self):
        self.assertEqual(self.run_code("x = 20\nprint('set')"), ("set\n", None, None))
        self.assertEqual(self.run_code("x * 2 + 2"), ("", "42", None))
        self.assertEqual(self.run_code("_ + 1"), ("", "43", None))
        events = self.events("1/0")
        self.assertEqual([e["type"] for e in events], ["number_of_executions", "error", "end_of_execution"])
        self.assertEqual((events[0]["execution_count"], events[1]["name"], events[1]["value"]),
                         (4, "ZeroDivisionError", "division by zero"))
        self.assertIn('File "<cell 4>", line 1', events[1]["traceback"])
        self.assertEqual(self.run_code("x"), ("", "20", None))
        self.assertEqual(self.run_code("def f(:")[2], "SyntaxError")
        self.assertEqual(self.run_code("exit(1)")[2], "SystemExit")
        self.assertEqual(self.run_code("x;"), ("", None, None))

    def test_output_of_every_kind(self):
        events = self.events("import os, sys, subprocess\nprint('a')\nos.system('echo b')\n"
                             "print('c', file=sys.stderr)\nos.write(1, b'\\xc3')\nos.write(1, b'\\xa9')\nNone")
        of = lambda kind: "".join(e["text"] for e in events if e["type"] == kind)
        self.assertEqual((of("stdout"), of("stderr")), ("a\nb\né", "c\n"))
        self.assertGreater(events[1]["timestamp"], 10**18)
        self.assertEqual(self.run_code("!echo $((40 + 2)); cat")[0], "42\n")
        big = self.run_code("print('x' * 3000000)")[0]
        self.assertEqual(len(big), 3000001)
        rich = self.events("class R:\n    def _repr_html_(self): return '<b>r</b>'\n"
                           "    def _repr_png_(self): return b'png'\n    def __repr__(self): return 'r'\ndisplay(R())\nR()")
        shown = [e for e in rich if e["type"] == "result"]
        self.assertEqual([e["is_main_result"] for e in shown], [False, True])
        self.assertEqual((shown[1]["text"], shown[1]["html"], base64.b64decode(shown[1]["png"])), ("r", "<b>r</b>", b"png"))
        self.assertEqual(self.run_code("import asyncio\nawait asyncio.sleep(0, 'awaited')")[1], "'awaited'")

    def test_variables(self):
        code = "import os; (os.environ.get('BOX'), os.environ.get('RUN'))"
        self.assertEqual(self.run_code(code, env_vars={"RUN": "2"})[1], "('1', '2')")
        self.assertEqual(self.run_code(code)[1], "('1', None)")

    def test_contexts(self):
        made = self.call("POST", "/contexts", {"cwd": "/tmp"}).json()
        self.assertEqual((made["language"], made["cwd"]), ("python", "/tmp"))
        here = {"context_id": made["id"]}
        self.assertEqual(self.run_code("import os; y = 1; os.getcwd()", **here)[1], "'/tmp'")
        self.assertEqual(self.run_code("y")[2], "NameError")
        listed = {context["id"]: context for context in self.call("GET", "/contexts").json()}
        self.assertEqual(set(listed), {made["id"], "default-python"})
        self.assertEqual(listed[made["id"]], made)
        self.assertEqual(self.call("POST", f"/contexts/{made['id']}/restart").status, 200)
        self.assertEqual(self.run_code("y", **here)[2], "NameError")
        self.assertEqual(self.run_code("os = __import__('os'); os.getcwd()", **here)[1], "'/tmp'")
        self.assertEqual(self.call("DELETE", f"/contexts/{made['id']}").status, 204)
        for reply in (self.call("DELETE", f"/contexts/{made['id']}"),
                      self.call("POST", "/execute", {"code": "1", **here}),
                      self.call("POST", "/contexts/none/restart")):
            self.assertEqual(reply.status, 404)
        self.assertEqual([context["id"] for context in self.call("GET", "/contexts").json()], ["default-python"])

    def test_a_shell(self):
        shell = {"language": "bash"}
        self.assertEqual(self.run_code("X=5; cd /tmp; echo hi", **shell)[0], "hi\n")
        self.assertEqual(self.run_code("echo $X; pwd; false", **shell), ("5\n/tmp\n", None, "ExitStatus"))
        self.assertEqual(self.run_code("x = 1; x")[1], "1")

    def test_what_is_refused(self):
        for body, status in (({}, 400), ({"code": 1}, 400), ({"code": "1", "language": "cobol"}, 501),
                             ({"code": "1", "env_vars": {"A": 1}}, 400)):
            self.assertEqual(self.call("POST", "/execute", body).status, status, body)
        self.assertEqual(self.call("POST", "/execute", {"code": "1"}, **{"X-Access-Token": "no"}).status, 401)
        self.assertEqual(self.call("GET", "/contexts", **{"X-Access-Token": ""}).status, 401)
        traffic = {"X-Access-Token": "", "E2B-Traffic-Access-Token": self.made["trafficAccessToken"]}
        self.assertEqual(self.call("GET", "/contexts", **traffic).status, 200)
        self.assertIn(self.call("POST", "/contexts", {"cwd": "/no/such"}).status, (400, 409))

    # A request that is sent again with its key is one run, whose events come again.
    def test_a_retry_runs_nothing_again(self):
        self.run_code("n = 0")
        first = self.events("n += 1; print(n)", key="once")
        self.assertEqual(self.events("n += 1; print(n)", key="once"), first)
        self.assertEqual(self.run_code("n")[1], "1")

    # Cut off in the middle, by the client and by the end of the daemon.
    def test_a_run_outlives_client_and_daemon(self):
        self.run_code("import time; n = 0")
        code = "n += 1\nprint('begun')\nfor i in range(200): time.sleep(0.01)\nprint('done', n)"
        for kill in (True, False):
            connection = http.client.HTTPConnection(*self.daemon.address, timeout=60)
            connection.request("POST", "/execute", json.dumps({"code": code}),
                               {**self.headers, "Idempotency-Key": "long"})
            response = connection.getresponse()
            while b"begun" not in response.readline():
                pass
            response.close()
            connection.close()
            self.daemon.restart(kill=kill)
        out = "".join(e["text"] for e in self.events(code, key="long") if e["type"] == "stdout")
        self.assertEqual(out, "begun\ndone 1\n")
        self.assertEqual(self.run_code("n")[1], "1")

    def test_a_client_that_goes_ends_its_run(self):
        connection = http.client.HTTPConnection(*self.daemon.address, timeout=60)
        connection.request("POST", "/execute", json.dumps({"code": "import time\nprint('begun')\ntime.sleep(600)"}),
                           self.headers)
        response = connection.getresponse()
        while b"begun" not in response.readline():
            pass
        response.close()
        connection.close()
        before = time.monotonic()
        self.assertEqual(self.run_code("'free'")[1], "'free'")
        self.assertLess(time.monotonic() - before, 60)

    def test_a_context_that_ends_says_so(self):
        self.run_code("z = 1")
        events = self.events("import os\nos._exit(7)")
        self.assertEqual((events[-2]["name"], events[-2]["value"]), ("ContextEnded", "OUTCOME_EXITED with status 7"))
        self.assertEqual(self.run_code("z")[2], "NameError")

    def jupyter(self, *cells, **fields):
        reply = self.daemon.request("POST", "/run_jupyter", {"cells": list(cells), **fields})
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def test_cells(self):
        said = self.jupyter("x = 1\nprint('one')", "x + 1", "1/0", "import sys; print('e', file=sys.stderr)")
        self.assertEqual((said["status"], said["driver"]["status"], said["driver"]["return_code"]), ("Success", "Finished", 0))
        self.assertEqual([cell["stdout"] for cell in said["cells"]], ["one\n", "", "", ""])
        self.assertEqual(said["cells"][1]["display"], [{"text/plain": "2"}])
        self.assertEqual((said["cells"][2]["error"][0]["ename"], said["cells"][3]["stderr"]), ("ZeroDivisionError", "e\n"))
        self.assertEqual(self.jupyter("x")["cells"][0]["error"][0]["ename"], "NameError")

    def test_cells_files_and_limits(self):
        b64 = lambda data: base64.b64encode(data).decode()
        said = self.jupyter("open('out', 'w').write(open('in').read() + open('/tmp/d/abs').read())",
                            files={"in": b64(b"1"), "/tmp/d/abs": b64(b"2")}, fetch_files=["out", "none"])
        self.assertEqual(said["files"], {"out": b64(b"12")})
        said = self.jupyter("import time; time.sleep(60)", cell_timeout=0.3)
        self.assertEqual((said["status"], said["driver"]["status"]), ("Failed", "TimeLimitExceeded"))
        said = self.jupyter("import os; os._exit(3)", "1")
        self.assertEqual((said["status"], said["driver"]["return_code"]), ("Failed", 3))
        for body in ({}, {"cells": []}, {"cells": [1]}, {"cells": ["1"], "kernel": "R"}, {"cells": ["1"], "cell_timeout": -1}):
            self.assertEqual(self.daemon.request("POST", "/run_jupyter", body).status, 422, body)
        self.assertEqual(self.daemon.request("POST", "/run_jupyter", {"cells": ["1"]}, owner=False).status, 401)


if __name__ == "__main__":
    FunctionCase.bin_dir = sys.argv.pop(1)
    unittest.main()
