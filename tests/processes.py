"""Processes of this host by what stands in their command line: helpers of a daemon name its state directory."""

import os


def naming(*words: str) -> dict[int, str]:
    """Command lines, by pid, that have one of `words` in them; this process is left out."""
    wanted = [os.fsencode(word) for word in words]
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                line = file.read()
        except OSError:
            continue  # it ended
        if int(entry) != os.getpid() and any(word in line for word in wanted):
            found[int(entry)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    return found
