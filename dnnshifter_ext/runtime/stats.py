"""What a runtime tells about itself: plain frozen data, and the same as text for Prometheus."""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Upper bounds of the histogram of latencies; above the last one there is one more bin.
LATENCY_BOUNDS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True)
class SwitchRecord:
    """One switch. Times in milliseconds; those of a variant that was inflated ahead say what was left to do.

    at_s: of the runtime's clock. error: one line when it failed and the old variant went on; '' otherwise.
    decide_ms: until it was known what to do; inflate_ms: the weights; rebuild_ms: the model around them;
    first_inference_ms: one answer, so that the first query does not wait; publish_ms: the assignment.
    """

    at_s: float
    source: str
    target: str
    reason: str
    was_prefetched: bool
    decide_ms: float
    inflate_ms: float
    rebuild_ms: float
    first_inference_ms: float
    publish_ms: float
    error: str = ''

    @property
    def overhead_ms(self) -> float:
        """Decide, inflate and rebuild: the paper's decision overhead."""
        return self.decide_ms + self.inflate_ms + self.rebuild_ms


@dataclass(frozen=True)
class Memory:
    """Bytes that the models take. peak_bytes: of all together, at the worst moment until now.

    deflated: the package; active, old, prefetched: inflated weights of the variant that answers, of those that still
    have a reader, of one made ahead or being made; scratch: what the sparse kernels work in, of all threads.
    """

    deflated_bytes: int
    active_bytes: int
    old_bytes: int
    prefetched_bytes: int
    scratch_bytes: int
    peak_bytes: int

    @property
    def total_bytes(self) -> int:
        return (self.deflated_bytes + self.active_bytes + self.old_bytes + self.prefetched_bytes + self.scratch_bytes)


@dataclass(frozen=True)
class Stats:
    """A snapshot.

    active: the variant that answers; prefetched: the one that is ready beside it, or None; variants: smallest first.
    num_queries: answered, by variant; num_failed: that raised an error; num_in_flight: being answered.
    qps: queries per second over the last second. latency_counts: answers per bin of LATENCY_BOUNDS_MS and one more.
    p50_ms, p99_ms: of the latest answers, None without any. num_switches: that succeeded; num_failed_switches: others.
    switches: the latest, oldest first. last_decision: why the policy did what it did last, or ''.
    """

    active: str
    prefetched: str | None
    variants: tuple[str, ...]
    backend: str
    num_queries: dict[str, int]
    num_failed: int
    num_in_flight: int
    qps: float
    latency_counts: tuple[int, ...]
    latency_sum_ms: float
    p50_ms: float | None
    p99_ms: float | None
    num_switches: int
    num_failed_switches: int
    switches: tuple[SwitchRecord, ...]
    last_decision: str
    memory: Memory

    def to_dict(self) -> dict:
        """Plain data, as JSON has it."""
        return asdict(self) | {'latency_bounds_ms': list(LATENCY_BOUNDS_MS)}


def prometheus(stats: Stats) -> str:
    """The snapshot in Prometheus' text exposition format, version 0.0.4."""
    memory = stats.memory
    by_category = {name.removesuffix('_bytes'): value for name, value in asdict(memory).items() if name != 'peak_bytes'}
    last = stats.switches[-1] if stats.switches else None
    phases = {} if last is None else {
        name: getattr(last, f'{name}_ms') / 1e3 for name in ('decide', 'inflate', 'rebuild', 'first_inference')}
    metrics = [
        _metric('active_variant', 'gauge', '1 for the variant that answers.',
                {f'{{variant="{name}"}}': int(name == stats.active) for name in stats.variants}),
        _metric('queries_total', 'counter', 'Queries answered.',
                {f'{{variant="{name}"}}': num for name, num in stats.num_queries.items()}),
        _metric('failed_queries_total', 'counter', 'Queries that raised an error.', {'': stats.num_failed}),
        _metric('in_flight_queries', 'gauge', 'Queries being answered.', {'': stats.num_in_flight}),
        _metric('queries_per_second', 'gauge', 'Over the last second.', {'': stats.qps}),
        _metric('switches_total', 'counter', 'Switches that succeeded.', {'': stats.num_switches}),
        _metric('failed_switches_total', 'counter', 'Switches that failed.', {'': stats.num_failed_switches}),
        _metric('last_switch_seconds', 'gauge', 'The latest switch, by phase.',
                {f'{{phase="{name}"}}': value for name, value in phases.items()}),
        _metric('memory_bytes', 'gauge', 'What the models take.',
                {f'{{category="{name}"}}': value for name, value in by_category.items()}),
        _metric('peak_memory_bytes', 'gauge', 'The same at the worst moment.', {'': memory.peak_bytes}),
        _histogram(stats),
    ]
    return ''.join(metrics)


def _metric(name: str, kind: str, text: str, samples: dict[str, float]) -> str:
    lines = [f'# HELP dnnshifter_{name} {text}', f'# TYPE dnnshifter_{name} {kind}',
             *(f'dnnshifter_{name}{labels} {value:.10g}' for labels, value in samples.items())]
    return '\n'.join(lines) + '\n'


def _histogram(stats: Stats) -> str:
    total, buckets = 0, {}
    bounds = [*(f'{bound / 1e3:g}' for bound in LATENCY_BOUNDS_MS), '+Inf']
    for bound, count in zip(bounds, stats.latency_counts, strict=True):
        total += count
        buckets[f'_bucket{{le="{bound}"}}'] = total
    return _metric('latency_seconds', 'histogram', 'From the call to the answer.',
                   {**buckets, '_sum': stats.latency_sum_ms / 1e3, '_count': total})
