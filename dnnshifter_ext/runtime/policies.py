"""When to switch, and to which variant: pure functions of a history and a clock.

A policy is frozen data with one method, `decide(history, now_s) -> SwitchDecision`. It keeps nothing, so the same
history always gives the same decision, and flapping can be tested without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Protocol

import numpy as np

MAX_WINDOW_S = 60  # histories go back no further


@dataclass(frozen=True, eq=False)
class History:
    """What a policy may know. Variants are numbered from the smallest, 0, to the largest.

    names: of the variants. active: the one that answers. last_switch_s: when it took over, or when a switch was
    tried and failed; None before any.
    qps_at_switch: queries per second at that time, None as long as nobody knows.
    interval_s, num_queries (T,): how many queries arrived in each interval of this length, the oldest first.
    end_s: when the last of these intervals ended.
    latencies_ms: (Q,) of the latest answers of the active variant, in the order in which they were given.
    """

    names: tuple[str, ...]
    active: int
    interval_s: float
    num_queries: np.ndarray
    end_s: float
    latencies_ms: np.ndarray
    last_switch_s: float | None = None
    qps_at_switch: float | None = None

    def counts(self, window_s: float, now_s: float) -> np.ndarray:
        """Queries in each interval that ended in the last `window_s`, and was over by now; the oldest first."""
        num = round(window_s / self.interval_s)
        num_idle = max(0, math.floor((now_s - self.end_s) / self.interval_s + 1e-9))  # nothing has arrived since
        return np.concatenate([self.num_queries, np.zeros(min(num_idle, num), self.num_queries.dtype)])[-num:]


@dataclass(frozen=True)
class SwitchDecision:
    """target: the variant that should answer, the active one to stay. prefetch: one that may soon; None for none."""

    target: int
    reason: str
    prefetch: int | None = None


class Policy(Protocol):
    """Whatever decides."""

    def decide(self, history: History, now_s: float) -> SwitchDecision:
        """`now_s`: of the same clock as the times in the history."""


@dataclass(frozen=True)
class Fixed:
    """Always the same variant: the one called `name`, or the one that is active."""

    name: str | None = None

    def decide(self, history: History, now_s: float) -> SwitchDecision:
        """Raises ValueError when there is no variant of that name."""
        if self.name is None:
            return SwitchDecision(history.active, 'fixed')
        if self.name not in history.names:
            raise ValueError(f"there is no variant '{self.name}', only {', '.join(history.names)}")
        return SwitchDecision(history.names.index(self.name), f"fixed to '{self.name}'")


@dataclass(frozen=True)
class QPSTrend:
    """The paper's (module 9): a smaller variant while queries per second rise, a larger one while they fall.

    The trend is the second half of the sliding window against the first. What keeps it from flapping:

    change: the rate must have changed by this share from one half to the other,
    and by more than `num_sigmas` standard deviations of a steady Poisson load;
    hysteresis: it must differ by this share from what it was at the last switch;
    cool_down_s: so long nothing happens after a switch.
    """

    window_s: float = 4.0
    change: float = 0.2
    hysteresis: float = 0.2
    cool_down_s: float = 2.0
    num_sigmas: float = 4.0

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no sense."""
        if not 0 < self.window_s <= MAX_WINDOW_S or self.change <= 0 or (
                min(self.hysteresis, self.cool_down_s, self.num_sigmas) < 0):
            raise ValueError(f'{self}: window_s must be above 0 and at most {MAX_WINDOW_S}, change above 0, the others '
                             '0 or more')

    def decide(self, history: History, now_s: float) -> SwitchDecision:
        """One step at a time; the neighbour in the direction of the trend may be prefetched."""
        counts = history.counts(self.window_s, now_s)
        half = round(self.window_s / history.interval_s) // 2
        if half == 0 or len(counts) < 2 * half:
            return SwitchDecision(history.active, 'the window is not full yet')
        before, after = int(counts[-2 * half:-half].sum()), int(counts[-half:].sum())
        qps = after / (half * history.interval_s)
        trend = after - before
        neighbour = _neighbour(history, trend > 0) if trend else None
        text = f'{before / (half * history.interval_s):.1f} -> {qps:.1f} queries/s'
        if neighbour is None:
            return SwitchDecision(history.active, f'{text}: there is no variant further on' if trend else text)
        stay = SwitchDecision(history.active, text, prefetch=neighbour)
        if abs(trend) < self.change * before or abs(trend) <= self.num_sigmas * math.sqrt(before + after):
            return stay
        if _is_cooling_down(history, now_s, self.cool_down_s):
            return stay
        then = history.qps_at_switch
        if then is not None and (qps - then) * trend <= self.hysteresis * then * abs(trend):
            return stay
        return SwitchDecision(neighbour, text)


@dataclass(frozen=True)
class LatencyTarget:
    """A smaller variant when answers take too long, a larger one when there is time to spare.

    target_ms: what the quantile of the latency (0.95: 95 of 100 answers) may be.
    spare: a larger variant is tried when the quantile is below this share of it.
    min_answers: of the active variant, before anything is decided. cool_down_s: so long nothing happens after a switch.
    """

    target_ms: float
    quantile: float = 0.95
    spare: float = 0.5
    min_answers: int = 20
    cool_down_s: float = 2.0

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no sense."""
        if self.target_ms <= 0 or not 0 < self.quantile <= 1 or not 0 <= self.spare < 1 or self.min_answers < 1 or (
                self.cool_down_s < 0):
            raise ValueError(f'{self}: target_ms > 0, 0 < quantile <= 1, 0 <= spare < 1, min_answers >= 1 and '
                             'cool_down_s >= 0 are needed')

    def decide(self, history: History, now_s: float) -> SwitchDecision:
        """One step at a time; the neighbour on the side where the latency lies may be prefetched."""
        if len(history.latencies_ms) < self.min_answers:
            return SwitchDecision(history.active, 'too few answers to judge by')
        latency_ms = float(np.quantile(history.latencies_ms, self.quantile))
        text = f'latency {latency_ms:.2f} ms for a target of {self.target_ms:g} ms'
        is_late, has_spare = latency_ms > self.target_ms, latency_ms < self.spare * self.target_ms
        neighbour = _neighbour(history, latency_ms > (1 + self.spare) / 2 * self.target_ms)
        if not (is_late or has_spare) or neighbour is None or _is_cooling_down(history, now_s, self.cool_down_s):
            return SwitchDecision(history.active, text, prefetch=neighbour)
        return SwitchDecision(neighbour, text)


def within_budget(decision: SwitchDecision, history: History, bytes_needed: tuple[int, ...],
                  budget_bytes: int | None) -> SwitchDecision:
    """The decision, or, where its target would not fit beside the active variant, the nearest to it that does.

    bytes_needed: of each variant when it is inflated. budget_bytes: for both, None without limit. A prefetch that does
    not fit is left out.
    """
    if budget_bytes is None:
        return decision

    def fits(variant: int) -> bool:
        return variant == history.active or bytes_needed[history.active] + bytes_needed[variant] <= budget_bytes

    prefetch = decision.prefetch if decision.prefetch is not None and fits(decision.prefetch) else None
    if fits(decision.target):
        return SwitchDecision(decision.target, decision.reason, prefetch)
    step = 1 if decision.target > history.active else -1
    target = next(variant for variant in range(decision.target, history.active - step, -step) if fits(variant))
    return SwitchDecision(
        target, f"{decision.reason}; '{history.names[decision.target]}' does not fit the memory budget", prefetch)


def _neighbour(history: History, smaller: bool) -> int | None:
    index = history.active + (-1 if smaller else 1)
    return index if 0 <= index < len(history.names) else None


def _is_cooling_down(history: History, now_s: float, cool_down_s: float) -> bool:
    return history.last_switch_s is not None and now_s - history.last_switch_s < cool_down_s
