#!/usr/bin/env python3
"""A server with Firecracker's API: no machine, but every request is checked against what its OpenAPI
description says (methods, paths, fields, their types, what may come when) and recorded in the file
"requests", one JSON object a line. Its guest's vsock refuses the first connection, then echoes."""
import argparse
import json
import mmap
import os
import socket
import threading

FIELDS = {  # path -> method, required and optional fields with their types
    "/machine-config": ("PUT", {"vcpu_count": int, "mem_size_mib": int},
                        {"smt": bool, "cpu_template": str, "track_dirty_pages": bool, "huge_pages": str}),
    "/boot-source": ("PUT", {"kernel_image_path": str}, {"boot_args": str, "initrd_path": str}),
    "/drives/image": ("PUT", {"drive_id": str, "is_root_device": bool},
                      {"path_on_host": str, "is_read_only": bool, "partuuid": str, "cache_type": str,
                       "rate_limiter": dict, "io_engine": str, "socket": str}),
    "/vsock": ("PUT", {"guest_cid": int, "uds_path": str}, {"vsock_id": str}),
    "/actions": ("PUT", {"action_type": str}, {}),
    "/snapshot/create": ("PUT", {"mem_file_path": str, "snapshot_path": str}, {"snapshot_type": str}),
    "/snapshot/load": ("PUT", {"snapshot_path": str},
                       {"mem_backend": dict, "mem_file_path": str, "enable_diff_snapshots": bool,
                        "track_dirty_pages": bool, "resume_vm": bool, "network_overrides": list}),
    "/vm": ("PATCH", {"state": str}, {}),
}


class Machine:
    def __init__(self):
        self.state = "Not started"
        self.configured = []
        self.memory = None
        self.streams = []
        self.refusals = 1

    def fault(self, method, path, body):
        """Why a request is refused, or None when it was done."""
        if path not in FIELDS:
            return f"no such path {path}"
        wanted, required, optional = FIELDS[path]
        if method != wanted:
            return f"no method {method} of {path}"
        for name, kind in required.items():
            if name not in body:
                return f"{path} needs {name}"
        for name, value in body.items():
            kind = {**required, **optional}.get(name)
            if kind is None:
                return f"unknown field {name} of {path}"
            if type(value) is not kind:
                return f"{name} of {path} is no {kind.__name__}"
        return self.act(path, body)

    def act(self, path, body):
        if path == "/vm":
            if self.state == "Not started" or body["state"] not in ("Paused", "Resumed"):
                return "the microVM cannot change so"
            self.state = "Paused" if body["state"] == "Paused" else "Running"
        elif path == "/actions":
            if body["action_type"] != "InstanceStart" or self.state != "Not started":
                return "the action is not supported now"
            if "/boot-source" not in self.configured:
                return "there is no kernel"
            self.state = "Running"
            self.open_vsock()
        elif path == "/snapshot/create":
            if self.state != "Paused":
                return "the microVM is not paused"
            if body.get("snapshot_type", "Full") not in ("Full", "Diff"):
                return "no such snapshot"
            with open(body["snapshot_path"], "wb") as out:
                out.write(b"devices of a recording")
            with open(body["mem_file_path"], "r+b" if "/fd/" in body["mem_file_path"] else "wb") as out:
                out.write(b"template" * 512)
            for stream in self.streams:
                stream.close()
            self.streams.clear()
        elif path == "/snapshot/load":
            if self.state != "Not started" or self.configured:
                return "loading a snapshot after a configuration"
            if ("mem_backend" in body) == ("mem_file_path" in body):
                return "one of mem_backend and mem_file_path"
            backend = body["mem_backend"]
            if set(backend) != {"backend_type", "backend_path"} or backend["backend_type"] not in ("File", "Uffd"):
                return "a malformed mem_backend"
            if open(body["snapshot_path"], "rb").read() != b"devices of a recording":
                return "the devices are damaged"
            with open(backend["backend_path"], "rb") as ram:
                self.memory = mmap.mmap(ram.fileno(), 0, flags=mmap.MAP_PRIVATE,
                                        prot=mmap.PROT_READ | mmap.PROT_WRITE)
            with open("memory-at-5", "wb") as out:
                out.write(self.memory[5 * 4096:6 * 4096])
            self.memory[3 * 4096:3 * 4096 + 4] = b"mine"
            self.state = "Running" if body.get("resume_vm") else "Paused"
            self.open_vsock()
        else:
            if self.state != "Not started":
                return "not after the start"
            if path == "/vsock" and body["guest_cid"] < 3:
                return "guest_cid is less than 3"
            self.configured.append(path)
            self.uds = body.get("uds_path", getattr(self, "uds", "vsock.sock"))
        return None

    def open_vsock(self):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(getattr(self, "uds", "vsock.sock"))
        listener.listen()
        threading.Thread(target=self.serve_vsock, args=(listener,), daemon=True).start()

    def serve_vsock(self, listener):
        while True:
            stream, _ = listener.accept()
            threading.Thread(target=self.serve_stream, args=(stream,), daemon=True).start()

    def serve_stream(self, stream):
        line = b""
        while not line.endswith(b"\n"):
            byte = stream.recv(1)
            if not byte:
                return
            line += byte
        if line != b"CONNECT 1024\n" or self.refusals > 0:
            self.refusals -= 1
            stream.close()
            return
        self.streams.append(stream)
        stream.sendall(b"OK 1073741824\n")
        try:
            while data := stream.recv(4096):
                stream.sendall(data)
        except OSError:
            pass  # closed by a snapshot


def serve(path):
    machine = Machine()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        stream = connection.makefile("rwb")
        start = stream.readline().decode().split()
        if len(start) != 3:
            continue  # somebody looked whether this is there
        headers = {}
        while (line := stream.readline().decode().strip()):
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        body = json.loads(stream.read(int(headers.get("content-length", 0))) or "{}")
        fault = machine.fault(start[0], start[1], body)
        with open("requests", "a") as out:
            print(json.dumps([start[0], start[1], body, fault]), file=out)
        if fault is None:
            stream.write(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n")
        else:
            answer = json.dumps({"fault_message": fault}).encode()
            stream.write(b"HTTP/1.1 400 \r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
                len(answer), answer))
        stream.flush()


parser = argparse.ArgumentParser()
parser.add_argument("--api-sock", required=True)
parser.add_argument("--id", required=True)
serve(parser.parse_args().api_sock)
