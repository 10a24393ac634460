"""A load on a portfolio, once with the switcher and once with each variant alone: what callers get, and what it costs.

Arrivals are open-loop: a query comes when the load says so, whether or not earlier ones are answered, and its latency
counts from that moment, so that no delay is left out. `simulate` answers with the latencies of the profiles under a
simulated clock; `replay` answers for real. Both ask the real policies. Pure but for `replay`, which takes its time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import heapq
import math
import time
from typing import Protocol

import numpy as np

from dnnshifter_ext.package import Package
from dnnshifter_ext.runtime.door import AtTheDoor, Door, FullError, Visit
from dnnshifter_ext.runtime.policies import History, Policy, within_budget
from dnnshifter_ext.runtime.runtime import Runtime

TICK_S = 0.1  # so often a policy is asked, and memory looked at
QUANTILES = {'p50_ms': 0.5, 'p99_ms': 0.99, 'p999_ms': 0.999}


# ---- loads

class Rate(Protocol):
    """Queries per second over time, never above max_qps."""

    max_qps: float

    def __call__(self, times_s: np.ndarray, duration_s: float) -> np.ndarray:
        """(T,) -> (T,)"""


@dataclass(frozen=True)
class Steps:
    """One rate after the other, each for an equal share of the time."""

    qps: tuple[float, ...]

    @property
    def max_qps(self) -> float:
        return max(self.qps)

    def __call__(self, times_s: np.ndarray, duration_s: float) -> np.ndarray:
        step = (times_s / duration_s * len(self.qps)).astype(int)
        return np.asarray(self.qps)[np.minimum(step, len(self.qps) - 1)]


@dataclass(frozen=True)
class Wave:
    """A sine between two rates, which begins at the lower one."""

    min_qps: float
    max_qps: float
    period_s: float

    def __call__(self, times_s: np.ndarray, duration_s: float) -> np.ndarray:
        height = (1 - np.cos(2 * np.pi * times_s / self.period_s)) / 2
        return self.min_qps + (self.max_qps - self.min_qps) * height


def poisson(rate: Rate, duration_s: float, seed: int) -> np.ndarray:
    """(Q,) rising arrival times of a Poisson process of this rate, in seconds, by thinning (Lewis & Shedler 1979)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    times_s = np.sort(generator.uniform(0, duration_s, generator.poisson(rate.max_qps * duration_s)))
    return times_s[generator.uniform(0, rate.max_qps, len(times_s)) < rate(times_s, duration_s)]


# ---- what happened

@dataclass(frozen=True)
class Costs:
    """Of one variant. latency_ms: of one query; num_bytes: inflated; accuracy: a fraction, None if nobody knows."""

    name: str
    latency_ms: float
    num_bytes: int
    accuracy: float | None


@dataclass(frozen=True)
class Limits:
    """max_queries: in work or waiting, more are refused; num_threads: how many are in work at once.

    inflated_bytes: that all inflated variants may take together, None without limit.
    """

    max_queries: int = 64
    num_threads: int = 1
    inflated_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """The same load under one policy.

    latencies_ms (Q,): from the arrival to the answer, infinite for a refused query; answered_by (Q,): the variant's
    number, -1 for none; rightness (Q,): 1 for a right answer, 0 for a wrong one or none, the variant's accuracy where
    nobody knows.
    times_s, active (T,): samples; memory_bytes: category -> (T,). peak_bytes: between samples too.
    num_switches: how often another variant took over.
    """

    latencies_ms: np.ndarray
    answered_by: np.ndarray
    rightness: np.ndarray
    times_s: np.ndarray
    active: np.ndarray
    memory_bytes: dict[str, np.ndarray]
    peak_bytes: int
    num_switches: int

    @property
    def total_bytes(self) -> np.ndarray:
        """(T,) of all categories."""
        return np.sum(list(self.memory_bytes.values()), axis=0)


@dataclass(frozen=True)
class Summary:
    """Of one run. Shares and accuracies are fractions of all queries that arrived, refused ones too.

    effective_accuracy: right answers within the deadline. Quantiles of the latency: a refused query is infinitely late.
    """

    label: str
    num_queries: int
    effective_accuracy: float
    on_time: float
    refused: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    switches_per_minute: float
    mean_memory_bytes: float
    peak_memory_bytes: int


def summarise(label: str, run: Run, deadline_ms: float, duration_s: float) -> Summary:
    """Raises ValueError without any query."""
    if not len(run.latencies_ms):
        raise ValueError('the load has no query')
    is_on_time = run.latencies_ms <= deadline_ms
    return Summary(
        label=label, num_queries=len(run.latencies_ms),
        effective_accuracy=float(np.mean(run.rightness * is_on_time)), on_time=float(is_on_time.mean()),
        refused=float(np.mean(run.answered_by < 0)),
        **{name: quantile(run.latencies_ms, share) for name, share in QUANTILES.items()},
        switches_per_minute=60 * run.num_switches / duration_s,
        mean_memory_bytes=float(run.total_bytes.mean()), peak_memory_bytes=run.peak_bytes)


def quantile(latencies_ms: np.ndarray, share: float) -> float:
    """The latency that at least this share of the queries has at most; infinite latencies are allowed."""
    return float(np.sort(latencies_ms)[math.ceil(share * len(latencies_ms)) - 1])


# ---- simulated

def simulate(variants: Sequence[Costs], arrivals_s: np.ndarray, duration_s: float, policy: Policy, limits: Limits, *,
             package_bytes: int, switch_ms: float) -> Run:
    """The run as it would be if each query took exactly the latency of the variant that begins it.

    variants: smallest first; the accuracy of each must be known. Queries are answered in the order of their arrival.
    switch_ms: from a decision to the new variant, which is made while the old one goes on; a prefetched one is there
    at once. The smallest variant, and the one of a fixed policy, must fit into limits.inflated_bytes.
    """
    simulation = _Simulation(variants, arrivals_s, policy, limits, switch_ms / 1e3)
    num_ticks = math.ceil(duration_s / TICK_S)
    samples = [simulation.tick(tick) for tick in range(num_ticks)]
    simulation.finish(num_ticks)
    active, making = (np.array(column) for column in zip(*samples, strict=True))
    num_bytes = np.array([variant.num_bytes for variant in variants])
    accuracy = np.array([*(variant.accuracy for variant in variants), 0.0])  # the last is that of -1
    memory = {'package': np.full(num_ticks, package_bytes), 'active': num_bytes[active],
              'ahead': np.where(making >= 0, num_bytes[making], 0)}
    return Run(simulation.latencies_ms, simulation.answered_by, accuracy[simulation.answered_by],
               TICK_S * np.arange(num_ticks), active, memory, package_bytes + simulation.peak_bytes,
               simulation.num_switches)


class _Simulation:
    """One run. A tick is a moment at which the policy is asked; in between queries are answered."""

    def __init__(self, variants: Sequence[Costs], arrivals_s: np.ndarray, policy: Policy, limits: Limits,
                 switch_s: float) -> None:
        self._names = tuple(variant.name for variant in variants)
        self._service_s = [variant.latency_ms / 1e3 for variant in variants]
        self._bytes_needed = tuple(variant.num_bytes for variant in variants)
        self._policy, self._limits, self._switch_s = policy, limits, switch_s
        self._arrivals_s = arrivals_s.tolist()
        self._num_arrivals = np.bincount((arrivals_s / TICK_S).astype(int))  # in each interval between ticks
        self._next = 0  # that arrives
        self._waiting: deque[int] = deque()
        self._free_s = [0.0] * limits.num_threads  # when each thread is; a heap
        self._in_work: list[tuple[float, float, int]] = []  # (end, latency in ms, variant); a heap
        self._seen_ms: deque[float] = deque(maxlen=1024)  # latencies of the active variant
        self._ahead: int | None = None  # the variant that is being made, or is ready
        self._ready_s = 0.0  # when it is
        self._is_switching = False
        self._last_switch_s: float | None = None
        self._qps_at_switch: float | None = None
        self._active = self._first()
        self.peak_bytes = self._bytes_needed[self._active]
        self.latencies_ms = np.full(len(arrivals_s), np.inf)
        self.answered_by = np.full(len(arrivals_s), -1)
        self.num_switches = 0

    def tick(self, number: int) -> tuple[int, int]:
        """(active variant, variant beside it or -1) once the policy has been asked at this tick."""
        self._go_on_until(number * TICK_S)
        if self._ahead is None or self._ready_s <= number * TICK_S:  # else whoever decides is at work
            self._decide(number)
        return self._active, -1 if self._ahead is None else self._ahead

    def finish(self, number: int) -> None:
        """Answers whatever is inside when the load ends."""
        self._go_on_until(number * TICK_S)
        self._answer_until(math.inf)

    def _first(self) -> int:
        """As a runtime begins: the median, or the nearest smaller one that fits; or what a fixed policy wants."""
        budget = self._limits.inflated_bytes
        median = (len(self._names) - 1) // 2
        self._active = max(index for index in range(median + 1)
                           if budget is None or self._bytes_needed[index] <= budget)
        return self._policy.decide(self._history(0), 0.0).target

    def _history(self, tick: int) -> History:
        counts = self._num_arrivals[:tick]
        counts = np.concatenate([counts, np.zeros(tick - len(counts), counts.dtype)])
        return History(self._names, self._active, TICK_S, counts, tick * TICK_S, np.array(self._seen_ms),
                       self._last_switch_s, self._qps_at_switch)

    def _decide(self, tick: int) -> None:
        now_s, budget = tick * TICK_S, self._limits.inflated_bytes
        history = self._history(tick)
        decision = within_budget(self._policy.decide(history, now_s), history, self._bytes_needed, budget)
        self._is_switching = decision.target != self._active
        wanted = decision.target if self._is_switching else decision.prefetch
        if wanted is not None and wanted != self._ahead:
            beside = self._bytes_needed[self._active] + self._bytes_needed[wanted]
            if budget is None or beside <= budget:
                self._ahead, self._ready_s = wanted, now_s + self._switch_s
                self.peak_bytes = max(self.peak_bytes, beside)
        if self._is_switching and self._ready_s <= now_s:
            self._publish(now_s)

    def _go_on_until(self, until_s: float) -> None:
        if self._is_switching and self._ready_s <= until_s:
            self._answer_until(self._ready_s)
            self._publish(self._ready_s)
        self._answer_until(until_s)

    def _publish(self, now_s: float) -> None:
        self._active, self._ahead, self._is_switching = self._ahead, None, False
        self._last_switch_s = now_s
        last_second = self._num_arrivals[:int(now_s / TICK_S)][-round(1 / TICK_S):]
        self._qps_at_switch = float(last_second.mean() / TICK_S) if len(last_second) else None
        self._seen_ms.clear()
        self.num_switches += 1

    def _answer_until(self, until_s: float) -> None:
        """Lets queries come in, and begins all that begin before then, with the active variant."""
        while True:
            begin_s = max(self._free_s[0], self._arrivals_s[self._waiting[0]]) if self._waiting else math.inf
            arrival_s = self._arrivals_s[self._next] if self._next < len(self._arrivals_s) else math.inf
            if min(begin_s, arrival_s) >= until_s:
                break
            if begin_s <= arrival_s:
                query, end_s = self._waiting.popleft(), begin_s + self._service_s[self._active]
                heapq.heapreplace(self._free_s, end_s)
                latency_ms = (end_s - self._arrivals_s[query]) * 1e3
                self.latencies_ms[query], self.answered_by[query] = latency_ms, self._active
                heapq.heappush(self._in_work, (end_s, latency_ms, self._active))
            else:
                num_in_work = sum(free_s > arrival_s for free_s in self._free_s)
                if len(self._waiting) + num_in_work < self._limits.max_queries:
                    self._waiting.append(self._next)
                self._next += 1
        while self._in_work and self._in_work[0][0] <= until_s:
            _, latency_ms, variant = heapq.heappop(self._in_work)
            if variant == self._active:
                self._seen_ms.append(latency_ms)


# ---- for real

@dataclass(frozen=True, eq=False)
class Questions:
    """What is asked, over and over. inputs (N, ...) float32; labels (N,), None where nobody knows the answers."""

    inputs: np.ndarray
    labels: np.ndarray | None = None


def replay(package: Package, arrivals_s: np.ndarray, duration_s: float, policy: Policy, limits: Limits, *,
           backend: str, questions: Questions, accuracies: Sequence[float | None]) -> Run:
    """The run, in real time, with a runtime of its own. Raises what a query raised.

    accuracies: of the variants, fractions, which stand for rightness without labels.
    """
    names = [variant.name for variant in package.variants]
    door = Door(names, limits.max_queries)
    budget_mb = None if limits.inflated_bytes is None else (limits.inflated_bytes + len(package.content)) / 2**20
    latencies_ms = np.full(len(arrivals_s), np.inf)
    answered_by, rightness = np.full(len(arrivals_s), -1), np.zeros(len(arrivals_s))

    with Runtime(package, backend=backend, policy=AtTheDoor(policy, door), memory_budget_mb=budget_mb,
                 num_threads=1) as runtime:
        def answer(query: int, visit: Visit) -> None:
            with visit:
                place = query % len(questions.inputs)
                answer = runtime.answer(questions.inputs[place:place + 1])
                visit.answered_by = answer.variant
            latencies_ms[query] = (time.monotonic() - begin_s - arrivals_s[query]) * 1e3
            answered_by[query] = names.index(answer.variant)
            rightness[query] = accuracies[answered_by[query]] if questions.labels is None else (
                answer.outputs.argmax() == questions.labels[place])

        futures, samples = [], []
        num_ticks = math.ceil(duration_s / TICK_S)
        with ThreadPoolExecutor(limits.num_threads, 'replay') as threads:
            begin_s = time.monotonic()
            for at_s, query in _merged(arrivals_s, num_ticks):
                time.sleep(max(0.0, begin_s + at_s - time.monotonic()))
                if query is None:
                    samples.append(runtime.stats())
                    continue
                try:
                    visit = door.enter()
                except FullError:
                    continue
                futures.append(threads.submit(answer, query, visit))
        for future in futures:
            future.result()
        last = runtime.stats()
    memory = {'package': [sample.memory.deflated_bytes for sample in samples],
              'active': [sample.memory.active_bytes for sample in samples],
              'ahead': [sample.memory.prefetched_bytes + sample.memory.old_bytes for sample in samples],
              'scratch': [sample.memory.scratch_bytes for sample in samples]}
    return Run(latencies_ms, answered_by, rightness, TICK_S * np.arange(num_ticks),
               np.array([names.index(sample.active) for sample in samples]),
               {name: np.array(values) for name, values in memory.items()}, last.memory.peak_bytes, last.num_switches)


def _merged(arrivals_s: np.ndarray, num_ticks: int) -> list[tuple[float, int | None]]:
    """(when, query or None for a sample), in the order of time."""
    ticks = [(TICK_S * tick, None) for tick in range(num_ticks)]
    return list(heapq.merge(zip(arrivals_s.tolist(), range(len(arrivals_s))), ticks, key=lambda event: event[0]))
