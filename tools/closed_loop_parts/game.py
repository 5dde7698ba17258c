"""Targets, cursor and trials, and what a control program does with decoded velocities. No socket, no clock.

A target appears at random; it is acquired once the cursor has stayed within its radius for the dwell time without a
break, and missed if that takes longer than the timeout. Then the next one appears, and the cursor goes on from where it
is. Lengths are in cm, velocities in cm/s, times in seconds; positions and velocities are `(2,)`.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

__all__ = ["HOLD_S", "DelayLine", "Game", "Steering", "Task", "Trial", "targets"]

HOLD_S = 0.1  # a velocity moves the cursor for so long when no newer one comes, then the cursor stands still

Value = TypeVar("Value")


@dataclass(frozen=True)
class Task:
    """What counts as a target and as reaching it.

    Attributes:
        half_width_cm: the cursor cannot leave the square from -this to this.
        radius_cm: around a target's centre, within which the cursor's centre has to stay.
        apart_cm: between one target and the next, at least.
        dwell_s: how long it has to stay.
        timeout_s: when a target counts as missed.
    """

    half_width_cm: float = 10.0
    radius_cm: float = 1.5
    apart_cm: float = 5.0
    dwell_s: float = 0.3
    timeout_s: float = 6.0


@dataclass(frozen=True)
class Trial:
    """One target, from its appearance to its end.

    Attributes:
        acquired: whether it was reached and held in time.
        time_s: how long it was there, the dwell included.
        dial_in_s: from the first touch to the end, less the dwell: 0 for who comes and stays. NaN if never touched.
        straight_cm: from where the cursor began to where it ended.
        travelled_cm: how far it went.
    """

    acquired: bool
    time_s: float
    dial_in_s: float
    straight_cm: float
    travelled_cm: float


def targets(task: Task, seed: int) -> Iterator[np.ndarray]:
    """Places of the targets, without end: the same for the same seed, whatever the cursor does."""
    rng, last, reach = np.random.default_rng(seed), np.zeros(2), task.half_width_cm - task.radius_cm
    while True:
        place = rng.uniform(-reach, reach, 2)
        if math.dist(place, last) >= task.apart_cm:
            last = place
            yield place


class Game:
    """A cursor that velocities move to one target after another.

    Attributes:
        position: of the cursor; it begins in the middle.
        target: the present one.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self.position = np.zeros(2)
        self._task, self._targets = task, targets(task, seed)
        self._next_target()

    def advance(self, velocity: np.ndarray, dt: float) -> Trial | None:
        """Moves the cursor for `dt`; the trial, if that ended one."""
        before, limit = self.position, self._task.half_width_cm
        self.position = np.clip(before + velocity * dt, -limit, limit)
        self._travelled += math.dist(before, self.position)
        self._time += dt
        inside = math.dist(self.position, self.target) <= self._task.radius_cm
        self._inside = self._inside + dt if inside else 0.0
        if inside and math.isnan(self._touched_at):
            self._touched_at = self._time - dt
        acquired = self._inside >= self._task.dwell_s
        return self._end(acquired) if acquired or self._time >= self._task.timeout_s else None

    def _end(self, acquired: bool) -> Trial:
        trial = Trial(
            acquired=acquired,
            time_s=self._time,
            dial_in_s=self._time - self._touched_at - self._inside,
            straight_cm=math.dist(self._start, self.position),
            travelled_cm=self._travelled,
        )
        self._next_target()
        return trial

    def _next_target(self) -> None:
        self.target = next(self._targets)
        self._start, self._travelled = self.position, 0.0
        self._time = self._inside = 0.0
        self._touched_at = math.nan


class DelayLine(Generic[Value]):
    """Gives back what it was given, in order, each value so much later."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._waiting: deque[tuple[float, Value]] = deque()

    def put(self, at: float, value: Value) -> None:
        """Takes a value in; times do not go back."""
        self._waiting.append((at + self._delay_s, value))

    def take(self, now: float) -> list[tuple[float, Value]]:
        """What was due by now and has not been taken, with the times when it was due."""
        due = []
        while self._waiting and self._waiting[0][0] <= now:
            due.append(self._waiting.popleft())
        return due

    @property
    def next_due(self) -> float:
        """When the next value comes out; infinity where there is none."""
        return self._waiting[0][0] if self._waiting else math.inf


@dataclass
class Steering:
    """Moves the cursor by the velocities that are heard, each so much after it was heard.

    Attributes:
        game: whose cursor.
        latency_s: added latency.
        at: the time up to which the cursor has been moved.
    """

    game: Game
    latency_s: float
    at: float
    _velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))

    def __post_init__(self) -> None:
        self._line: DelayLine[np.ndarray] = DelayLine(self.latency_s)
        self._taken_at = self.at

    @property
    def next_due(self) -> float:
        """When a velocity that was heard comes into force; infinity where none is under way."""
        return self._line.next_due

    def hear(self, now: float, velocity: np.ndarray) -> None:
        """Takes a decoded velocity."""
        self._line.put(now, velocity)

    def advance(self, now: float) -> list[Trial]:
        """Moves the cursor up to now; the trials that ended."""
        trials = []
        for due, velocity in self._line.take(now):
            trials += self._move(due)
            self._velocity, self._taken_at = velocity, due
        return trials + self._move(now)

    def _move(self, until: float) -> list[Trial]:
        trials = []
        held = min(until, self._taken_at + HOLD_S)
        for end, velocity in ((held, self._velocity), (until, np.zeros(2))):
            if end > self.at:
                trials.append(self.game.advance(velocity, end - self.at))
                self.at = end
        return [trial for trial in trials if trial]
