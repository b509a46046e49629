"""A daemon as the driver sees it: started again and again, each life ending by itself or by SIGKILL.

Readiness is the daemon's own log line that it listens. Its stderr is read as it comes, kept in one log file over all lives,
and an end is seen through a pidfd, so that one selector waits for everything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import BinaryIO

READ_BYTES = 1 << 16


class Daemon:
    def __init__(self, name: str, argv: list[str], ready_text: str, log: Path) -> None:
        self.name = name
        self.ready = False
        self.started_at = 0.0
        self.pidfd = -1
        self.stderr_fd = -1
        self._argv = argv
        self._ready_text = ready_text.encode()
        self._log: BinaryIO = open(log, "ab", buffering=0)
        self._seen = b""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None

    def start(self, point: str | None) -> None:
        argv = self._argv + (["--fail-point", point] if point else [])
        self._log.write(f"---- starts, fail point {point}\n".encode())
        self.ready, self._seen = False, b""
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.pidfd = os.pidfd_open(self._process.pid)
        self.stderr_fd = self._process.stderr.fileno()
        os.set_blocking(self.stderr_fd, False)

    def read_stderr(self) -> tuple[bool, bool]:
        """Takes what is there into the log: whether more may come, and whether this made the daemon ready."""
        try:
            data = os.read(self.stderr_fd, READ_BYTES)
        except BlockingIOError:
            return True, False
        self._log.write(data)
        if self.ready or not data:
            return bool(data), False
        self._seen += data
        self.ready = self._ready_text in self._seen
        return True, self.ready

    def kill(self) -> None:
        """SIGKILL; the end is still to be waited for."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def terminate(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def reap(self) -> tuple[int, str]:
        """Waits for the end of a life: return code as subprocess gives it, and what it printed on stdout."""
        process = self._process
        code = process.wait()
        self.read_stderr()
        # Helpers of sandboxd hold its descriptors for a moment longer: take what is there, never wait for the end.
        out = process.stdout.fileno()
        os.set_blocking(out, False)
        try:
            printed = os.read(out, READ_BYTES)
        except BlockingIOError:
            printed = b""
        self._log.write(f"---- ended with {code}\n".encode() + printed)
        process.stdout.close()
        process.stderr.close()
        os.close(self.pidfd)
        self._process, self.pidfd, self.stderr_fd = None, -1, -1
        return code, printed.decode(errors="replace")

    def close(self) -> None:
        self._log.close()
