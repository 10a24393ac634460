"""What stands between callers and a runtime: lets in as many queries as there is room for, and counts them all.

Callers feel how long they wait and whether they are let in; a runtime only sees the queries whose turn it is. So the
policy of a server decides on what is seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
import threading
import time

from dnnshifter_ext.runtime.monitor import Monitor
from dnnshifter_ext.runtime.policies import History, Policy, SwitchDecision


class FullError(Exception):
    """There are as many queries in work or waiting as there may be."""


class ClosedError(Exception):
    """No query is let in any more."""


@dataclass(frozen=True)
class DoorStats:
    """A snapshot. Latencies are from the arrival to the answer, with the wait.

    num_inside: in work or waiting, of max_queries; num_refused: for lack of room, or after the door was closed;
    num_failed: let in and not answered.
    qps: arrivals per second over the last second, refused ones too. p50_ms, p99_ms: of the latest answers, or None.
    """

    max_queries: int
    num_inside: int
    num_answered: int
    num_refused: int
    num_failed: int
    qps: float
    p50_ms: float | None
    p99_ms: float | None
    is_closed: bool

    def to_dict(self) -> dict:
        """Plain data, as JSON has it."""
        return asdict(self)


class Door:
    """May be used from any thread. names: of the variants, smallest first. clock: seconds, rising."""

    def __init__(self, names: Sequence[str], max_queries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._names = tuple(names)
        self._max_queries = max_queries
        self._lock = threading.Lock()
        self._monitor = Monitor(names, 0, clock)
        self._num_inside = self._num_refused = 0
        self._is_closed = False

    def enter(self) -> Visit:
        """Of one query, which has just arrived. Raises FullError, or ClosedError after `close`."""
        arrival_s = self._monitor.arrived()
        with self._lock:
            refusal = ClosedError if self._is_closed else FullError if self._num_inside == self._max_queries else None
            if refusal is None:
                self._num_inside += 1
            else:
                self._num_refused += 1
        if refusal is not None:
            self._monitor.failed()
            raise refusal
        return Visit(self, arrival_s)

    def leave(self, visit: Visit) -> None:
        """What `Visit.leave` does."""
        if visit.answered_by is None:
            self._monitor.failed()
        else:
            self._monitor.answered(visit.arrival_s, self._names.index(visit.answered_by))
        with self._lock:
            self._num_inside -= 1

    def close(self) -> None:
        """Queries inside stay until they are answered."""
        with self._lock:
            self._is_closed = True

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def num_inside(self) -> int:
        return self._num_inside

    def history(self, active: int) -> History:
        """As callers see it, while this variant answers."""
        if self._monitor.history()[0].active != active:
            self._monitor.switched(active)
        return self._monitor.history()[0]

    def stats(self) -> DoorStats:
        seen = self._monitor.counters()
        with self._lock:
            return DoorStats(
                max_queries=self._max_queries, num_inside=self._num_inside, num_refused=self._num_refused,
                num_answered=sum(seen['num_queries'].values()), num_failed=seen['num_failed'] - self._num_refused,
                qps=seen['qps'], p50_ms=seen['p50_ms'], p99_ms=seen['p99_ms'], is_closed=self._is_closed)


@dataclass(eq=False)
class Visit:
    """One query, inside. As a context manager it leaves at the end. answered_by: the variant, None if none did."""

    _door: Door
    arrival_s: float
    answered_by: str | None = None

    def leave(self) -> None:
        """Makes room for another one."""
        self._door.leave(self)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


@dataclass(frozen=True, eq=False)
class AtTheDoor:
    """The policy, deciding on the queries that arrive there and on latencies that include the wait."""

    policy: Policy
    door: Door

    def decide(self, history: History, now_s: float) -> SwitchDecision:
        """`history`: of the runtime, which knows what is active and when it was switched."""
        seen = self.door.history(history.active)
        return self.policy.decide(replace(seen, last_switch_s=history.last_switch_s), now_s)
