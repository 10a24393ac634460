"""Counts queries as they come and go; what policies and `Stats` know of them. Memory is bounded."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Sequence
import threading

import numpy as np

from dnnshifter_ext.runtime.policies import MAX_WINDOW_S, History
from dnnshifter_ext.runtime.stats import LATENCY_BOUNDS_MS

INTERVAL_S = 0.1
MAX_INTERVALS = round(MAX_WINDOW_S / INTERVAL_S)
MAX_LATENCIES = 1024


class Monitor:
    """May be used from any thread. clock: seconds, rising. names: of the variants, smallest first."""

    def __init__(self, names: Sequence[str], active: int, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._names = tuple(names)
        self._active = active
        self._end_s = clock()  # of the last complete interval
        self._num_queries: deque[int] = deque(maxlen=MAX_INTERVALS)
        self._num_now = 0
        self._of_active: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._latest: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._last_switch_s: float | None = None
        self._qps_at_switch: float | None = None
        self._latency_counts = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self._latency_sum_ms = 0.0
        self._num_answered = dict.fromkeys(self._names, 0)
        self._num_failed = self._num_in_flight = 0

    def arrived(self) -> float:
        """Of a query; the time."""
        now_s = self._clock()
        with self._lock:
            self._advance(now_s)
            self._num_now += 1
            self._num_in_flight += 1
        return now_s

    def answered(self, arrival_s: float, variant: int) -> float:
        """By this variant; the latency in milliseconds."""
        latency_ms = (self._clock() - arrival_s) * 1e3
        with self._lock:
            self._num_in_flight -= 1
            self._num_answered[self._names[variant]] += 1
            self._latency_counts[bisect.bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1
            self._latency_sum_ms += latency_ms
            self._latest.append(latency_ms)
            if variant == self._active:
                self._of_active.append(latency_ms)
        return latency_ms

    def failed(self) -> None:
        """The query raised an error."""
        with self._lock:
            self._num_in_flight -= 1
            self._num_failed += 1

    def switched(self, variant: int) -> None:
        """Another variant answers from now on."""
        now_s = self._clock()
        with self._lock:
            self._advance(now_s)
            self._active, self._last_switch_s, self._qps_at_switch = variant, now_s, self._qps()
            self._of_active.clear()

    def failed_to_switch(self) -> None:
        """The same one answers; that something was tried is known to policies, which let some time pass."""
        with self._lock:
            self._last_switch_s = self._clock()

    def now_s(self) -> float:
        return self._clock()

    def history(self) -> tuple[History, float]:
        """What has happened until now, and when that is."""
        now_s = self._clock()
        with self._lock:
            self._advance(now_s)
            return History(self._names, self._active, INTERVAL_S, np.array(self._num_queries, np.int64), self._end_s,
                           np.array(self._of_active), self._last_switch_s, self._qps_at_switch), now_s

    def counters(self) -> dict:
        """The fields of `Stats` that are about queries."""
        now_s = self._clock()
        with self._lock:
            self._advance(now_s)
            latest = np.array(self._latest)
            p50_ms, p99_ms = np.quantile(latest, (0.5, 0.99)).tolist() if len(latest) else (None, None)
            return {'num_queries': dict(self._num_answered), 'num_failed': self._num_failed,
                    'num_in_flight': self._num_in_flight, 'qps': self._qps() or 0.0,
                    'latency_counts': tuple(self._latency_counts), 'latency_sum_ms': self._latency_sum_ms,
                    'p50_ms': p50_ms, 'p99_ms': p99_ms}

    def _advance(self, now_s: float) -> None:
        """Closes the intervals that are over."""
        num = min(int((now_s - self._end_s) / INTERVAL_S), 2 * MAX_INTERVALS)
        if num > 0:
            self._num_queries.append(self._num_now)
            self._num_queries.extend([0] * (num - 1))
            self._num_now = 0
            # After a pause that is longer than what is kept, from now on.
            self._end_s = now_s if num == 2 * MAX_INTERVALS else self._end_s + num * INTERVAL_S

    def _qps(self) -> float | None:
        """Over the last second."""
        num = min(len(self._num_queries), round(1 / INTERVAL_S))
        return sum(self._num_queries[-index] for index in range(1, num + 1)) / (num * INTERVAL_S) if num else None
