"""Module 5: what a model costs and what it is worth: accuracy, size, operations, latency, memory.

Models that are to be compared are measured together, one run of each in turn, so that whatever else the
machine does falls on all of them alike and a speed-up is a ratio of the same minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import copy
from dataclasses import asdict, dataclass
import math
import platform
import statistics
import time

import torch
from torch import nn

from dnnshifter_ext.backends import CPU_ONLY, Run, prepare
from dnnshifter_ext.costs import num_flops, num_nonzero_params, num_params, peak_memory_bytes, size_bytes
from dnnshifter_ext.sparse.hybrid import InBlocks

MIN_RUNS = 5
MAX_RUNS = 1000
# Two copies of one model, timed in turn, can be 1 % apart in every round, for where their weights happen to lie.
MIN_GAIN = 1.02


@dataclass(frozen=True)
class Speedup:
    """How many times faster than another model: the median over the rounds in which both were timed.

    low, high: the 95 % confidence interval of that median (by order statistics; of 5 rounds, the extremes). A gain or a
    loss is one that the whole interval shows, and by more than MIN_GAIN.
    """

    median: float
    low: float
    high: float

    @property
    def is_gain(self) -> bool:
        return self.low >= MIN_GAIN

    @property
    def is_loss(self) -> bool:
        return self.high <= 1 / MIN_GAIN


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch (not per image) over `num_runs` warm runs.

    hardware: what `device` is; num_threads: that of torch on the CPU; speedup_over: each model that was timed in the
    same rounds and comes before this one.
    """

    device: str
    hardware: str
    backend: str
    batch_size: int
    num_threads: int
    num_runs: int
    p50_ms: float
    p95_ms: float
    speedup_over: dict[str, Speedup]

    @classmethod
    def from_dict(cls, data: dict) -> Latency:
        speedups = {name: Speedup(**speedup) for name, speedup in data['speedup_over'].items()}
        return cls(**data | {'speedup_over': speedups})


@dataclass(frozen=True)
class PeakMemory:
    """What `peak_memory_bytes` of module `costs` says."""

    device: str
    batch_size: int
    peak_bytes: int


@dataclass(frozen=True)
class Profile:
    """One model.

    accuracy: top-1 as a fraction; changed_predictions: on how many of the `num_examples` the model's class is not that
    of the first of the models it was profiled with. None without test batches.
    num_flops: of one example, a multiply-add being 2.
    """

    accuracy: float | None
    changed_predictions: int | None
    num_examples: int
    num_params: int
    num_nonzero_params: int
    num_flops: int
    size_bytes: int
    latencies: tuple[Latency, ...]
    peak_memory: tuple[PeakMemory, ...]

    def latency(self, device: str, batch_size: int, backend: str = 'eager') -> Latency:
        """The measurement on that device ('cpu', 'cuda') at that batch size; LookupError if there is none."""
        for latency in self.latencies:
            if (latency.device, latency.batch_size, latency.backend) == (device, batch_size, backend):
                return latency
        raise LookupError(f'no latency was measured on {device} at batch size {batch_size} with {backend}')

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Profile:
        return cls(**data | {'latencies': tuple(Latency.from_dict(latency) for latency in data['latencies']),
                             'peak_memory': tuple(PeakMemory(**memory) for memory in data['peak_memory'])})


def profile(
    model: nn.Module, example_shape: Sequence[int], test_batches: Iterable | None = None,
    batch_sizes: Sequence[int] = (1, 128), device: torch.device | str = 'cpu', budget_s: float = 0.5,
    backends: Sequence[str] = ('eager',),
) -> Profile:
    """The profile of one model; see `profile_together`."""
    together = profile_together(
        {'model': model}, example_shape, test_batches, batch_sizes, device, budget_s, backends)
    return together['model']


def profile_together(
    models: dict[str, nn.Module], example_shape: Sequence[int], test_batches: Iterable | None = None,
    batch_sizes: Sequence[int] = (1, 128), device: torch.device | str = 'cpu', budget_s: float = 0.5,
    backends: Sequence[str] = ('eager',),
) -> dict[str, Profile]:
    """Name -> profile. Latency is always measured on the CPU, and on `device` too if that is another one.

    example_shape: of one input, without the batch. test_batches: pairs (inputs, labels), gone through once.
    budget_s: seconds of measuring per model, device, back end and batch size after the warm-up; at least MIN_RUNS runs.
    backends: any of `backends.BACKENDS`; ONNX Runtime is measured on the CPU only.
    Works on copies in evaluation mode; the models themselves stay as and where they are. Models with sparse layers are
    measured on the CPU, in eager mode, only.
    Raises ValueError when a model cannot be traced, or when a back end is not there or cannot run it.
    """
    devices = dict.fromkeys(('cpu', torch.device(device).type))
    latencies: dict[str, list[Latency]] = {name: [] for name in models}
    memory: dict[str, list[PeakMemory]] = {name: [] for name in models}
    for where in devices:
        for batch_size in batch_sizes:
            for backend in backends:
                if where == 'cpu' or backend not in CPU_ONLY:
                    able = {name: model for name, model in models.items()
                            if (where, backend) == ('cpu', 'eager') or not isinstance(model, InBlocks)}
                    timed = compare_latency(able, example_shape, batch_size, where, budget_s, backend)
                    for name, latency in timed.items():
                        latencies[name].append(latency)
            inputs = _batch(batch_size, example_shape)
            for name, model in models.items():
                if where != 'cpu' and isinstance(model, InBlocks):
                    continue
                memory[name].append(PeakMemory(where, batch_size, peak_memory_bytes(model, inputs, where)))
    num_correct, num_changed, num_examples = _count_predictions(models, test_batches or (), device)
    return {
        name: Profile(
            accuracy=num_correct[name] / num_examples if num_examples else None,
            changed_predictions=num_changed[name] if num_examples else None,
            num_examples=num_examples,
            num_params=num_params(model),
            num_nonzero_params=num_nonzero_params(model),
            num_flops=num_flops(model, _batch(1, example_shape)),
            size_bytes=size_bytes(model),
            latencies=tuple(latencies[name]),
            peak_memory=tuple(memory[name]))
        for name, model in models.items()}


def compare_latency(
    models: dict[str, nn.Module], example_shape: Sequence[int], batch_size: int = 1,
    device: torch.device | str = 'cpu', budget_s: float = 0.5, backend: str = 'eager',
    clock_s: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Name -> latency, measured in turn: one run of each model, then the next round in the opposite order.

    clock_s: the clock of the CPU measurements, in seconds. Raises ValueError as `backends.prepare` does.
    """
    device = torch.device(device)
    inputs = _batch(batch_size, example_shape).to(device)
    timed = _cuda_run_ms if device.type == 'cuda' else _cpu_run_ms
    runs_ms: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        # Preparing runs each once, which warms it up: lazy initialisation, choice of kernels, caches.
        prepared = {name: prepare(backend, model, inputs) for name, model in _copies(models, device).items()}
        order = list(prepared)
        spent_ms, num_rounds = 0.0, 0
        while num_rounds < MIN_RUNS or (spent_ms < budget_s * 1e3 * len(models) and num_rounds < MAX_RUNS):
            for name in order:
                runs_ms[name].append(timed(prepared[name], inputs, clock_s))
                spent_ms += runs_ms[name][-1]
            order.reverse()
            num_rounds += 1
    measured = {}
    for name, runs in runs_ms.items():
        percentiles = statistics.quantiles(runs, n=20, method='inclusive')
        measured[name] = Latency(
            device=device.type, hardware=_hardware(device), backend=backend, batch_size=batch_size,
            num_threads=torch.get_num_threads(), num_runs=num_rounds, p50_ms=percentiles[9], p95_ms=percentiles[18],
            speedup_over={earlier: speedup(runs_ms[earlier], runs) for earlier in measured})
    return measured


def speedup(before_ms: Sequence[float], after_ms: Sequence[float]) -> Speedup:
    """From the durations of the same rounds."""
    ratios = sorted(before / after for before, after in zip(before_ms, after_ms, strict=True))
    # The number of rounds below the true median is binomial: n / 2 +- 1.96 * sqrt(n) / 2.
    rank = max(1, int((len(ratios) - 1.96 * math.sqrt(len(ratios))) / 2))
    return Speedup(statistics.median(ratios), ratios[rank - 1], ratios[-rank])


def _count_predictions(
    models: dict[str, nn.Module], test_batches: Iterable, device: torch.device | str,
) -> tuple[dict[str, int], dict[str, int], int]:
    """Name -> correct ones, name -> those that are not the first model's, number of examples."""
    num_correct, num_changed, num_examples = dict.fromkeys(models, 0), dict.fromkeys(models, 0), 0
    copies = _copies(models, torch.device(device))
    with torch.inference_mode():
        for inputs, labels in test_batches:
            inputs, labels = inputs.to(device), labels.view(-1).cpu()
            num_examples += len(labels)
            reference = None
            for name, model in copies.items():
                predicted = model(inputs.cpu() if isinstance(model, InBlocks) else inputs).argmax(1).cpu()
                reference = predicted if reference is None else reference
                num_correct[name] += int((predicted == labels).sum())
                num_changed[name] += int((predicted != reference).sum())
    return num_correct, num_changed, num_examples


def _copies(models: dict[str, nn.Module], device: torch.device) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(model).to('cpu' if isinstance(model, InBlocks) else device).eval()
            for name, model in models.items()}


def _cpu_run_ms(run: Run, inputs: torch.Tensor, clock_s: Callable[[], float]) -> float:
    start_s = clock_s()
    run(inputs)
    return (clock_s() - start_s) * 1e3


def _cuda_run_ms(run: Run, inputs: torch.Tensor, clock_s: Callable[[], float]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run(inputs)
    end.record()
    torch.cuda.synchronize(inputs.device)
    return start.elapsed_time(end)


def _hardware(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{platform.machine()} {torch.backends.cpu.get_cpu_capability()}'


def _batch(batch_size: int, example_shape: Sequence[int]) -> torch.Tensor:
    """Inputs between 0 and 1 that are the same in every call and draw on no global generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, *example_shape, generator=generator)
