"""sandboxd's HTTP port: create and first command through E2B's SDK beside the SDK's own floor (a server that only answers),
/run_code beside the native API, streams and files in MB/s, and what idle connections cost. Ratios of one run count.

    tests/bench/run http_port        REPRISE_PYTHON names a Python with the package e2b; without it the SDK's part is left out
"""

import argparse
import asyncio
import base64
import concurrent.futures
import http.client
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../integration/http"))
from daemon import Daemon  # noqa: E402

KEY = "e2b_" + "0" * 40


def percentiles(seconds):
    ordered = sorted(seconds)
    at = lambda q: 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]
    return at(0.5), at(0.95), at(0.99)


# Seconds of each create + first command; `gap` seconds between two starts, `at_once` of them under way.
async def creates(url, key, count, at_once, gap):
    os.environ.update(E2B_API_URL=url, E2B_SANDBOX_URL=url, E2B_API_KEY=key)
    from e2b import AsyncSandbox
    took, errors, room = [], [], asyncio.Semaphore(at_once)

    async def one(number):
        await asyncio.sleep(number * gap)
        async with room:
            begin = time.perf_counter()
            try:
                box = await AsyncSandbox.create("any@function", timeout=600, request_timeout=600)
                await box.commands.run("echo ok", timeout=600, request_timeout=600)
                took.append(time.perf_counter() - begin)
                await box.kill(request_timeout=600)
            except Exception as error:  # counted, not hidden
                errors.append(error)
    await asyncio.gather(*(one(number) for number in range(count)))
    return took, errors


def sdk(daemon):
    try:
        import e2b  # noqa: F401
    except ImportError:
        print("SDK: left out, REPRISE_PYTHON has no package e2b")
        return
    floor = subprocess.Popen([sys.executable, os.path.join(HERE, "floor.py")], stdout=subprocess.PIPE, text=True)
    floor_url = f"http://127.0.0.1:{int(floor.stdout.readline())}"
    try:
        print(f"{'create + first command, ms':34}{'p50':>8}{'p95':>8}{'p99':>8}   floor{'p50':>8}{'p95':>8}{'p99':>8}   p50 ratio")
        for name, count, at_once, gap in (("sequential, 30", 30, 1, 0), ("staggered, 100 at 20/s", 100, 100, 0.05),
                                          ("burst of 100", 100, 100, 0), ("burst of 1000", 1000, 1000, 0)):
            ours, errors = asyncio.run(creates(daemon.url, daemon.token, count, at_once, gap))
            least, _ = asyncio.run(creates(floor_url, KEY, count, at_once, gap))
            mine, base = percentiles(ours), percentiles(least)
            print(f"{name:34}{mine[0]:8.0f}{mine[1]:8.0f}{mine[2]:8.0f}        {base[0]:8.0f}{base[1]:8.0f}{base[2]:8.0f}"
                  f"{mine[0] / base[0]:12.1f}" + (f"   {len(errors)} failed: {errors[0]!r}" if errors else ""))
    finally:
        floor.terminate()
        floor.wait()


def run_code(daemon, bin_dir, count=400, threads=8):
    def some(number):
        connection = http.client.HTTPConnection(*daemon.address, timeout=600)
        for _ in range(count // threads):
            connection.request("POST", "/run_code", json.dumps({"code": "echo ok", "language": "bash"}),
                               {"X-API-Key": daemon.token, "Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            assert answer["status"] == "Success", answer
        connection.close()
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, range(threads)))
    over_http = count / (time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = os.path.join(scratch, "jobs.jsonl")
        with open(jobs, "w") as file:
            for number in range(count):
                file.write(json.dumps({"id": f"j{number}", "argv": ["bash", "-c", "echo ok"]}) + "\n")
        begin = time.perf_counter()
        subprocess.run([os.path.join(bin_dir, "reprise"), "bulk", "run", jobs, "--tier", "function", "--parallel",
                        str(threads), "--out", os.path.join(scratch, "out"), "--server",
                        f"unix:{daemon.state}/sandboxd.sock"], check=True, stdout=subprocess.DEVNULL)
        native = count / (time.perf_counter() - begin)
    print(f"/run_code, {threads} at a time: {over_http:.0f}/s; the same commands by reprise bulk (gRPC): {native:.0f}/s; "
          f"ratio {over_http / native:.2f}")


def streams(daemon, megabytes=64):
    made = daemon.request("POST", "/v2/sandboxes", {"templateID": "any@function"}).json()
    payload = json.dumps({"process": {"cmd": "head", "args": ["-c", str(megabytes << 20), "/dev/zero"]}}).encode()
    connection = http.client.HTTPConnection(*daemon.address, timeout=600)
    begin = time.perf_counter()
    connection.request("POST", "/process.Process/Start", struct.pack(">BI", 0, len(payload)) + payload, {
        "E2b-Sandbox-Id": made["sandboxID"], "X-Access-Token": made["envdAccessToken"],
        "Content-Type": "application/connect+json"})
    response = connection.getresponse()
    total = 0
    while len(head := response.read(5)) == 5:
        flags, size = struct.unpack(">BI", head)
        message = json.loads(response.read(size))
        total += len(base64.b64decode(message.get("event", {}).get("data", {}).get("stdout", "")))
        if flags & 2:
            break
    seconds = time.perf_counter() - begin
    assert total == megabytes << 20, total
    print(f"output of a process, Connect JSON, journal included: {megabytes / seconds:.0f} MB/s")


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


def idle(daemon, count=10000):
    before = resident(daemon.process.pid)
    ask = b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n"
    sockets = []
    begin = time.perf_counter()
    try:
        for _ in range(count):
            connection = socket.create_connection(daemon.address, timeout=60)
            connection.sendall(ask)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            sockets.append(connection)
        seconds = time.perf_counter() - begin
        during = resident(daemon.process.pid)
        begin = time.perf_counter()
        assert daemon.request("GET", "/v1/ping").status == 200
        print(f"{count} idle connections: {during - before:.0f} MiB more resident ({before:.0f} -> {during:.0f}), "
              f"{1024 * (during - before) / count:.1f} KiB each; opened in {seconds:.1f} s; one more answers in "
              f"{1000 * (time.perf_counter() - begin):.1f} ms")
    finally:
        for connection in sockets:
            connection.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", required=True)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the daemon's, too
    daemon = Daemon(args.bin, "--containerd", "")
    try:
        if not daemon.function_tier():
            print("left out: the function tier is not usable on this host")
            return
        idle(daemon, min(10000, hard - 200))
        run_code(daemon, args.bin)
        streams(daemon)
        sdk(daemon)
    finally:
        daemon.close()


if __name__ == "__main__":
    main()
