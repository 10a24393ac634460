"""The package, deflated, and what is made of it: which variants are inflated, and how many bytes all of that takes."""

from __future__ import annotations

from dataclasses import dataclass, field
import itertools
import time
import weakref

import numpy as np

from dnnshifter_ext.package import Package
from dnnshifter_ext.runtime.backends import Model, Plan
from dnnshifter_ext.runtime.stats import Memory


@dataclass(eq=False)
class Ready:
    """A variant that can answer. Its memory is given back when nobody refers to it any more.

    inflate_ms, rebuild_ms, first_inference_ms: what it took.
    """

    index: int
    name: str
    model: Model = field(repr=False)
    inflate_ms: float
    rebuild_ms: float
    first_inference_ms: float

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return self.model.run(batch)


class Store:
    """plans: how each variant of the package is made."""

    def __init__(self, package: Package, plans: tuple[Plan, ...]) -> None:
        self._package = package
        self._plans = plans
        self._names = tuple(variant.name for variant in package.variants)
        self._keys = itertools.count()
        self._bytes: dict[int, int] = {}  # of all inflated weights; each operation on it is atomic
        self._being_made_bytes = 0
        self._peak_bytes = 0

    @property
    def deflated_bytes(self) -> int:
        return len(self._package.content)

    @property
    def bytes_needed(self) -> tuple[int, ...]:
        """Of each variant when it is inflated; at least as much as it takes."""
        return tuple(plan.num_bytes for plan in self._plans)

    def make(self, index: int, example: np.ndarray | None) -> Ready:
        """Inflates a variant, rebuilds it, and lets it answer `example`, if there is one.

        One at a time. Raises PackageError when the package is damaged, and whatever a model may raise; nothing is left
        behind then.
        """
        plan, key = self._plans[index], next(self._keys)
        self._bytes[key] = self._being_made_bytes = plan.num_bytes
        self._note_peak()
        try:
            begin_s = time.perf_counter()
            weights = plan.inflate()
            inflated_s = time.perf_counter()
            model = plan.rebuild(weights)
            rebuilt_s = time.perf_counter()
            if example is not None:
                model.run(example)
            done_s = time.perf_counter()
        except BaseException:
            del self._bytes[key]
            raise
        finally:
            self._being_made_bytes = 0
        ready = Ready(index, self._names[index], model, (inflated_s - begin_s) * 1e3, (rebuilt_s - inflated_s) * 1e3,
                      (done_s - rebuilt_s) * 1e3)
        self._bytes[key] = model.num_bytes
        weakref.finalize(ready, self._bytes.pop, key, None).atexit = False
        return ready

    def memory(self, active: Ready | None, prefetched: Ready | None, num_threads: int) -> Memory:
        """num_threads: in which models have been called, each with a scratch of its own."""
        self._note_peak()
        active_bytes, prefetched_bytes = (ready.model.num_bytes if ready else 0 for ready in (active, prefetched))
        prefetched_bytes += self._being_made_bytes
        scratch_bytes = num_threads * active.model.scratch_bytes() if active else 0
        return Memory(
            deflated_bytes=self.deflated_bytes, active_bytes=active_bytes, prefetched_bytes=prefetched_bytes,
            old_bytes=max(0, self.inflated_bytes() - active_bytes - prefetched_bytes), scratch_bytes=scratch_bytes,
            peak_bytes=self._peak_bytes)

    def inflated_bytes(self) -> int:
        """Of all variants that are, also of old ones that still have a reader."""
        return sum(list(self._bytes.values()))

    def _note_peak(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self.deflated_bytes + self.inflated_bytes())
