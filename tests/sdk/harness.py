"""A daemon with a container image for the SDK scripts, and a list of checks that is printed as it goes."""

import contextlib
import importlib.metadata
import json
import os
import sys
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration/http"))

import containers  # noqa: E402
from daemon import Daemon  # noqa: E402


# Prints each check as it goes. Where REPRISE_SDK_RESULTS names a file, the end adds a line of JSON to it.
class Checks:
    def __init__(self, package):
        self.package = package
        self.failed = 0
        self.results = []

    def __call__(self, name, work):
        try:
            work()
            self.results.append([name, "yes"])
            print(f"ok      {name}")
        except Exception as error:
            self.failed += 1
            self.results.append([name, f"no: {type(error).__name__}"])
            print(f"FAILED  {name}: {type(error).__name__}: {error}")
            traceback.print_exc()


    # What this version of the package does not have.
    def absent(self, name):
        self.results.append([name, "not in this version"])
        print(f"absent  {name}")

    # The exit status of the script.
    def end(self):
        path = os.environ.get("REPRISE_SDK_RESULTS")
        if path:
            with open(path, "a") as file:
                file.write(json.dumps({"package": self.package, "version": importlib.metadata.version(self.package),
                                       "results": self.results}) + "\n")
        return 1 if self.failed else 0


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
            daemon.import_image("base", containerd.root)
        yield daemon, "base" if containerd else None
        for box in daemon.request("GET", "/sandboxes").json():
            daemon.request("DELETE", f"/sandboxes/{box['sandboxID']}")
    finally:
        daemon.close()
        if containerd:
            containerd.close()
