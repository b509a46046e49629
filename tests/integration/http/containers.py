"""A containerd of a test's own, and a small root file system with bash, for tests of the container tier."""

import os
import shutil
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("containerd", "runc", "busybox", "bash")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CONFIG = """version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{0}/containerd.sock"
"""


def why_not():
    if os.geteuid() != 0:
        return "containers need root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"{missing[0]} is not installed" if missing else ""


def make_root(directory):
    for part in ("bin", "etc", "tmp", "root", "work", "proc", "sys", "dev"):
        os.makedirs(os.path.join(directory, part), exist_ok=True)
    os.chmod(os.path.join(directory, "tmp"), 0o1777)
    busybox = shutil.which("busybox", path=PATH)
    shutil.copy(busybox, os.path.join(directory, "bin/busybox"))
    for applet in subprocess.check_output([busybox, "--list"], text=True).split():
        if applet != "busybox":
            os.symlink("busybox", os.path.join(directory, "bin", applet))
    for program in ("bash", "install"):  # which Debian's busybox has not
        path = shutil.which(program, path=PATH)
        shutil.copy(path, os.path.join(directory, "bin", program))
        for word in subprocess.check_output(["ldd", path], text=True).split():
            if word.startswith("/"):
                target = directory + word
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy(word, target)
    for name, text in (("passwd", "root:x:0:0:root:/root:/bin/bash\n"), ("group", "root:x:0:\n")):
        with open(os.path.join(directory, "etc", name), "w") as file:
            file.write(text)


class Containerd:
    def __init__(self):
        self.scratch = tempfile.mkdtemp(prefix="reprise-containerd-")
        os.chmod(self.scratch, 0o711)
        self.address = os.path.join(self.scratch, "containerd.sock")
        config = os.path.join(self.scratch, "config.toml")
        with open(config, "w") as file:
            file.write(CONFIG.format(self.scratch))
        self.log = open(os.path.join(self.scratch, "log"), "w")
        self.process = subprocess.Popen([shutil.which("containerd", path=PATH), "--config", config],
                                        stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise RuntimeError("containerd did not start")
            time.sleep(0.02)  # between two looks
        self.root = os.path.join(self.scratch, "image")
        make_root(self.root)

    def _answers(self):
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.address)
            return True
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
