"""SandboxFusion's /run_code: verdicts of real programs, as verl's client reads them."""

import base64
import concurrent.futures
import sys
import unittest

from function_case import FunctionCase


class RunCode(FunctionCase):
    flags = ()

    def run_code(self, language, code, **fields):
        reply = self.daemon.request("POST", "/run_code", {"language": language, "code": code, **fields})
        self.assertEqual(reply.status, 200, reply.body)
        return reply.json()

    def test_ping(self):
        reply = self.daemon.request("GET", "/v1/ping", owner=False)
        self.assertEqual((reply.status, reply.json()), (200, "pong"))

    def test_python_success(self):
        verdict = self.run_code("python", "import sys\nprint(int(input()) * 2)\nprint('warn', file=sys.stderr)",
                                stdin="21\n")
        self.assertEqual(verdict["status"], "Success", verdict)
        self.assertIsNone(verdict["compile_result"])
        run = verdict["run_result"]
        self.assertEqual((run["status"], run["return_code"], run["stdout"], run["stderr"]),
                         ("Finished", 0, "42\n", "warn\n"))
        self.assertGreater(run["execution_time"], 0)

    def test_runtime_error(self):
        verdict = self.run_code("python", "print('before')\nraise ValueError('x')")
        self.assertEqual((verdict["status"], verdict["run_result"]["status"]), ("Failed", "Finished"))
        self.assertEqual(verdict["run_result"]["return_code"], 1)
        self.assertEqual(verdict["run_result"]["stdout"], "before\n")
        self.assertIn("ValueError: x", verdict["run_result"]["stderr"])

    def test_time_limit(self):
        verdict = self.run_code("python", "print('on', flush=True)\nwhile True: pass", run_timeout=1)
        run = verdict["run_result"]
        self.assertEqual((verdict["status"], run["status"], run["stdout"]),
                         ("Failed", "TimeLimitExceeded", "on\n"))
        self.assertGreaterEqual(run["execution_time"], 1)

    def test_compiled(self):
        verdict = self.run_code("cpp", "#include <iostream>\nint main(){std::cout<<\"hi\\n\";}")
        self.assertEqual(verdict["status"], "Success", verdict)
        self.assertEqual(verdict["compile_result"]["return_code"], 0)
        self.assertEqual(verdict["run_result"]["stdout"], "hi\n")

    def test_compile_error(self):
        verdict = self.run_code("c", "int main(){ return x; }")
        self.assertEqual(verdict["status"], "Failed")
        self.assertNotEqual(verdict["compile_result"]["return_code"], 0)
        self.assertIn("'x' undeclared", verdict["compile_result"]["stderr"].replace("‘", "'").replace("’", "'"))
        self.assertIsNone(verdict["run_result"])

    def test_compile_time_limit(self):
        verdict = self.run_code("c", "int main(){}", compile_timeout=0.001)
        self.assertEqual((verdict["status"], verdict["compile_result"]["status"]),
                         ("Failed", "TimeLimitExceeded"))
        self.assertIsNone(verdict["run_result"])

    def test_signals_and_exit_codes_are_told_apart(self):
        verdict = self.run_code("c", "#include <stdlib.h>\nint main(){ abort(); }")
        self.assertEqual(verdict["run_result"]["return_code"], -6)
        verdict = self.run_code("bash", "exit 134")
        self.assertEqual((verdict["status"], verdict["run_result"]["return_code"]), ("Failed", 134))
        self.assertEqual(verdict["run_result"]["stderr"], "")

    def test_memory_limit(self):
        verdict = self.run_code("python", "x = bytearray(1 << 30)\nfor i in range(0, 1 << 30, 4096): x[i] = 1",
                                memory_limit_MB=200)
        self.assertEqual((verdict["status"], verdict["run_result"]["status"]), ("Failed", "Finished"))
        self.assertNotEqual(verdict["run_result"]["return_code"], 0)

    def test_output_without_end(self):
        verdict = self.run_code("bash", "yes", run_timeout=20)
        self.assertEqual(verdict["status"], "Failed")
        self.assertIn("output limit", verdict["message"])

    def test_a_program_that_kills_everything_is_its_own_fault(self):
        verdict = self.run_code("bash", "kill -9 -1")
        self.assertEqual(verdict["status"], "Failed", verdict)
        self.assertNotEqual(verdict["run_result"]["return_code"], 0)

    def test_files(self):
        verdict = self.run_code(
            "bash", "cat in/a /tmp/b; printf '\\0\\1' > out; echo deep > /tmp/c",
            files={"in/a": base64.b64encode(b"A").decode(), "/tmp/b": base64.b64encode(b"B").decode(), "n": None},
            fetch_files=["out", "/tmp/c", "missing"])
        self.assertEqual((verdict["status"], verdict["run_result"]["stdout"]), ("Success", "AB"))
        self.assertEqual({k: base64.b64decode(v) for k, v in verdict["files"].items()},
                         {"out": b"\0\1", "/tmp/c": b"deep\n"})

    def test_nodejs(self):
        verdict = self.run_code("nodejs", "console.log([1,2].map(x => x + 1).join())")
        if "not installed" in verdict["message"]:
            self.skipTest(verdict["message"])
        self.assertEqual((verdict["status"], verdict["run_result"]["stdout"]), ("Success", "2,3\n"))

    def test_requests_that_cannot_work(self):
        for body in ({"code": "x"}, {"code": "x", "language": "klingon"}, {"code": 1, "language": "bash"},
                     {"code": "x", "language": "bash", "files": {"a": "%%%"}},
                     {"code": "x", "language": "bash", "files": {"../a": ""}},
                     {"code": "x", "language": "bash", "run_timeout": -1}, [1]):
            reply = self.daemon.request("POST", "/run_code", body)
            self.assertEqual(reply.status, 422, (body, reply.body))
            self.assertIsInstance(reply.json()["detail"], str)
        self.assertEqual(self.daemon.request("POST", "/run_code", "{").status, 422)
        self.assertEqual(self.daemon.request("POST", "/run_code", {}, owner=False).status, 401)
        basic = base64.b64encode(f"any:{self.daemon.token}".encode()).decode()
        reply = self.daemon.request("POST", "/run_code", {"language": "bash", "code": "echo basic"},
                                    headers={"Authorization": "Basic " + basic}, owner=False)
        self.assertEqual(reply.json()["run_result"]["stdout"], "basic\n")

    def test_a_retry_runs_nothing_twice(self):
        body = {"language": "bash", "code": "date +%N"}
        headers = {"X-Request-ID": "retry-1"}
        first = self.daemon.request("POST", "/run_code", body, headers)
        again = self.daemon.request("POST", "/run_code", body, headers)
        self.assertEqual(first.json(), again.json())
        self.assertNotIn("x-reprise-replayed", first.headers)
        self.assertEqual(again.headers["x-reprise-replayed"], "true")
        other = self.daemon.request("POST", "/run_code", {**body, "code": "true"}, headers)
        self.assertEqual(other.status, 409)
        self.assertIn("divergence", other.json()["message"])

    def test_many_at_once(self):
        def one(i):
            return self.run_code("bash", f"echo {i}", run_timeout=60)["run_result"]["stdout"]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            self.assertEqual(list(pool.map(one, range(64))), [f"{i}\n" for i in range(64)])


if __name__ == "__main__":
    FunctionCase.bin_dir = sys.argv.pop(1)
    unittest.main(verbosity=2)
