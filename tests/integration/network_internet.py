"""An internet for tests: a network namespace of its own with a web server, a UDP echo and a DNS, whatever its addresses.

The test itself runs in a second namespace, which is "the host": a pair of virtual interfaces joins the two. Both are gone
with their last process, and nothing of the real machine takes part.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading

INTERNET_INTERFACE = "internet0"
HOST_INTERFACE = "host0"
HOST_ADDRESS = "198.51.100.1"
DNS_ADDRESS = "198.51.100.53"
# Addresses that the internet has: public ones of documentation, a private one, and what clouds have there.
ADDRESSES = ["198.51.100.10/24", "198.51.100.20/24", "198.51.100.30/24", f"{DNS_ADDRESS}/24", "203.0.113.5/24",
             "10.1.2.3/24", "169.254.169.254/32"]
NAMES = {
    "good.example": ["198.51.100.10"],
    "other.example": ["198.51.100.20"],
    "a.wild.example": ["198.51.100.20"],
    "wild.example": ["198.51.100.20"],
    "loop.example": ["127.0.0.1"],
    "host.example": [HOST_ADDRESS],
    "metadata.example": ["169.254.169.254"],
    "private.example": ["10.1.2.3"],
    "mixed.example": ["127.0.0.1", "198.51.100.10"],
}
ALIASES = {"alias.example": "good.example"}  # CNAME
TICK_S = 0.05


def has_own_network():
    return os.environ.get("REPRISE_TEST_NETWORK") == str(os.getpid())


# Runs this program again, in a network of its own; same process.
def enter_own_network():
    os.environ["REPRISE_TEST_NETWORK"] = str(os.getpid())
    os.execvp("unshare", ["unshare", "--net", sys.executable] + sys.argv)


def run(*argv):
    subprocess.run(argv, check=True)


class Internet:
    def __init__(self):
        run("ip", "link", "set", "lo", "up")
        self.process = subprocess.Popen(
            ["unshare", "--net", sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "namespace\n"
        pid = str(self.process.pid)
        inside = ["nsenter", "--net", "--target", pid]
        run("ip", "link", "add", HOST_INTERFACE, "type", "veth", "peer", "name", INTERNET_INTERFACE, "netns", pid)
        run("ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", HOST_INTERFACE)
        run("ip", "link", "set", HOST_INTERFACE, "up")
        run("ip", "route", "add", "default", "dev", HOST_INTERFACE)
        for address in ADDRESSES:
            run(*inside, "ip", "addr", "add", address, "dev", INTERNET_INTERFACE)
        for interface in ("lo", INTERNET_INTERFACE):
            run(*inside, "ip", "link", "set", interface, "up")
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "serving\n"

    def close(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# ---- in the other namespace

# "GET /..." is answered with the address that was called; "TICK" with a line every TICK_S until the client goes.
def serve_client(client):
    with client:
        try:
            request = client.recv(1000)
            if request.startswith(b"GET"):
                while not request.endswith(b"\r\n\r\n"):  # what is left unread makes the close a reset
                    request += client.recv(1000)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + client.getsockname()[0].encode())
            while request.startswith(b"TICK"):
                client.sendall(b"tick\n")
                client.settimeout(TICK_S)
                try:
                    if not client.recv(1):
                        return
                except TimeoutError:
                    pass
            if request.startswith(b"HALF"):  # reads to the end of input, then answers
                size = len(request)
                while piece := client.recv(65536):
                    size += len(piece)
                client.sendall(str(size).encode())
        except OSError:
            pass


def serve_tcp(port):
    listener = socket.create_server(("", port), backlog=64)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve_client, args=(client,), daemon=True).start()


def serve_echo():
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(("198.51.100.10", 7))
    while True:
        data, sender = echo.recvfrom(65536)
        echo.sendto(data.upper(), sender)


def wire_name(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def dns_answer(query, truncate):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12:at + 5]
    name = ".".join(labels)
    records = b""
    count = 0
    if name in ALIASES:
        target = wire_name(ALIASES[name])
        records += b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 60, len(target)) + target
        count += 1
    for address in NAMES.get(ALIASES.get(name, name), []):
        owner = wire_name(ALIASES.get(name, name))
        records += owner + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(address)
        count += 1
    # What this one has is had over TCP only.
    if truncate and name == "alias.example":
        return query[:2] + b"\x83\x80" + struct.pack(">HHHH", 1, 0, 0, 0) + question
    code = b"\x81\x80" if count else b"\x81\x83"
    return query[:2] + code + struct.pack(">HHHH", 1, count, 0, 0) + question + records


def serve_dns():
    dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    dns.bind((DNS_ADDRESS, 53))
    while True:
        query, sender = dns.recvfrom(4096)
        dns.sendto(dns_answer(query, truncate=True), sender)


def serve_dns_tcp():
    listener = socket.create_server((DNS_ADDRESS, 53))
    while True:
        client, _ = listener.accept()
        with client:
            query = client.makefile("rb")
            if length := query.read(2):
                answer = dns_answer(query.read(struct.unpack(">H", length)[0]), truncate=False)
                client.sendall(struct.pack(">H", len(answer)) + answer)


def main():
    print("namespace", flush=True)
    sys.stdin.readline()
    for work in (lambda: serve_tcp(80), lambda: serve_tcp(81), serve_echo, serve_dns, serve_dns_tcp):
        threading.Thread(target=work, daemon=True).start()
    # Listening: what is not yet there is refused, so look.
    for port in (80, 81):
        while socket.socket().connect_ex(("198.51.100.10", port)) != 0:
            pass
    while socket.socket().connect_ex((DNS_ADDRESS, 53)) != 0:
        pass
    print("serving", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
