"""A server that answers what E2B's SDK asks for a create, one command and a kill, and does nothing: the SDK's own floor."""

import asyncio
import json
import struct


def frame(flags, message):
    payload = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(payload)) + payload


BOX = json.dumps({"templateID": "t", "sandboxID": "ifloor", "clientID": "c", "envdVersion": "0.5.7",
                  "envdAccessToken": "token"}).encode()
EVENTS = (frame(0, {"event": {"start": {"pid": 1}}}) + frame(0, {"event": {"data": {"stdout": "b2sK"}}}) +
          frame(0, {"event": {"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}}}) + frame(2, {}))


async def body_of(reader, headers):
    if headers.get("transfer-encoding") == "chunked":
        while (size := int(await reader.readline(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(headers.get("content-length", 0)))


async def serve(reader, writer):
    try:
        while line := await reader.readline():
            method, path, _ = line.decode().split(" ", 2)
            headers = {}
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, value = line.decode().split(":", 1)
                headers[name.lower()] = value.strip().lower()
            await body_of(reader, headers)
            status, kind, body = "200 OK", "application/json", b"{}"
            if method == "POST" and path.endswith("/sandboxes"):
                status, body = "201 Created", BOX
            elif path == "/process.Process/Start":
                kind, body = "application/connect+json", EVENTS
            elif method == "DELETE":
                status, body = "204 No Content", b""
            length = b"" if method == "DELETE" else b"Content-Length: %d\r\n" % len(body)
            writer.write(b"HTTP/1.1 %s\r\nContent-Type: %s\r\n%s\r\n%s" % (status.encode(), kind.encode(), length, body))
            await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
