"""The runtime: one variant answers, another takes its place when the load changes, and no query notices.

Whoever answers a query takes a reference to the active variant once and finishes with it. A new variant is made ready
beside it, tried once, and published by one assignment; the old one's memory goes when its last reader leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import contextlib
from dataclasses import dataclass
import os
import queue
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING
import weakref

import numpy as np

from dnnshifter_ext.package import Package, PackageError, files
from dnnshifter_ext.runtime import backends
from dnnshifter_ext.runtime.backends import Plan
from dnnshifter_ext.runtime.monitor import Monitor
from dnnshifter_ext.runtime.policies import Policy, QPSTrend, SwitchDecision, within_budget
from dnnshifter_ext.runtime.stats import Stats, SwitchRecord, prometheus
from dnnshifter_ext.runtime.store import Ready, Store
from open_lth.foundations.errors import UserError

if TYPE_CHECKING:
    import torch

DIRECTIONS = {'smaller': -1, 'larger': 1}
MAX_RECORDS = 100
MIB = 2**20


@dataclass(frozen=True, eq=False)
class Answer:
    """outputs: of the kind that was handed in. variant: who gave them, all of them."""

    outputs: np.ndarray | torch.Tensor
    variant: str
    latency_ms: float


class Runtime:
    """A portfolio in use. All methods may be called from any thread.

    path: of the package; or a Package. backend: 'torch', 'numpy' or 'onnxruntime', of which only the first needs torch.
    policy: decides every `decide_every_s` seconds, in a thread of the runtime; None: only when `decide` is called.
    memory_budget_mb: for everything in `Stats.memory` but the scratch, in MiB; None without limit.
    clock: seconds, rising, for all times but those of the phases of a switch. num_threads: of one inference; by
    default torch's, or one per core; with torch it is set for the process.

    The variant of median size answers first, or the nearest to it that fits the budget. Raises UserError for a package
    that is missing or damaged, a back end that is not installed or cannot run a variant, and too small a budget.
    """

    def __init__(self, path: str | os.PathLike | Package, *, backend: str = 'torch', policy: Policy | None = None,
                 memory_budget_mb: float | None = None, clock: Callable[[], float] = time.monotonic,
                 num_threads: int | None = None, decide_every_s: float | None = 0.1) -> None:
        package = path if isinstance(path, Package) else _load(path)
        self._names = tuple(variant.name for variant in package.variants)
        if not self._names:
            raise UserError(f'{path} has no variant')
        self._backend = backend
        self._policy = QPSTrend() if policy is None else policy
        self._switching = threading.Lock()  # held by whoever makes or publishes variants
        self._active: Ready | None = None
        self._prefetched: Ready | None = None
        self._not_prefetched: set[int] = set()  # what failed once
        self._records: deque[SwitchRecord] = deque(maxlen=MAX_RECORDS)
        self._num_switches = self._num_failed_switches = 0
        self._last_decision = ''
        self._callers: weakref.WeakSet[_Caller] = weakref.WeakSet()
        self._local = threading.local()
        try:
            plans = backends.plans(backend, package.variants, num_threads)
            self._input_shape = _common_input_shape(plans)
            self._store = Store(package, plans)
            self._inflated_bytes = None if memory_budget_mb is None else (
                int(memory_budget_mb * MIB) - self._store.deflated_bytes)
            self._monitor = Monitor(self._names, self._first(memory_budget_mb), clock)
            history, now_s = self._monitor.history()
            first = self._policy.decide(history, now_s).target
            if first != history.active:
                self._require_within_budget(first, 0)
                self._monitor = Monitor(self._names, first, clock)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error
        try:
            self._active = self._store.make(first, self._example())
        except Exception as error:  # a model may raise anything
            raise UserError(f"variant '{self._names[first]}' cannot answer: {_one_line(error)}") from error
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(decide_every_s,), name='dnnshifter', daemon=True)
        self._thread.start()

    def infer(self, batch: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
        """(N, ...) float32 -> (N, outputs), a tensor for a tensor, an array for an array.

        Raises ValueError for a batch of another shape or type, RuntimeError after `close`.
        """
        return self.answer(batch).outputs

    def answer(self, batch: np.ndarray | torch.Tensor) -> Answer:
        """The same, with the name of the variant that answered."""
        array = self._checked(batch)
        arrival_s = self._monitor.arrived()
        try:
            active = self._active  # from here on, this variant and no other
            if active is None:
                raise RuntimeError('the runtime is closed')
            outputs = active(array)
        except BaseException:
            self._monitor.failed()
            raise
        latency_ms = self._monitor.answered(arrival_s, active.index)
        return Answer(outputs if isinstance(batch, np.ndarray) else sys.modules['torch'].from_numpy(outputs),
                      active.name, latency_ms)

    def switch_to(self, target: str, *, wait: bool = True) -> SwitchRecord | None:
        """Lets a variant answer from now on: `target` by name, or 'smaller' or 'larger' for the neighbour.

        wait: return when it does, with the record of the switch (None if it did already); else return None at once,
        and the switch happens in the background, its errors being in `stats`.
        Raises UserError for a variant that there is none of or that does not fit the memory budget, and, when waiting,
        PackageError or whatever else went wrong; the old variant then goes on.
        """
        begin_s = time.perf_counter()
        index = self._index(target)
        decide_ms = (time.perf_counter() - begin_s) * 1e3
        if wait:
            return self._switch(index, 'asked for', decide_ms)
        self._tasks.put(lambda: self._switch(index, 'asked for', decide_ms))
        return None

    def prefetch(self, target: str) -> bool:
        """Makes a variant ready beside the active one, so that a switch to it is one assignment.

        False if the memory budget does not allow it. Raises as `switch_to` does.
        """
        return self._prefetch(self._index(target))

    def decide(self) -> SwitchDecision:
        """What the policy says now, carried out, prefetching included. The runtime calls this every `decide_every_s`.

        A switch that fails is in `stats`, and is not raised.
        """
        begin_s = time.perf_counter()
        history, now_s = self._monitor.history()
        decision = within_budget(self._policy.decide(history, now_s), history, self._store.bytes_needed,
                                 self._inflated_bytes)
        self._last_decision = decision.reason
        decide_ms = (time.perf_counter() - begin_s) * 1e3
        with contextlib.suppress(Exception):  # it is in the records
            if decision.target != history.active:
                self._switch(decision.target, decision.reason, decide_ms)
            elif decision.prefetch is not None and decision.prefetch not in self._not_prefetched:
                self._prefetch(decision.prefetch)
        return decision

    def stats(self) -> Stats:
        """A snapshot. Raises RuntimeError after `close`."""
        active, prefetched = self._active, self._prefetched
        if active is None:
            raise RuntimeError('the runtime is closed')
        return Stats(
            active=active.name, prefetched=prefetched.name if prefetched else None, variants=self._names,
            backend=self._backend, num_switches=self._num_switches, num_failed_switches=self._num_failed_switches,
            switches=tuple(self._records), last_decision=self._last_decision,
            memory=self._store.memory(active, prefetched, len(self._callers)), **self._monitor.counters())

    def prometheus(self) -> str:
        """The snapshot in Prometheus' text exposition format."""
        return prometheus(self.stats())

    def close(self) -> None:
        """Ends the runtime's thread and gives the memory back. Queries that are being answered still are."""
        self._tasks.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._switching:
            self._active = self._prefetched = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    # ---- switching

    def _switch(self, index: int, reason: str, decide_ms: float) -> SwitchRecord | None:
        with self._switching:
            source = self._active
            if source is None:
                raise RuntimeError('the runtime is closed')
            if source.index == index:
                return None
            ready = self._prefetched
            was_prefetched = ready is not None and ready.index == index
            self._prefetched = None  # its memory goes first if it is another one
            try:
                if not was_prefetched:
                    ready = None
                    self._require_within_budget(index, self._store.inflated_bytes())
                    ready = self._store.make(index, self._example())
            except Exception as error:
                self._monitor.failed_to_switch()
                self._num_failed_switches += 1
                self._record(source, index, reason, was_prefetched, decide_ms, error=_one_line(error))
                raise
            begin_s = time.perf_counter()
            self._active = ready
            publish_ms = (time.perf_counter() - begin_s) * 1e3
            self._monitor.switched(index)
            self._num_switches += 1
            return self._record(source, index, reason, was_prefetched, decide_ms, publish_ms,
                                *(() if was_prefetched else (ready.inflate_ms, ready.rebuild_ms,
                                                             ready.first_inference_ms)))

    def _record(self, source: Ready, index: int, reason: str, was_prefetched: bool, decide_ms: float,
                publish_ms: float = 0.0, inflate_ms: float = 0.0, rebuild_ms: float = 0.0,
                first_inference_ms: float = 0.0, error: str = '') -> SwitchRecord:
        record = SwitchRecord(
            at_s=self._monitor.now_s(), source=source.name, target=self._names[index], reason=reason,
            was_prefetched=was_prefetched, decide_ms=decide_ms, inflate_ms=inflate_ms, rebuild_ms=rebuild_ms,
            first_inference_ms=first_inference_ms, publish_ms=publish_ms, error=error)
        self._records.append(record)
        return record

    def _prefetch(self, index: int) -> bool:
        with self._switching:
            if self._active is None:
                raise RuntimeError('the runtime is closed')
            if index in (self._active.index, self._prefetched.index if self._prefetched else None):
                return True
            self._prefetched = None
            needed = self._store.inflated_bytes() + self._store.bytes_needed[index]
            if self._inflated_bytes is not None and needed > self._inflated_bytes:
                return False
            try:
                self._prefetched = self._store.make(index, self._example())
            except Exception as error:
                self._not_prefetched.add(index)
                self._num_failed_switches += 1
                self._record(self._active, index, 'prefetch', False, 0.0, error=_one_line(error))
                raise
            return True

    def _work(self, decide_every_s: float | None) -> None:
        """The runtime's thread."""
        while True:
            try:
                task = self._tasks.get(timeout=decide_every_s)
            except queue.Empty:
                task = self.decide
            if task is None:
                return
            try:
                task()
            except Exception as error:  # failed switches are in the records; a policy may fail too
                self._last_decision = f'failed: {_one_line(error)}'

    # ---- what is asked for

    def _checked(self, batch: np.ndarray | torch.Tensor) -> np.ndarray:
        array = batch
        if not isinstance(batch, np.ndarray):
            if type(batch).__module__.partition('.')[0] != 'torch':
                raise ValueError(f'a batch is an array or a tensor, not {type(batch).__name__}')
            array = batch.detach().cpu().numpy()
        wanted = 'N, ...' if self._input_shape is None else ', '.join(map(str, ('N', *self._input_shape)))
        if array.dtype != np.float32 or array.ndim < 2 or not len(array) or (
                self._input_shape is not None and array.shape[1:] != self._input_shape):
            raise ValueError(f'a batch is float32 ({wanted}) with N at least 1, not {array.dtype} {array.shape}')
        if getattr(self._local, 'caller', None) is None:
            self._local.caller = _Caller()
            self._callers.add(self._local.caller)
        return np.ascontiguousarray(array)

    def _example(self) -> np.ndarray | None:
        """What a new variant is tried on."""
        return None if self._input_shape is None else np.zeros((1, *self._input_shape), np.float32)

    def _index(self, target: str) -> int:
        active = self._active
        if active is None:
            raise RuntimeError('the runtime is closed')
        if target in self._names:
            return self._names.index(target)
        if target not in DIRECTIONS:
            raise UserError(f"there is no variant '{target}', only {', '.join(self._names)} (and "
                            f'{" or ".join(DIRECTIONS)})')
        index = active.index + DIRECTIONS[target]
        if not 0 <= index < len(self._names):
            raise UserError(f"there is no {target} variant than '{active.name}'")
        return index

    def _first(self, memory_budget_mb: float | None) -> int:
        """The median, or, where that does not fit the budget, the largest that does."""
        bytes_needed = self._store.bytes_needed
        median = (len(bytes_needed) - 1) // 2
        fitting = [index for index in range(median + 1)
                   if self._inflated_bytes is None or bytes_needed[index] <= self._inflated_bytes]
        if not fitting:
            needed_mb = (self._store.deflated_bytes + bytes_needed[0]) / MIB
            raise UserError(f'memory_budget_mb: {memory_budget_mb:g} MiB are too few, the package and its smallest '
                            f'variant take {needed_mb:.2f}')
        return fitting[-1]

    def _require_within_budget(self, index: int, used_bytes: int) -> None:
        needed = used_bytes + self._store.bytes_needed[index]
        if self._inflated_bytes is not None and needed > self._inflated_bytes:
            raise UserError(f"'{self._names[index]}' does not fit the memory budget: "
                            f'{(needed + self._store.deflated_bytes) / MIB:.2f} MiB would be needed')


class _Caller:
    """Lives as long as a thread that has called."""


def _load(path: str | os.PathLike) -> Package:
    try:
        return files.load(path)
    except FileNotFoundError as error:
        raise UserError(f'there is no package {path}') from error
    except (PackageError, OSError) as error:
        raise UserError(str(error)) from error


def _common_input_shape(plans: tuple[Plan, ...]) -> tuple[int, ...] | None:
    shapes = {plan.input_shape for plan in plans}
    if len(shapes) > 1:
        raise ValueError(f'the variants take inputs of different shapes: {", ".join(map(str, shapes))}')
    [shape] = shapes
    return None if shape is None else tuple(shape)


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
