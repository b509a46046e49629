"""Where the daemons are killed: first at every fail point, at many of its passages, then at random times.

Fail points lie around every record: before and after each commit of either journal, after a call's INTENT, its start, its
end and its RESULT, around a call of rolloutd and at a sealed trajectory. A life of a daemon takes the next of its points;
one that its life never reached comes again. Every third also takes the other daemon, in the same moment.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

# Passages at which a commit is cut: the first after a restart, and further and further into a life.
_COMMITS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 17, 20, 24, 28, 33)
_PASSAGES = (1, 2, 3, 5)

_POINTS = {
    "rolloutd": {
        "commit.before": _COMMITS,
        "commit.after": _COMMITS,
        "trajectory.sealed": _PASSAGES,
        "rollout.call.before": _PASSAGES,
        "rollout.call.after": _PASSAGES,
    },
    "sandboxd": {
        "commit.before": _COMMITS,
        "commit.after": _COMMITS,
        "call.intent": _PASSAGES,
        "call.started": _PASSAGES,
        "call.result": _PASSAGES,
        "call.completed": _PASSAGES,
    },
}
_VICTIMS = (("rolloutd",), ("sandboxd",), ("rolloutd", "sandboxd"))
# One random strike in four comes while the daemons start, the others once both are ready.
_WHILE_STARTING = 0.25
_STARTING_S = 0.25
_READY_S = 0.5


@dataclass(frozen=True)
class Point:
    name: str
    passage: int
    both: bool  # the other daemon dies with it

    def __str__(self) -> str:
        return f"{self.name}:{self.passage}"


@dataclass(frozen=True)
class Strike:
    victims: tuple[str, ...]
    while_starting: bool  # the delay counts from the restart, else from the readiness of both
    delay_s: float


class Plan:
    """Kills still to come, over all rounds. None at all for `kills` 0."""

    def __init__(self, kills: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._points: dict[str, deque[Point]] = {}
        for victim, names in _POINTS.items():
            points = [(name, passage) for name, passages in names.items() for passage in passages]
            points = points if kills > 0 else []
            self._random.shuffle(points)
            self._points[victim] = deque(
                Point(name, passage, both=i % 3 == 2) for i, (name, passage) in enumerate(points)
            )
        self._strikes = max(0, kills - sum(len(points) for points in self._points.values()))

    @property
    def done(self) -> bool:
        return self._strikes == 0 and not any(self._points.values())

    def left(self) -> str:
        points = [f"{victim} {point}" for victim, queue in self._points.items() for point in queue]
        return ", ".join(points + [f"{self._strikes} at random times"])

    def next_point(self, victim: str) -> Point | None:
        return self._points[victim].popleft() if self._points[victim] else None

    def put_back(self, victim: str, point: Point) -> None:
        """A life ended before it came to its point."""
        self._points[victim].append(point)

    def next_strike(self, armed: bool) -> Strike | None:
        """The next kill at a random time; none while a fail point is armed or waits."""
        if armed or self._strikes == 0 or any(self._points.values()):
            return None
        self._strikes -= 1
        starting = self._random.random() < _WHILE_STARTING
        delay = self._random.uniform(0, _STARTING_S if starting else _READY_S)
        return Strike(self._random.choice(_VICTIMS), starting, delay)

    def strike_again(self, kills: int) -> None:
        """More kills at random times."""
        self._strikes += kills

    def take_back_strike(self) -> None:
        """A strike was not made: the job had ended."""
        self._strikes += 1
