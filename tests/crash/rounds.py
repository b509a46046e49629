"""One run of the job from an empty state directory to its export, cut as the plan says.

A dead daemon is started again at once with the same command; the round ends when rolloutd has exported the job and exits
with 0. Everything the driver waits for is a descriptor or a moment of the plan: nothing sleeps.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import leftovers
from daemons import Daemon
from job import counter_dir, write_job
from plan import Plan, Point, Strike

STALL_S = 120  # a round in which nothing happens for so long is stuck


class Failed(Exception):
    """What the test found; the text says what, where."""


@dataclass
class Tally:
    """What happened so far, over all rounds."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # (victim, place)
    resume_s: dict[str, list[float]] = field(default_factory=dict)  # by daemon, of killed lives
    decoded_again: int = 0
    groups: set[str] = field(default_factory=set)  # names of the cgroups that daemons made

    @property
    def total(self) -> int:
        return sum(self.kills.values())


class Round:
    def __init__(self, directory: Path, binaries: Path, source: Path, plan: Plan, tally: Tally) -> None:
        directory.mkdir()
        self.directory = directory
        self.export = directory / "out" / "trajectories.jsonl"
        self._plan, self._tally = plan, tally
        job = write_job(directory, source)
        state = directory / "state"
        state.mkdir()
        sandboxd = [str(binaries / "sandboxd"), "--state", str(state), "--containerd", ""]
        sandboxd += ["--bind-root", str(counter_dir(directory))]
        self._rolloutd_argv = [str(binaries / "rolloutd"), "--state", str(state), "--job", str(job)]
        self._daemons = {
            "sandboxd": self._daemon("sandboxd", sandboxd, "sandboxd listens on"),
            "rolloutd": self._daemon("rolloutd", self._rolloutd("out") + ["--without-timing"], "listening on"),
        }
        self._points: dict[str, Point | None] = {name: None for name in self._daemons}
        self._killed_at: dict[str, float] = {}
        self._done = False
        self._strike: Strike | None = None
        self._strike_at: float | None = None
        self._moved_at = time.monotonic()
        self._selector = selectors.DefaultSelector()

    def _daemon(self, name: str, argv: list[str], ready_text: str) -> Daemon:
        return Daemon(name, argv, ready_text, self.directory / f"{name}.log")

    def _rolloutd(self, out: str) -> list[str]:
        return self._rolloutd_argv + ["--out", str(self.directory / out)]

    # ---- the run

    def run(self) -> None:
        try:
            while not self._done:
                self._start_dead()
                self._aim()
                for key, _ in self._selector.select(self._patience()):
                    self._handle(*key.data)
                self._strike_if_due()
        finally:
            for daemon in self._daemons.values():
                if daemon.alive:
                    self._unwatch(daemon)
                    daemon.terminate()
                    daemon.reap()
                daemon.close()
                self._take_back_point(daemon)
            if self._strike is not None:
                self._plan.take_back_strike()
            self._selector.close()

    def export_with_timing(self) -> Path:
        """The finished job once more, with the fields that tell of the run itself."""
        daemon = self._daemon("rolloutd-again", self._rolloutd("timed"), "listening on")
        daemon.start(None)
        code, printed = daemon.reap()
        daemon.close()
        if code != 0:
            raise Failed(f"exporting again ended with {code}: see {self.directory}/{daemon.name}.log")
        self._note_summary(printed)
        return self.directory / "timed" / "trajectories.jsonl"

    def _start_dead(self) -> None:
        for name, daemon in self._daemons.items():
            if daemon.alive:
                continue
            point = self._plan.next_point(name)
            self._points[name] = point
            daemon.start(str(point) if point else None)
            self._selector.register(daemon.pidfd, selectors.EVENT_READ, (daemon, self._on_end))
            self._selector.register(daemon.stderr_fd, selectors.EVENT_READ, (daemon, self._on_stderr))
            self._moved_at = time.monotonic()

    def _unwatch(self, daemon: Daemon) -> None:
        for fd in (daemon.pidfd, daemon.stderr_fd):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)

    def _patience(self) -> float:
        """Seconds until the loop must look again without an event."""
        now = time.monotonic()
        if now > self._moved_at + STALL_S:
            raise Failed(f"nothing happened for {STALL_S} s: see the logs in {self.directory}")
        until = self._moved_at + STALL_S + 1
        if self._strike_at is not None:
            until = min(until, self._strike_at)
        return max(0.0, until - now)

    # ---- kills at random times

    def _aim(self) -> None:
        if self._strike is None:
            self._strike = self._plan.next_strike(armed=any(self._points.values()))
        if self._strike is None or self._strike_at is not None:
            return
        daemons = self._daemons.values()
        if self._strike.while_starting:
            self._strike_at = max(d.started_at for d in daemons) + self._strike.delay_s
        elif all(d.ready for d in daemons):
            self._strike_at = time.monotonic() + self._strike.delay_s

    def _strike_if_due(self) -> None:
        if self._strike_at is None or time.monotonic() < self._strike_at:
            return
        if not all(d.alive for d in self._daemons.values()):
            return  # the job has just ended
        strike, self._strike, self._strike_at = self._strike, None, None
        victims = [self._daemons[name] for name in strike.victims]
        for daemon in victims:
            daemon.kill()
        for daemon in victims:
            self._reap(daemon)
        if self._done:
            self._plan.take_back_strike()  # too late: rolloutd had ended by itself
        else:
            self._count(strike.victims, "random time")

    # ---- events

    def _handle(self, daemon: Daemon, event: Callable[[Daemon], None]) -> None:
        if daemon.alive:  # it may have been killed while its event was on the way
            event(daemon)

    def _on_stderr(self, daemon: Daemon) -> None:
        still_open, became_ready = daemon.read_stderr()
        if not still_open:
            self._selector.unregister(daemon.stderr_fd)
        if not became_ready:
            return
        if daemon.name in self._killed_at:
            waited = time.monotonic() - self._killed_at.pop(daemon.name)
            self._tally.resume_s.setdefault(daemon.name, []).append(waited)
        if daemon.name == "sandboxd":
            self._tally.groups |= leftovers.groups_of(self.directory)

    # An end that the loop was told of: the job is exported, or a fail point was reached.
    def _on_end(self, daemon: Daemon) -> None:
        point, self._points[daemon.name] = self._points[daemon.name], None
        self._reap(daemon)
        if self._done:
            if point is not None:
                self._plan.put_back(daemon.name, point)
            return
        if point is None:
            raise Failed(f"{daemon.name} was killed by somebody else: see {self.directory}/{daemon.name}.log")
        victims = {daemon.name}
        if point.both:
            for other in self._daemons.values():
                if other.alive:
                    other.kill()
                    self._reap(other)
                    self._take_back_point(other)
                    victims.add(other.name)
        self._count(victims, f"{daemon.name} {point.name}")

    def _reap(self, daemon: Daemon) -> None:
        self._unwatch(daemon)
        code, printed = daemon.reap()
        if daemon.name == "rolloutd" and code == 0:
            self._note_summary(printed)
            self._done = True
        elif code != -signal.SIGKILL:
            raise Failed(f"{daemon.name} ended with {code}: see {self.directory}/{daemon.name}.log")
        self._killed_at[daemon.name] = time.monotonic()

    def _take_back_point(self, daemon: Daemon) -> None:
        point, self._points[daemon.name] = self._points[daemon.name], None
        if point is not None:
            self._plan.put_back(daemon.name, point)

    # ---- the tally

    def _count(self, victims: Iterable[str], place: str) -> None:
        self._tally.kills["+".join(sorted(victims)), place] += 1

    def _note_summary(self, printed: str) -> None:
        words = printed.split()
        if "decoded_again" not in words:
            raise Failed(f"rolloutd printed no summary: {printed!r}")
        self._tally.decoded_again += int(words[words.index("decoded_again") + 1])
