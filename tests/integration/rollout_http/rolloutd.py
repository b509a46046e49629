"""A rolloutd of its own for a test, serving the tiny model over HTTP."""

import os
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from daemon_process import ROOT, DaemonProcess, dashboard_families  # noqa: E402,F401

MODEL = os.path.join(ROOT, "examples/tiny-v4")


# A file of the model's directory.
def read(path):
    with open(os.path.join(MODEL, path)) as file:
        return file.read()


class Rolloutd(DaemonProcess):
    def __init__(self, bin_dir, *flags):
        super().__init__(bin_dir, "rolloutd", "listening on",
                         ("--model", MODEL, "--thinking", "chat", "--threads", "2", *flags))

    def post(self, path, body, **headers):
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    # What the command says, as JSON.
    def reprise(self, *words):
        done = subprocess.run([os.path.join(self.bin_dir, "reprise"), *words, "--json", "--server",
                               f"unix:{self.state}/rolloutd.sock"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
