"""A sandboxd of its own for a test."""

import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from daemon_process import DaemonProcess, Reply, dashboard_families  # noqa: E402,F401


class Daemon(DaemonProcess):
    def __init__(self, bin_dir, *flags, state=None, token=None):
        super().__init__(bin_dir, "sandboxd", "listens on", flags, state, token)

    def owner(self):
        return "X-API-Key", self.token

    # What E2B's create answers.
    def create(self, template, path="/v2/sandboxes", **fields):
        reply = self.request("POST", path, {"templateID": template, **fields})
        assert reply.status == 201, reply.body
        return reply.json()

    # Whether the function tier can be used on this host.
    def function_tier(self):
        reply = self.request("POST", "/run_code", {"code": "true", "language": "bash"})
        return reply.status == 200 and reply.json()["status"] == "Success"
