"""Everything that a sandbox daemon and its containerd hold on the host, counted, so that two moments can be compared."""

import collections
import os
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import processes  # noqa: E402

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


# Parents, by pid.
def _parents():
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                # The name may contain anything but ends with the last parenthesis.
                found[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended
    return found


# Processes that name one of `directories` in their command line, and all below them.
def processes_of(directories):
    found, parents = set(processes.naming(*directories)), _parents()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _namespaces(pids):
    own = {os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES}
    seen = set()
    for pid in pids:
        for kind in NAMESPACES:
            try:
                seen.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue  # it ended
    return collections.Counter(link.split(":")[0] for link in seen - own)


# Groups below those of ours in which `pids` are, or were when this was last asked.
class Cgroups:
    def __init__(self):
        self.marks = set()
        with open("/proc/self/mountinfo") as file:
            self.trees = [line.split()[4] for line in file if line.split(" - ")[1].startswith("cgroup")]

    def count(self, pids):
        for pid in pids:
            try:
                with open(f"/proc/{pid}/cgroup") as file:
                    self.marks.update(part for line in file for part in line.strip().split("/") if part.startswith("reprise-"))
            except OSError:
                continue  # it ended
        return sum(any(mark in path.split("/") for mark in self.marks) for tree in self.trees for path, _, _ in os.walk(tree))


def _containerd(address, *words):
    done = subprocess.run(["ctr", "--address", address, "namespaces", "ls", "-q"], capture_output=True, text=True)
    return sum(len(subprocess.run(["ctr", "--address", address, "-n", space, *words], capture_output=True,
                                  text=True).stdout.split("\n")) - 1 for space in done.stdout.split())


# What is there now. `daemon`: pid of sandboxd; `directories`: its state and its containerd's; `address`: containerd's, or "";
# `cgroups`: the same object every time.
def take(daemon, directories, address, cgroups):
    pids = processes_of(directories)
    with open("/proc/self/mountinfo") as file:
        mounts = sum(any(directory in line for directory in directories) for line in file)
    workers = os.path.join(directories[0], "sandboxd", "function", "workers")
    count = {
        "processes": len(pids),
        "mounts": mounts,
        "cgroups": cgroups.count(pids),
        "descriptors of sandboxd": len(os.listdir(f"/proc/{daemon}/fd")),
        "run directories": len(os.listdir(workers)) if os.path.isdir(workers) else 0,
    }
    for kind, number in sorted(_namespaces(pids).items()):
        count[f"{kind} namespaces"] = number
    if address:
        for what, words in (("containers", ("containers", "ls", "-q")), ("tasks", ("tasks", "ls", "-q")),
                            ("snapshots", ("snapshots", "ls")), ("leases", ("leases", "ls", "-q"))):
            count[f"containerd's {what}"] = _containerd(address, *words)
    return count


def memory_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
