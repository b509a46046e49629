"""What killed daemons may leave behind: helper processes, cgroups, mounts, run directories.

Everything of a run is known by its scratch directory: it stands in the command line of every helper, and the helpers that
live tell the cgroups that were made for them.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import processes  # noqa: E402

_GROUP_PREFIX = "reprise-fn-"
_END_S = 15  # for what ends by itself to have ended


def processes_of(directory: Path) -> dict[int, str]:
    """Processes whose command line names `directory`, this one left out."""
    return processes.naming(str(directory))


def groups_of(directory: Path) -> set[str]:
    """Names of the cgroups under which helpers of `directory` run now."""
    names = set()
    for pid in processes_of(directory):
        try:
            lines = Path("/proc", str(pid), "cgroup").read_text(encoding="utf-8").split("\n")
        except OSError:
            continue
        names |= {part for line in lines for part in line.split("/") if part.startswith(_GROUP_PREFIX)}
    return names


def wait_for_helpers(directory: Path) -> dict[int, str]:
    """Waits until the helpers that end with their daemon have ended; returns those that did not."""
    deadline = time.monotonic() + _END_S
    while (left := processes_of(directory)) and time.monotonic() < deadline:
        _wait_for_one(next(iter(left)), deadline)
    return left


def kill_all(directory: Path) -> None:
    """Ends, by pid, what a failed run left behind."""
    for pid in processes_of(directory):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def find(directory: Path, groups: set[str]) -> list[str]:
    """One line for each thing that is still there."""
    lines = [f"process {pid}: {line}" for pid, line in wait_for_helpers(directory).items()]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    lines += [f"mount {line.split()[4]}" for line in mounts if str(directory) in line]
    for line in mounts:
        if line.split(" - ")[1].startswith("cgroup"):
            for path, names, _ in os.walk(line.split()[4]):
                lines += [f"cgroup {path}/{name}" for name in names if name in groups]
    for workers in directory.glob("**/function/workers"):
        lines += [f"run directory {entry}" for entry in sorted(workers.iterdir())]
    return lines


def _wait_for_one(pid: int, deadline: float) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(pidfd)
