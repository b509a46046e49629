"""Makes and ends sandboxes again and again, and wants everything they held back: processes, mounts, cgroups, namespaces,
descriptors, run directories, containerd's objects. The first cycles, in which pools fill, are not compared.

    python3 tests/soak/leaks.py --bin build/release/bin                              10,000 calls, 500 containers, 50 microVMs
    python3 tests/soak/leaks.py --bin build/release/bin --function 300 --container 10 --microvm 2

Every third sandbox ends with a command running in it. Exits with 77 where the host has none of the tiers.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
sys.path.append(os.path.join(ROOT, "tests/integration/http"))
import census  # noqa: E402
import containers  # noqa: E402
from daemon import Daemon  # noqa: E402

SETTLE_S = 60  # for what ends behind a stopped sandbox to have ended
SKIPPED = 77
MEMORY_GROWTH_MAX = 64 << 20  # of sandboxd over a whole tier; its index of calls and sandboxes grows


class Soak:
    def __init__(self, bin_dir):
        self.containerd = None if containers.why_not() else containers.Containerd()
        address = self.containerd.address if self.containerd else ""
        self.daemon = Daemon(bin_dir, "--containerd", address)
        self.cgroups = census.Cgroups()
        self.directories = [self.daemon.state] + ([self.containerd.scratch] if self.containerd else [])
        if self.containerd:
            self.daemon.import_image("base", self.containerd.root)

    def close(self):
        self.daemon.close()
        if self.containerd:
            self.containerd.close()

    def census(self):
        address = self.containerd.address if self.containerd else ""
        return census.take(self.daemon.process.pid, self.directories, address, self.cgroups)

    def function(self, i):
        # Every third is ended by its time limit, with a child of its own.
        code, status = ("sleep 60 & sleep 60", "TimeLimitExceeded") if i % 3 == 2 else ("echo $((6*7))", "Finished")
        reply = self.daemon.request("POST", "/run_code", {"code": code, "language": "bash", "run_timeout": 0.5 if i % 3 == 2 else 60})
        assert reply.status == 200, reply.body
        assert reply.json()["run_result"]["status"] == status, reply.json()

    def box(self, tier, i):
        box = self.daemon.create("base", metadata={"reprise.tier": tier})["sandboxID"]
        server = ("--server", f"unix:{self.daemon.state}/sandboxd.sock")
        words = ["sh", "-c", "sleep 600 & sleep 600"] if i % 3 == 2 else ["sh", "-c", "echo $((6*7))"]
        child = subprocess.Popen([os.path.join(self.daemon.bin_dir, "reprise"), "sandbox", "exec", box, *server, "--", *words],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if i % 3 != 2:
            out, _ = child.communicate(timeout=300)
            assert (child.returncode, out) == (0, "42\n"), (child.returncode, out)
        reply = self.daemon.request("DELETE", f"/sandboxes/{box}", timeout=300)
        assert reply.status == 204, reply.body
        child.communicate(timeout=300)

    # `cycles` of one tier; the lines of what did not come back.
    def run(self, name, cycle, cycles, warm, parallel):
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
            list(pool.map(cycle, range(warm)))
            before, memory = self.settled(None), census.memory_bytes(self.daemon.process.pid)
            list(pool.map(cycle, range(cycles)))
        after = self.settled(before)
        grown = census.memory_bytes(self.daemon.process.pid) - memory
        print(f"{name}: {cycles} cycles in {time.monotonic() - begin:.0f} s; sandboxd's memory grew by {grown / 2**20:.1f} MiB")
        wrong = []
        for what in sorted(set(before) | set(after)):
            was, now = before.get(what, 0), after.get(what, 0)
            print(f"    {what:28}{was:8}{now:8}" + ("" if was == now else "   <- differs"))
            if was != now:
                wrong.append(f"{name}: {what} were {was}, are {now}")
        if grown > MEMORY_GROWTH_MAX:
            wrong.append(f"{name}: sandboxd grew by {grown} bytes")
        return wrong

    # The census once it is `wanted`, or once it is the same for three looks, a second apart.
    def settled(self, wanted):
        looks = [self.census()]
        end = time.monotonic() + SETTLE_S
        while looks[-1] != wanted and time.monotonic() < end:
            if wanted is None and len(looks) >= 3 and looks[-1] == looks[-2] == looks[-3]:
                break
            time.sleep(1)  # between two looks
            looks.append(self.census())
        return looks[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="directory of the built programs")
    parser.add_argument("--function", type=int, default=10000)
    parser.add_argument("--container", type=int, default=500)
    parser.add_argument("--microvm", type=int, default=50)
    options = parser.parse_args()
    soak = Soak(options.bin)
    wrong, ran = [], False
    try:
        usable = {tier["tier"].removeprefix("TIER_").lower(): tier.get("usable", False) for tier in tiers(options.bin, soak.daemon)}
        for name, cycles, cycle, warm, parallel in (
                ("function", options.function, soak.function, 30, 8),
                ("container", options.container, lambda i: soak.box("container", i), 4, 2),
                ("microvm", options.microvm, lambda i: soak.box("microvm", i), 2, 1)):
            if cycles == 0:
                continue
            if not usable.get(name):
                print(f"{name}: left out, this host cannot run it")
                continue
            ran = True
            wrong += soak.run(name, cycle, cycles, warm, parallel)
    finally:
        soak.close()
    left = census.processes_of(soak.directories)
    if left:
        wrong.append(f"after the daemon's end: processes {sorted(left)}")
    for line in wrong:
        print(f"LEFT BEHIND: {line}")
    return 1 if wrong else 0 if ran else SKIPPED


def tiers(bin_dir, daemon):
    done = subprocess.run([os.path.join(bin_dir, "reprise"), "sandbox", "tiers", "--json", "--server",
                           f"unix:{daemon.state}/sandboxd.sock"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
