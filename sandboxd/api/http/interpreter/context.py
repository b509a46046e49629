"""A Python (or, by its argument, a bash) that keeps its state from one piece of code to the next. It runs inside a sandbox, on
the standard library alone.

Each line of its standard input is a request: {"run": ID, "code": TEXT, "env": {...}, "seconds": LIMIT} is run once per ID,
in the order in which they come; {"interrupt": ID} ends one that runs, and drops one that waits. What happens goes to its
standard output as lines "ID EVENT", EVENT being the JSON that E2B's code interpreter sends; "- EVENT" belongs to no run.
What the code itself prints, and what its child processes print, comes through pipes and becomes such events.
"""
import ast
import asyncio
import base64
import builtins
import codecs
import collections
import inspect
import io
import json
import linecache
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
import types

PIECE = 32768  # bytes of one stdout or stderr event, at most
RICH = {"html": "_repr_html_", "markdown": "_repr_markdown_", "svg": "_repr_svg_", "png": "_repr_png_",
        "jpeg": "_repr_jpeg_", "pdf": "_repr_pdf_", "latex": "_repr_latex_", "json": "_repr_json_",
        "javascript": "_repr_javascript_"}


class TimeLimit(BaseException):
    pass


class Events:
    """The lines that go out, from any thread, each of them whole."""

    def __init__(self, fd):
        self.file = os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        self.lock = threading.Lock()
        self.run = "-"

    def send(self, kind, **fields):
        with self.lock:
            self.file.write(f"{self.run} {json.dumps({'type': kind, **fields}, default=str)}\n")
            self.file.flush()


class Pipe:
    """A descriptor whose bytes become events. `drain` returns when all that was written before it has been sent."""

    def __init__(self, fd, kind, events):
        self.fd, self.kind, self.events = fd, kind, events
        self.mark = b"\0" + secrets.token_hex(16).encode() + b"\0"
        self.drained = threading.Event()
        self.read_fd, write_fd = os.pipe()
        os.dup2(write_fd, fd)
        os.close(write_fd)
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        text = codecs.getincrementaldecoder("utf-8")("replace")
        held = b""
        while piece := os.read(self.read_fd, PIECE):
            held += piece
            while (at := held.find(self.mark)) >= 0:
                self.put(text.decode(held[:at], True))
                text.reset()
                held = held[at + len(self.mark):]
                self.drained.set()
            keep = next((n for n in range(min(len(held), len(self.mark) - 1), 0, -1)
                         if self.mark.startswith(held[-n:])), 0)
            self.put(text.decode(held[:len(held) - keep]))
            held = held[len(held) - keep:]

    def put(self, text):
        if text:
            self.events.send(self.kind, text=text, timestamp=time.time_ns())

    def drain(self):
        self.drained.clear()
        os.write(self.fd, self.mark)
        self.drained.wait()


def rich_of(value):
    """What a value shows itself as, by kind."""
    shown = {}
    try:
        shown["text"] = repr(value)
    except Exception as error:
        shown["text"] = f"<{type(value).__name__}: repr failed: {error!r}>"
    for kind, method in RICH.items():
        try:
            made = getattr(value, method)() if not inspect.isclass(value) and hasattr(value, method) else None
        except Exception:
            made = None
        if isinstance(made, tuple):  # with metadata
            made = made[0]
        if isinstance(made, (bytes, bytearray)):
            made = base64.b64encode(made).decode()
        if made is not None:
            shown[kind] = made
    return shown


class Context:
    def __init__(self, events):
        self.events = events
        self.count = 0
        self.module = types.ModuleType("__main__")
        self.module.__dict__.update(__builtins__=builtins, display=self.display, _run_shell=self.shell)
        sys.modules["__main__"] = self.module
        self.names = self.module.__dict__
        self.loop = None
        self.env = {}  # of the run, beside what the process has

    def display(self, *values):
        for value in values:
            self.flush()
            self.events.send("result", **rich_of(value), is_main_result=False)

    @staticmethod
    def flush():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # the code closed it, or put something else there

    @staticmethod
    def shell(command):
        Context.flush()
        subprocess.run(command, shell=True)

    def compiled(self, code, name):
        """The statements, and the last expression when the code ends with one."""
        try:
            tree = ast.parse(code, name)
        except SyntaxError:
            lines = [f"{line[:len(line) - len(line.lstrip())]}_run_shell({line.lstrip()[1:]!r})"
                     if line.lstrip().startswith("!") else line for line in code.split("\n")]
            if "\n".join(lines) == code:
                raise
            tree = ast.parse("\n".join(lines), name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        return [compile(part, name, mode, flags=flags, dont_inherit=True)
                for part, mode in ((tree, "exec"), (last, "eval")) if part is not None]

    def evaluate(self, part):
        value = eval(part, self.names)
        if part.co_flags & inspect.CO_COROUTINE:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                asyncio.set_event_loop(self.loop)
            value = self.loop.run_until_complete(value)
        return value

    def error(self, error, name):
        self.flush()
        shown = error.__traceback__
        while shown is not None and shown.tb_frame.f_code.co_filename != name:
            shown = shown.tb_next
        lines = traceback.format_exception(type(error), error, shown)
        self.events.send("error", name=type(error).__name__, value=str(error), traceback="".join(lines))

    def figures(self):
        pyplot = sys.modules.get("matplotlib.pyplot")
        for number in pyplot.get_fignums() if pyplot else ():
            picture = io.BytesIO()
            figure = pyplot.figure(number)
            figure.savefig(picture, format="png", bbox_inches="tight")
            self.events.send("result", text=repr(figure), png=base64.b64encode(picture.getvalue()).decode(),
                             is_main_result=False)
        if pyplot:
            pyplot.close("all")

    def execute(self, code):
        """Runs one piece of code; False when it ended with an error."""
        self.count += 1
        self.events.send("number_of_executions", execution_count=self.count)
        name = f"<cell {self.count}>"
        linecache.cache[name] = (len(code), None, [line + "\n" for line in code.split("\n")], name)
        try:
            for part in self.compiled(code, name):
                value = self.evaluate(part)
                if value is not None:
                    self.names["_"] = value
                    self.flush()
                    self.events.send("result", **rich_of(value), is_main_result=True)
            self.figures()
        except BaseException as error:  # whatever it is, the state stays
            self.error(error, name)
            return False
        return True


class Bash(Context):
    """The same with a shell, which lives on between the pieces of code."""

    def __init__(self, events):
        super().__init__(events)
        self.process = self.status = None

    def start(self):
        status_fd, write_fd = os.pipe()
        # An interrupt ends what the shell runs, and not the shell.
        self.process = subprocess.Popen(["bash", "--noprofile", "--norc"], stdin=subprocess.PIPE, text=True, bufsize=1,
                                        pass_fds=[write_fd], start_new_session=True)
        self.process.stdin.write("trap : INT\n")
        self.end = write_fd  # where it says how the code ended
        os.close(write_fd)
        self.status = os.fdopen(status_fd)

    def execute(self, code):
        self.count += 1
        self.events.send("number_of_executions", execution_count=self.count)
        try:
            if self.process is None or self.process.poll() is not None:
                self.start()
            names = "".join(f"export {name}={shlex.quote(value)}; " for name, value in self.env.items())
            self.process.stdin.write(f"{names}eval {shlex.quote(code)} </dev/null {self.end}>&-; echo $? >&{self.end}\n")
            said = self.status.readline()
            code = int(said) if said else self.process.wait()
            if code != 0:
                self.events.send("error", name="ExitStatus", value=str(code), traceback=f"exit status {code}")
            return code == 0
        except BaseException as error:
            if self.process is not None:
                os.killpg(self.process.pid, signal.SIGINT)
                self.status.readline()
            self.error(error, "")
            return False


class Requests:
    """Reads requests on a thread of its own, so that an interrupt finds a run wherever it is."""

    def __init__(self, file, main_thread):
        self.file, self.main = file, main_thread
        self.changed = threading.Condition()
        self.waiting, self.seen = collections.deque(), set()
        self.running, self.ended = None, False
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.file:
            request = json.loads(line)
            with self.changed:
                if "interrupt" in request:
                    self.interrupt(request["interrupt"])
                elif request["run"] not in self.seen:
                    self.seen.add(request["run"])
                    self.waiting.append(request)
                self.changed.notify()
        with self.changed:
            self.ended = True
            self.changed.notify()

    def interrupt(self, run):
        for request in self.waiting:
            if request["run"] == run:
                request["code"] = "raise KeyboardInterrupt"
        if self.running == run:
            signal.pthread_kill(self.main, signal.SIGINT)

    def take(self):
        with self.changed:
            self.running = None
            self.changed.wait_for(lambda: self.waiting or self.ended)
            if not self.waiting:
                return None
            request = self.waiting.popleft()
            self.running = request["run"]
            return request

    def done(self):
        with self.changed:
            self.running = None


def standard_streams():
    """Those of the last code may be closed, or others: exit() closes its standard input."""
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
                              for fd in (1, 2))


def main():
    events = Events(os.dup(1))
    requests = Requests(os.fdopen(os.dup(0), encoding="utf-8"), threading.get_ident())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    pipes = [Pipe(1, "stdout", events), Pipe(2, "stderr", events)]
    language = sys.argv[1]
    sys.argv = [""]
    sys.path.insert(0, "")
    os.environ.setdefault("MPLBACKEND", "agg")
    busy = False

    def interrupted(*_):
        if busy:
            raise KeyboardInterrupt

    def limited(*_):
        if busy:
            raise TimeLimit("the time limit of this cell fired")

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGALRM, limited)
    context = Bash(events) if language == "bash" else Context(events)
    events.send("ready")
    while (request := requests.take()) is not None:
        events.run = request["run"]
        standard_streams()
        before = dict(os.environ)
        context.env = request.get("env") or {}
        os.environ.update(context.env)
        try:
            busy = True
            signal.setitimer(signal.ITIMER_REAL, request.get("seconds") or 0)
            context.execute(request["code"])
            busy = False
        except BaseException as error:  # a signal between the code's end and here
            busy = False
            context.error(error, "")
        signal.setitimer(signal.ITIMER_REAL, 0)
        requests.done()
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
        context.flush()
        for pipe in pipes:
            pipe.drain()
        events.send("end_of_execution")
        events.run = "-"


main()
