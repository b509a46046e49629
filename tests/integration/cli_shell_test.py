"""`reprise sandbox shell` and `exec --tty` on a real terminal: size, resize, Ctrl-C, exit code, and the terminal as it was."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "http"))

from function_case import FunctionCase  # noqa: E402

BIN_DIR = sys.argv.pop(1)
REPRISE = os.path.join(BIN_DIR, "reprise")
WAIT_S = 60


class Terminal:
    """The command on a terminal of 30 rows and 100 columns."""

    def __init__(self, *argv):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            os.environ["TERM"] = "vt100"
            os.execv(argv[0], argv)
        self.seen = b""

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.fd, keys)

    # Reads until `text` was shown, or to the end; what came up to there is forgotten.
    def until(self, text):
        deadline = time.monotonic() + WAIT_S
        while text is None or text not in self.seen:
            if not select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come; there is {self.seen!r}")
            try:
                piece = os.read(self.fd, 65536)
            except OSError:  # nobody has the terminal any more
                piece = b""
            if not piece and text is None:
                break
            if not piece:
                raise AssertionError(f"{text!r} did not come; there is {self.seen!r}")
            self.seen += piece
        shown = self.seen
        self.seen = shown[shown.index(text) + len(text):] if text is not None else b""
        return shown

    def end(self):
        shown = self.until(None)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), shown

    def settings(self):
        return termios.tcgetattr(self.fd)


class Shell(FunctionCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = ("--server", f"unix:{cls.daemon.state}/sandboxd.sock")
        subprocess.run([REPRISE, "sandbox", "create", "--tier", "function", "--id", "box", "--env", "PS1=$ ", *cls.server],
                       check=True, stdout=subprocess.DEVNULL)

    def test_a_shell(self):
        # A shell here holds the terminal, so that its settings can be looked at after the command.
        outer = Terminal("/bin/sh", "-c", f"{REPRISE} sandbox shell box {' '.join(self.server)} -- sh -i; echo code=$?; read x")
        before = outer.settings()
        outer.type(b"stty size; echo $TERM; tty\n")
        outer.until(b"30 100\r\nvt100\r\n/dev/pts/0\r\n")
        self.assertFalse(outer.settings()[3] & termios.ECHO, "raw while the shell has it")
        outer.resize(40, 120)
        outer.type(b"sh -c 'echo u\"p\"; exec sleep 600'\n")
        outer.until(b"up\r\n")
        outer.type(b"\x03echo code $?\n")
        outer.until(b"code 130\r\n")
        # The new size is on its way by another thread.
        deadline = time.monotonic() + WAIT_S
        size = b""
        while size != b"40 120":
            self.assertLess(time.monotonic(), deadline, size)
            outer.type(b"echo si\"z\"e=$(stty size)=\n")
            outer.until(b"size=")
            size = outer.until(b"=\r\n").split(b"=")[0]
        outer.type(b"exit 5\n")
        outer.until(b"code=5\r\n")
        self.assertEqual(outer.settings(), before)
        outer.type(b"\n")
        self.assertEqual(outer.end()[0], 0)

    def test_exec_on_a_terminal_and_its_replay(self):
        argv = [REPRISE, "sandbox", "exec", "--tty", "box", *self.server, "--call-id", "t1", "--", "sh", "-c",
                "tty; stty size; date +%N; exit 3"]
        code, shown = Terminal(*argv).end()
        self.assertEqual(code, 3)
        self.assertTrue(shown.replace(b"\r\r", b"\r").startswith(b"/dev/pts/0\r\n30 100\r\n"), shown)
        self.assertEqual(Terminal(*argv).end(), (3, shown))
        # Without a terminal of its own it takes the usual size, and input ends as it does by Ctrl-D.
        done = subprocess.run([REPRISE, "sandbox", "exec", "-t", "-i", "box", *self.server, "--", "sh", "-c", "stty size; cat"],
                              input=b"typed\n", capture_output=True, timeout=WAIT_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"24 80\r\n", done.stdout)
        self.assertTrue(done.stdout.endswith(b"typed\r\ntyped\r\n") or done.stdout.count(b"typed\r\n") == 2, done.stdout)

    def test_a_function_sandbox_has_no_files_to_watch(self):
        done = subprocess.run([REPRISE, "sandbox", "watch", "box", "/work", *self.server], capture_output=True, text=True,
                              timeout=WAIT_S)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("keeps nothing between its calls", done.stderr)

    def test_a_terminal_that_goes_ends_the_shell(self):
        shell = Terminal(REPRISE, "sandbox", "shell", "box", *self.server, "--call-id", "gone", "--", "sh", "-i")
        shell.type(b"echo re\"ady\"\n")
        shell.until(b"ready\r\n")
        os.close(shell.fd)
        os.waitpid(shell.pid, 0)
        done = subprocess.run([REPRISE, "sandbox", "logs", "box", "gone", "--json", *self.server], capture_output=True,
                              timeout=WAIT_S, check=True)
        self.assertIn(b'"outcome":"cancelled"', done.stdout.replace(b" ", b""))


if __name__ == "__main__":
    FunctionCase.bin_dir = BIN_DIR
    unittest.main()
