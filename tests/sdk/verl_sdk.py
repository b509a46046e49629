"""verl's client of SandboxFusion, unmodified: only its URL points here, with the token as the URL's password. The rest of verl,
which wants a trainer's packages, is not loaded."""

import importlib.metadata
import importlib.util
import logging
import os
import sys
import threading

from harness import Checks, served

DOUBLE = "print(2 * int(input()))"


# The package verl.utils.reward_score.sandbox_fusion as it was installed, under its last name.
def sandbox_fusion():
    name = "sandbox_fusion"
    path = importlib.metadata.distribution("verl").locate_file("verl/utils/reward_score/sandbox_fusion/__init__.py")
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[os.path.dirname(path)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def equal(a, b):
    assert a == b, f"{a!r} is not {b!r}"


def main():
    client = sandbox_fusion()
    logging.disable(logging.CRITICAL)  # it logs every failure that is wanted here
    check = Checks("verl")
    with served(sys.argv[1]) as (daemon, _):
        host, port = daemon.address
        url = f"http://verl:{daemon.token}@{host}:{port}/run_code"

        def verdicts(code, inputs, outputs, language="python", timeout=10, **more):
            return client.check_correctness(url, {"inputs": inputs, "outputs": outputs, **more}, code, timeout=timeout,
                                            language=language)[0]

        def score(completion, cases, **more):
            return client.compute_score(url, threading.Semaphore(8), 512, completion, cases, **more)[0]

        def right():
            equal(verdicts(DOUBLE, ["1", "21", "-4"], ["2", "42", "-8\n"]), [True] * 3)

        def wrong():
            equal(verdicts(DOUBLE, ["1", "2"], ["2", "5"]), [True, False])

        def fails():
            equal(verdicts("print(1 // int(input()))", ["1", "0"], ["1", ""]), [True, -2])

        def late():
            equal(verdicts("while True: pass", ["", ""], ["", ""], timeout=1), [-3, -3])

        def function():
            solution = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
            equal(verdicts(solution, ["1\n2", "[1]\n[2]"], ["3", "[1, 2]"], fn_name="add"), [True, True])

        def asserts():
            equal(verdicts("def double(x):\n    return 2 * x\n", ["", ""], [None, None],
                           assert_case=["assert double(2) == 4", "assert double(2) == 5"]), [True, -2])

        def compiles():
            code = "#include <iostream>\nint main() { int x; std::cin >> x; std::cout << 2 * x << std::endl; }\n"
            equal(verdicts(code, ["4"], ["8"], "cpp", 30), [True])
            equal(verdicts("int main() { return x; }", ["4", "5"], ["8", "10"], "cpp", 30), [-4, -4])

        def shell():
            equal(verdicts("read x; echo $((2 * x))", ["4"], ["8"], "bash"), [True])

        def memory():
            code = "x = bytearray(1 << 30)\nprint(len(x))"
            results, told = client.check_correctness(url, {"inputs": [""], "outputs": [str(1 << 30)]}, code, memory_limit_mb=128)
            assert results[0] in (-1, -2), (results, told)

        def unicode():
            equal(verdicts("print(input()[::-1])", ["äöü 漢字"], ["字漢 üöä"]), [True])

        def scores():
            cases = {"inputs": ["1", "2", "3", "4"], "outputs": ["2", "4", "6", "9"]}
            equal(score(f"So:\n```python\n{DOUBLE}\n```", cases), 0.75)
            equal(score(f"So:\n```python\n{DOUBLE}\n```", cases, continuous=True), 0.75)
            equal(score("no code", cases), 0.0)

        def many():
            numbers = range(100)
            equal(score(f"```python\n{DOUBLE}\n```", {"inputs": [str(n) for n in numbers],
                                                      "outputs": [str(2 * n) for n in numbers]}), 1.0)

        def unknown():
            equal(verdicts("x", [""], [""], "racket"), [-1])

        def refused():
            results, told = client.check_correctness(f"{daemon.url}/run_code", {"inputs": [""], "outputs": [""]}, "1")
            equal(results, [-1])
            assert "401" in told[0]["api_request_error"], told

        for name, work in (("right answers", right), ("wrong answers", wrong), ("runtime errors", fails), ("time limits", late),
                           ("a function of a class", function), ("asserts", asserts), ("compiled languages", compiles),
                           ("shell", shell), ("memory limits", memory), ("unicode", unicode), ("compute_score", scores),
                           ("a hundred cases at once", many), ("a language that is not there", unknown),
                           ("without a token", refused)):
            check(name, work)
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
