"""E2B's code interpreter SDK for Python, unmodified: code and contexts on the function tier."""

import base64
import os
import sys

from harness import Checks, served


def equal(a, b):
    assert a == b, f"{a!r} is not {b!r}"


def code(check, box):
    def runs():
        lines, results = [], []
        done = box.run_code("x = 41\nprint('out')\nimport sys; print('err', file=sys.stderr)\nx + 1",
                            on_stdout=lambda message: lines.append(message.line), on_result=results.append)
        equal((done.text, done.logs.stdout, done.logs.stderr, done.error), ("42", ["out\n"], ["err\n"], None))
        equal((lines, results[0].text, done.execution_count), (["out\n"], "42", 1))
    def state():
        equal(box.run_code("x").text, "41")
    def errors():
        error = box.run_code("1/0").error
        equal((error.name, error.value), ("ZeroDivisionError", "division by zero"))
        assert "line 1" in error.traceback
    def rich():
        done = box.run_code("class R:\n  def _repr_html_(self): return '<i>'\n  def _repr_png_(self): return b'1'\n"
                            "  def _repr_json_(self): return {'a': 1}\nR()")
        result = done.results[0]
        equal((result.html, base64.b64decode(result.png), result.json), ("<i>", b"1", {"a": 1}))
        assert result.is_main_result
    def variables():
        equal(box.run_code("import os; os.environ['A']", envs={"A": "1"}).text, "'1'")
    def times_out():
        from e2b import TimeoutException
        try:
            box.run_code("import time; time.sleep(600)", timeout=1)
        except TimeoutException:
            equal(box.run_code("x").text, "41")
        else:
            raise AssertionError("the time limit went unnoticed")
    def shell():
        equal(box.run_code("A=1; echo $A", language="bash").logs.stdout, ["1\n"])
    def contexts():
        context = box.create_code_context(cwd="/tmp")
        equal((context.language, context.cwd), ("python", "/tmp"))
        equal(box.run_code("import os; y = 1; os.getcwd()", context=context).text, "'/tmp'")
        equal(box.run_code("y").error.name, "NameError")
        if not hasattr(box, "list_code_contexts"):
            return
        assert context.id in [each.id for each in box.list_code_contexts()]
        box.restart_code_context(context)
        equal(box.run_code("y", context=context).error.name, "NameError")
        box.remove_code_context(context)
        assert context.id not in [each.id for each in box.list_code_contexts()]
    for work in (runs, state, errors, rich, variables, times_out, shell, contexts):
        check(f"function: code, {work.__name__}", work)


def main():
    check = Checks("e2b-code-interpreter")
    with served(sys.argv[1]) as (daemon, _):
        os.environ.update(E2B_API_URL=daemon.url, E2B_SANDBOX_URL=daemon.url, E2B_API_KEY=daemon.token)
        from e2b_code_interpreter import Sandbox
        if not daemon.function_tier():
            print("skipped: the function tier is not usable on this host")
            return 0
        with Sandbox.create("any@function", timeout=600) as box:
            code(check, box)
    return check.end()


if __name__ == "__main__":
    sys.exit(main())
