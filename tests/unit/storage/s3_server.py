"""A bucket for tests: S3's GET (with ranges), HEAD, PUT and DELETE on 127.0.0.1, in memory.

It checks every signature with code of its own. Prints its port, then serves until stdin closes.
Arguments: ACCESS_KEY SECRET_KEY [busy:N] [cut:N]
  busy:N  answers the first N requests with 503
  cut:N   breaks the first N bodies off in the middle
"""
import hashlib
import hmac
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

access, secret = sys.argv[1:3]
faults = dict(word.split(":") for word in sys.argv[3:])
faults = {name: int(count) for name, count in faults.items()}
objects = {}
lock = threading.Lock()


def take(fault):
    with lock:
        left = faults.get(fault, 0)
        faults[fault] = left - 1
        return left > 0


def mac(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def signed(self, body):
        match = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request,"
            r"SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})",
            self.headers.get("authorization", ""))
        if not match or match[1] != access:
            return False
        if self.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            return False
        names = match[4].split(";")
        if not {"host", "x-amz-date", "x-amz-content-sha256"} <= set(names):
            return False
        canonical = "\n".join(
            [self.command, self.path, ""]
            + [f"{name}:{self.headers[name].strip()}" for name in names]
            + ["", match[4], self.headers["x-amz-content-sha256"]])
        scope = f"{match[2]}/{match[3]}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope,
                          hashlib.sha256(canonical.encode()).hexdigest()])
        key = ("AWS4" + secret).encode()
        for part in (match[2], match[3], "s3", "aws4_request"):
            key = mac(key, part)
        return hmac.compare_digest(mac(key, text).hex(), match[5])

    def answer(self, code, body=b"", headers=(), cut=False):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if take("busy"):
            return self.answer(503)
        if not self.signed(body):
            return self.answer(403, b"SignatureDoesNotMatch")
        if self.command == "PUT":
            objects[self.path] = body
            return self.answer(200)
        if self.command == "DELETE":
            objects.pop(self.path, None)
            return self.answer(204)
        content = objects.get(self.path)
        if content is None:
            return self.answer(404, b"NoSuchKey")
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        cut = self.command == "GET" and take("cut")
        if not ranged:
            return self.answer(200, content, cut=cut)
        start = int(ranged[1])
        if start >= len(content):
            return self.answer(416)
        headers = [("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")]
        return self.answer(206, content[start:], headers, cut)

    do_GET = do_HEAD = do_PUT = do_DELETE = handle_request


server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
