"""A daemon with a container image for the SDK scripts, and a list of checks that is printed as it goes."""

import contextlib
import os
import subprocess
import sys
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration/http"))

import containers  # noqa: E402
from daemon import Daemon  # noqa: E402


class Checks:
    def __init__(self):
        self.failed = 0

    def __call__(self, name, work):
        try:
            work()
            print(f"ok      {name}")
        except Exception as error:
            self.failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
            traceback.print_exc()


# Gives (daemon, template of the container tier or None).
@contextlib.contextmanager
def served(bin_dir):
    reason = containers.why_not()
    containerd = None if reason else containers.Containerd()
    if reason:
        print(f"skipped the container tier: {reason}")
    daemon = Daemon(bin_dir, "--containerd", containerd.address if containerd else "")
    try:
        if containerd:
            subprocess.run([os.path.join(bin_dir, "reprise"), "image", "import", "base", containerd.root, "--server",
                            f"unix:{daemon.state}/sandboxd.sock"], check=True, stdout=subprocess.DEVNULL)
        yield daemon, "base" if containerd else None
        for box in daemon.request("GET", "/sandboxes").json():
            daemon.request("DELETE", f"/sandboxes/{box['sandboxID']}")
    finally:
        daemon.close()
        if containerd:
            containerd.close()
