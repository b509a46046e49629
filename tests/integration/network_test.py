"""The network of sandboxes: what a policy lets through and what not, changed while calls run, kept through a SIGKILL of
the daemon, gone without a trace. The internet and the host are network namespaces of the test (network_internet.py)."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "http"))

import containers  # noqa: E402
import network_internet as internet  # noqa: E402
from daemon_process import DaemonProcess  # noqa: E402

BIN_DIR = sys.argv.pop(1)
WAIT_S = 60
HOST_PORT = 8123  # served by "the host" on all its addresses, in its own namespace

# Runs inside: a line of answer for each argument "tcp HOST PORT", "udp HOST PORT" or "name HOST 0".
PROBE = r"""
import socket, sys
socket.setdefaulttimeout(5)
def tcp(host, port):
    with socket.create_connection((host, port)) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return s.makefile("rb").read().split(b"\r\n\r\n")[-1].decode() or "nothing"
def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.connect((host, port))
        answers = []
        for text in (b"one", b"two"):
            s.send(text)
            answers.append(s.recv(100).decode())
        return " ".join(answers)
def name(host, port):
    return ",".join(sorted(socket.gethostbyname_ex(host)[2]))
for line in sys.argv[1:]:
    kind, host, port = line.split()
    try:
        print({"tcp": tcp, "udp": udp, "name": name}[kind](host, int(port)))
    except socket.gaierror:
        print("no name")
    except ConnectionError:
        print("refused")
    except TimeoutError:
        print("silence")
    except OSError as error:
        print("no network")
"""
# Prints what a stream brings until it ends, and how it ended.
STREAM = r"""
import socket, sys
s = socket.create_connection(("good.example", 80))
s.sendall(b"TICK\r\n")
try:
    for line in s.makefile("r"):
        print(line.strip(), flush=True)
    print("closed", flush=True)
except ConnectionError:
    print("cut", flush=True)
if "stay" in sys.argv:
    sys.stdin.read()
sys.exit(7)
"""


def serve_host():
    listener = socket.create_server(("", HOST_PORT))
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(b"HTTP/1.0 200 OK\r\n\r\nthe host")


def setUpModule():
    unittest.addModuleCleanup(internet.Internet().close)
    threading.Thread(target=serve_host, daemon=True).start()


class Sandboxd(DaemonProcess):
    def __init__(self, containerd=""):
        super().__init__(BIN_DIR, "sandboxd", "sandboxd listens on",
                         ["--resolver", internet.DNS_ADDRESS, "--containerd", containerd, "--qemu", "",
                          "--function-pool", "2"])

    def command(self, *words):
        return [os.path.join(self.bin_dir, "reprise"), "sandbox", words[0], "--state", self.state, *words[1:]]

    def run(self, *words):
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=WAIT_S)

    def json(self, *words):
        done = self.run(*words, "--json")
        assert done.returncode == 0, (words, done.stderr)
        return json.loads(done.stdout)


# Processes of this test's network namespaces that are called so.
def gates():
    mine = os.readlink("/proc/self/ns/net")
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as name:
                is_gate = name.read().strip() == "reprise-netgate"
            if is_gate and os.readlink(f"/proc/{pid}/ns/net") == mine:
                found.append(int(pid))
        except OSError:
            pass  # gone meanwhile
    return found


class Case(unittest.TestCase):
    create_options = ()

    # Skips where the daemon's tier has no network.
    @classmethod
    def use(cls, daemon, tier):
        cls.daemon = daemon
        cls.addClassCleanup(daemon.close)
        info = {each["tier"]: each for each in daemon.json("tiers")}[tier]
        if not info["usable"] or info["verbs"]["network"] != "yes":
            raise unittest.SkipTest(info["reason"] if not info["usable"] else info["verbs"]["network"])

    def create(self, *options):
        return self.daemon.json("create", *self.create_options, *options)["id"]

    def network(self, box, *options):
        return self.daemon.json("network", box, *options)

    # A command in the box that goes on; its first line is "tick".
    def begin(self, box, options, command):
        process = subprocess.Popen(self.daemon.command("exec", *options, box, "--", *command), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(process.stdin.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "tick\n")
        return process

    def wait_until(self, done):
        deadline = time.monotonic() + WAIT_S
        while not done():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)  # between two looks

    def check_interfaces(self):
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout.splitlines()
        self.assertEqual([line.split(": ")[1].split("@")[0] for line in links], ["lo", internet.HOST_INTERFACE])


class FunctionNetwork(Case):
    create_options = ("--tier", "function")

    @classmethod
    def setUpClass(cls):
        cls.use(Sandboxd(), "function")

    # What the lines of PROBE say in the box.
    def probe(self, box, *lines):
        done = self.daemon.run("exec", box, "--", "python3", "-c", PROBE, *lines)
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = done.stdout.splitlines()
        self.assertEqual(len(answers), len(lines), done.stdout)
        return dict(zip(lines, answers))

    def check(self, box, expected):
        self.assertEqual(self.probe(box, *expected), expected)

    # With "stay" the program, and so its gate, is there until its input ends.
    def stream(self, box, *options, stay=()):
        return self.begin(box, options, ["python3", "-c", STREAM, *stay])

    def test_reaches_what_is_allowed_and_nothing_else(self):
        box = self.create("--allow", "good.example:80", "--allow", "*.wild.example", "--allow", "203.0.113.0/24:80",
                          "--allow", "198.51.100.30:80/tcp", "--allow", "198.51.100.10:7/udp",
                          "--allow", "alias.example:80")
        self.check(box, {
            "tcp good.example 80": "198.51.100.10",
            "tcp good.example 81": "refused",
            "tcp other.example 80": "no name",
            "tcp a.wild.example 80": "198.51.100.20",
            "tcp a.wild.example 81": "198.51.100.20",
            "tcp wild.example 80": "no name",
            "tcp 203.0.113.5 80": "203.0.113.5",
            "tcp 203.0.113.5 81": "refused",
            "tcp 198.51.100.30 80": "198.51.100.30",
            "udp 198.51.100.30 80": "silence",
            "udp 198.51.100.10 7": "ONE TWO",
            "udp 198.51.100.20 7": "silence",
            "tcp alias.example 80": "198.51.100.10",
        })

    def test_an_address_is_no_way_around_a_name(self):
        box = self.create("--allow", "good.example:80")
        self.check(box, {"tcp 198.51.100.10 80": "refused", "tcp 198.51.100.20 80": "refused"})
        counters = self.network(box)["counters"]
        self.assertEqual(counters["allowed"], 0)

    def test_names_lead_to_no_forbidden_address(self):
        names = ["loop", "host", "metadata", "private", "mixed"]
        box = self.create(*[word for name in names for word in ("--allow", f"{name}.example")])
        self.check(box, {"name loop.example 0": "no name", "name host.example 0": "no name",
                         "name metadata.example 0": "no name", "name private.example 0": "no name",
                         "name mixed.example 0": "198.51.100.10"})

    def test_no_rule_reaches_the_host_or_a_metadata_service(self):
        box = self.create("--allow", "0.0.0.0/0", "--allow", internet.HOST_ADDRESS, "--open")
        self.check(box, {f"tcp {internet.HOST_ADDRESS} {HOST_PORT}": "refused",
                         f"tcp 127.0.0.1 {HOST_PORT}": "refused",
                         f"tcp 127.1.2.3 {HOST_PORT}": "refused",
                         f"tcp 0.0.0.0 {HOST_PORT}": "refused",
                         f"tcp 127.0.0.1 {self.daemon.address[1]}": "refused",
                         "tcp 169.254.169.254 80": "refused",
                         "tcp 10.1.2.3 80": "refused",
                         "udp 224.0.0.251 5353": "silence",
                         "tcp 198.51.100.20 80": "198.51.100.20"})
        private = self.create("--allow", "10.1.0.0/16:80")
        self.check(private, {"tcp 10.1.2.3 80": "10.1.2.3"})

    def test_open_and_deny(self):
        box = self.create("--open", "--deny", "198.51.100.0/24", "--allow", "198.51.100.30")
        self.check(box, {"tcp other.example 80": "refused", "tcp 203.0.113.5 80": "203.0.113.5",
                         "tcp 198.51.100.30 81": "198.51.100.30"})

    def test_other_sandboxes_are_not_there(self):
        wide = ("--allow", "0.0.0.0/0", "--allow", "100.64.0.0/10", "--open")
        self.begin(self.create(*wide), (), ["python3", "-c", """
import socket
server = socket.create_server(("", 9000))
print("tick", flush=True)
server.accept()
"""])
        self.check(self.create(*wide), {"tcp 100.64.0.1 9000": "refused", "tcp 127.0.0.1 9000": "refused",
                                        "tcp 100.64.0.2 9000": "refused"})

    def test_without_a_policy_there_is_nothing(self):
        box = self.create()
        self.check(box, {"tcp 198.51.100.10 80": "no network", "tcp good.example 80": "no name"})
        self.assertIsNone(self.network(box)["network"])

    def test_half_closed_connections_go_on(self):
        box = self.create("--allow", "good.example")
        done = self.daemon.run("exec", box, "--", "python3", "-c", """
import socket
s = socket.create_connection(("good.example", 80))
data = b"HALF" + bytes(3_000_000)
s.sendall(data)
s.shutdown(socket.SHUT_WR)
print(int(s.recv(100)) == len(data))
""")
        self.assertEqual(done.stdout, "True\n", done.stderr)

    def test_a_new_policy_cuts_and_opens(self):
        box = self.create("--allow", "good.example")
        call = self.stream(box, "-i", stay=["stay"])
        changed = self.network(box, "--allow", "other.example")
        self.assertEqual(changed["network"], {"allow": ["other.example"], "deny": [], "open": False})
        self.assertEqual(changed["counters"]["cut"], 1)
        call.stdin.close()
        rest = call.stdout.read().splitlines()
        self.assertEqual(rest[-1], "cut")
        self.assertEqual(call.wait(WAIT_S), 7)
        self.check(box, {"tcp good.example 80": "no name", "tcp other.example 80": "198.51.100.20"})
        self.network(box, "--allow", "good.example")
        kept = self.stream(box)
        self.network(box, "--allow", "good.example:80", "--allow", "other.example")  # still allowed: it goes on
        self.assertEqual(kept.stdout.readline(), "tick\n")
        self.network(box, "--none")
        self.assertEqual(kept.stdout.read().splitlines()[-1], "cut")
        self.check(box, {"tcp good.example 80": "no name"})

    def test_survives_the_daemon(self):
        box = self.create("--allow", "good.example")
        self.network(box, "--allow", "good.example", "--allow", "203.0.113.5")
        call = self.stream(box, "--call-id", f"{box}/stream")
        before = gates()
        self.daemon.restart(kill=True)
        call.wait(WAIT_S)  # its daemon is gone
        self.assertEqual(self.network(box)["network"]["allow"], ["good.example", "203.0.113.5"])
        self.check(box, {"tcp good.example 80": "198.51.100.10", "tcp 203.0.113.5 80": "203.0.113.5",
                         "tcp 198.51.100.20 80": "refused"})
        again = self.stream(box, "--call-id", f"{box}/stream")
        self.assertTrue(set(gates()) & set(before), "the call kept its gate")
        self.network(box, "--none")
        self.assertEqual(again.stdout.read().splitlines()[-1], "cut")
        self.assertEqual(again.wait(WAIT_S), 7)

    def test_leaves_nothing(self):
        box = self.create("--allow", "good.example")
        call = self.stream(box)
        self.assertTrue(gates())
        self.assertEqual(self.daemon.run("rm", box).returncode, 0)
        call.wait(WAIT_S)
        workers = os.path.join(self.daemon.state, "sandboxd/function/workers")
        self.wait_until(lambda: not gates() and not any(
            os.path.exists(os.path.join(workers, worker, "network.sock")) for worker in os.listdir(workers)))
        self.check_interfaces()

    def test_refuses_what_it_does_not_understand(self):
        for options, words in ((("--allow", "a b"), "names no host"), (("--allow", "127.0.0.1"), "no sandbox may reach"),
                               (("--open", "--deny", "a.example"), "only addresses can be denied")):
            done = self.daemon.run("create", "--tier", "function", *options)
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn(words, done.stderr)
        box = self.create("--allow", "good.example")
        self.assertEqual(self.daemon.run("network", box, "--allow", "host:x").returncode, 1)
        self.assertEqual(self.daemon.run("network", box, "--none", "--open").returncode, 2)
        self.assertEqual(self.network(box)["network"]["allow"], ["good.example"])


# In a shell of busybox: what the web server at HOST:PORT says, or "no", for each argument.
FETCH = r"""
for place in "$@"; do
  printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 "${place%:*}" "${place#*:}" 2>/dev/null | tail -n 1 | grep . || echo no
done
"""
# The stream of "tick" for as long as it is connected.
TICKS = """
mkfifo /tmp/$$
exec 3<>/tmp/$$  # or the end of input would end the stream
echo TICK >&3
nc good.example 80 </tmp/$$
echo ended
"""


class ContainerNetwork(Case):
    create_options = ("--tier", "container", "--image", "base")

    @classmethod
    def setUpClass(cls):
        if reason := containers.why_not():
            raise unittest.SkipTest(reason)
        cls.containerd = containers.Containerd()
        cls.addClassCleanup(cls.containerd.close)
        cls.use(Sandboxd(cls.containerd.address), "container")
        cls.addClassCleanup(cls.remove_all)
        cls.daemon.import_image("base", cls.containerd.root)

    @classmethod
    def remove_all(cls):
        for box in cls.daemon.json("ls"):
            cls.daemon.run("rm", box["id"])

    def check(self, box, expected):
        done = self.daemon.run("exec", box, "--", "sh", "-c", FETCH, "sh", *expected)
        self.assertEqual(dict(zip(expected, done.stdout.splitlines())), expected, done.stderr)

    def test_reaches_what_is_allowed_and_nothing_else(self):
        box = self.create("--allow", "good.example:80", "--allow", "203.0.113.0/24", "--allow", internet.HOST_ADDRESS)
        self.check(box, {"198.51.100.10:80": "no", "good.example:80": "198.51.100.10", "good.example:81": "no",
                         "other.example:80": "no", "198.51.100.20:80": "no", "203.0.113.5:80": "203.0.113.5",
                         f"{internet.HOST_ADDRESS}:{HOST_PORT}": "no", f"127.0.0.1:{HOST_PORT}": "no",
                         "169.254.169.254:80": "no"})
        self.assertEqual(self.network(box)["counters"]["allowed"], 2)

    def test_a_new_policy_cuts_and_opens(self):
        box = self.create()
        self.check(box, {"good.example:80": "no"})
        self.network(box, "--allow", "good.example")
        self.check(box, {"good.example:80": "198.51.100.10"})
        call = self.begin(box, (), ["sh", "-c", TICKS])
        self.assertEqual(self.network(box, "--allow", "other.example")["counters"]["cut"], 1)
        self.assertEqual(call.stdout.read().splitlines()[-1], "ended")
        self.check(box, {"good.example:80": "no", "other.example:80": "198.51.100.20"})

    def test_survives_the_daemon_and_the_end_of_its_gate(self):
        box = self.create("--allow", "other.example")
        self.network(box, "--allow", "good.example")
        call = self.begin(box, ("--call-id", f"{box}/stream"), ["sh", "-c", TICKS])
        before = gates()
        self.daemon.restart(kill=True)
        call.wait(WAIT_S)
        again = self.begin(box, ("--call-id", f"{box}/stream"), ["sh", "-c", TICKS])
        self.assertEqual(gates(), before)
        self.assertEqual(self.network(box)["counters"]["cut"], 0)
        self.check(box, {"good.example:80": "198.51.100.10", "other.example:80": "no"})
        self.assertEqual(self.network(box, "--none")["counters"]["cut"], 1)
        self.assertEqual(again.stdout.read().splitlines()[-1], "ended")
        self.network(box, "--allow", "good.example")
        for gate in gates():
            os.kill(gate, signal.SIGKILL)
        self.wait_until(lambda: not gates())
        self.check(box, {"good.example:80": "198.51.100.10", "other.example:80": "no"})
        self.daemon.stop(kill=True)
        for gate in gates():
            os.kill(gate, signal.SIGKILL)
        self.daemon.start()
        self.check(box, {"good.example:80": "198.51.100.10", "other.example:80": "no"})

    def test_leaves_nothing(self):
        others = gates()
        box = self.create("--allow", "good.example")
        self.assertEqual(len(gates()), len(others) + 1)
        self.assertEqual(self.daemon.run("rm", box).returncode, 0)
        self.wait_until(lambda: gates() == others)
        self.check_interfaces()


if __name__ == "__main__":
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "unshare", "nsenter")):
        print("skipped: makes network namespaces, which needs root and the commands ip, unshare and nsenter")
        sys.exit(77)
    if not internet.has_own_network():
        sys.argv.insert(1, BIN_DIR)
        internet.enter_own_network()
    unittest.main()
