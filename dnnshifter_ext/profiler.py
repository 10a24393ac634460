"""Module 5: what a model costs and what it is worth: size, accuracy, latency, memory.

Models that are to be compared are measured together, one run of each in turn, so that whatever else the
machine does falls on all of them alike and a speed-up is a ratio of the same minutes. "No gain" shows as a
ratio of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import copy
from dataclasses import asdict, dataclass
import statistics
import time

import torch
from torch import fx, nn

from dnnshifter_ext.graph import capture

MIN_RUNS = 3
MAX_RUNS = 1000


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch (not per image) over `num_runs` warm runs; `num_threads` is that of the CPU."""

    device: str
    batch_size: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    num_runs: int
    num_threads: int


@dataclass(frozen=True)
class PeakMemory:
    """The most bytes of tensors alive at once during one forward pass: weights, input and activations.

    On the CPU each activation is counted until its last use, scratch memory inside an operation is not; on a
    GPU it is what the allocator handed out, scratch memory included.
    """

    device: str
    batch_size: int
    peak_bytes: int


@dataclass(frozen=True)
class Profile:
    """One model. `accuracy` is top-1 as a fraction, None without test batches."""

    accuracy: float | None
    num_examples: int
    num_params: int
    num_nonzero_params: int
    size_bytes: int
    latencies: tuple[Latency, ...]
    peak_memory: tuple[PeakMemory, ...]

    def latency(self, device: str, batch_size: int) -> Latency:
        """The measurement on that device ('cpu', 'cuda') at that batch size; LookupError if there is none."""
        for latency in self.latencies:
            if (latency.device, latency.batch_size) == (device, batch_size):
                return latency
        raise LookupError(f'no latency was measured on {device} at batch size {batch_size}')

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> Profile:
        return cls(**data | {'latencies': tuple(Latency(**latency) for latency in data['latencies']),
                             'peak_memory': tuple(PeakMemory(**memory) for memory in data['peak_memory'])})


def profile(
    model: nn.Module, example_shape: Sequence[int], test_batches: Iterable | None = None,
    batch_sizes: Sequence[int] = (1, 128), device: torch.device | str = 'cpu', budget_s: float = 0.5,
) -> Profile:
    """The profile of one model; see `profile_together`."""
    together = profile_together({'model': model}, example_shape, test_batches, batch_sizes, device, budget_s)
    return together['model']


def profile_together(
    models: dict[str, nn.Module], example_shape: Sequence[int], test_batches: Iterable | None = None,
    batch_sizes: Sequence[int] = (1, 128), device: torch.device | str = 'cpu', budget_s: float = 0.5,
) -> dict[str, Profile]:
    """Name -> profile. Latency is always measured on the CPU, and on `device` too if that is another one.

    example_shape: of one input, without the batch. test_batches: pairs (inputs, labels), gone through once.
    budget_s: seconds of measuring per model, device and batch size after the warm-up; at least MIN_RUNS runs.
    Works on copies in evaluation mode; the models themselves stay as and where they are.
    """
    devices = dict.fromkeys(('cpu', torch.device(device).type))
    num_correct, num_examples = dict.fromkeys(models, 0), 0
    if test_batches is not None:
        num_correct, num_examples = _count_correct(models, test_batches, device)
    latencies: dict[str, list[Latency]] = {name: [] for name in models}
    memory: dict[str, list[PeakMemory]] = {name: [] for name in models}
    for where in devices:
        for batch_size in batch_sizes:
            for name, latency in compare_latency(models, example_shape, batch_size, where, budget_s).items():
                latencies[name].append(latency)
            for name, model in models.items():
                memory[name].append(PeakMemory(
                    where, batch_size, peak_memory_bytes(model, _batch(batch_size, example_shape), where)))
    return {
        name: Profile(
            accuracy=num_correct[name] / num_examples if num_examples else None,
            num_examples=num_examples,
            num_params=sum(p.numel() for p in model.parameters()),
            num_nonzero_params=sum(int(p.count_nonzero()) for p in model.parameters()),
            size_bytes=size_bytes(model),
            latencies=tuple(latencies[name]),
            peak_memory=tuple(memory[name]))
        for name, model in models.items()}


def compare_latency(
    models: dict[str, nn.Module], example_shape: Sequence[int], batch_size: int = 1,
    device: torch.device | str = 'cpu', budget_s: float = 0.5,
    clock_s: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Name -> latency, measured in turn: one run of each model, then the next round in the opposite order.

    clock_s: the clock of the CPU measurements, in seconds.
    """
    device = torch.device(device)
    inputs = _batch(batch_size, example_shape).to(device)
    timed = _cuda_run_ms if device.type == 'cuda' else _cpu_run_ms
    copies = _copies(models, device)
    runs_ms: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for model in copies.values():  # warm-up: lazy initialisation, choice of kernels, caches
            timed(model, inputs, clock_s)
            timed(model, inputs, clock_s)
        order = list(copies)
        spent_ms, num_rounds = 0.0, 0
        while num_rounds < MIN_RUNS or (spent_ms < budget_s * 1e3 * len(models) and num_rounds < MAX_RUNS):
            for name in order:
                runs_ms[name].append(timed(copies[name], inputs, clock_s))
                spent_ms += runs_ms[name][-1]
            order.reverse()
            num_rounds += 1
    return {name: _summary(runs, device, batch_size) for name, runs in runs_ms.items()}


def peak_memory_bytes(model: nn.Module, inputs: torch.Tensor, device: torch.device | str = 'cpu') -> int:
    """The most bytes alive at once when the model runs on `inputs`; see PeakMemory."""
    device = torch.device(device)
    with torch.inference_mode():
        if device.type == 'cuda':
            others = torch.cuda.memory_allocated(device)
            [copied] = _copies({'model': model}, device).values()
            torch.cuda.reset_peak_memory_stats(device)
            copied(inputs.to(device))
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - others
        counter = _LiveBytes(capture(model))
        counter.run(inputs)
        return size_bytes(model) + counter.peak_bytes


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are stored."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


class _LiveBytes(fx.Interpreter):
    """Runs a graph, frees every value after its last use, and remembers the most bytes alive at once."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self.peak_bytes = 0

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        # By storage: a view, or the result of an in-place operation, is no second copy.
        storages = (value.untyped_storage() for value in (*self.env.values(), result)
                    if isinstance(value, torch.Tensor))
        alive = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.peak_bytes = max(self.peak_bytes, sum(
            nbytes for pointer, nbytes in alive.items() if pointer not in self._weights))
        return result


def _count_correct(
    models: dict[str, nn.Module], test_batches: Iterable, device: torch.device | str,
) -> tuple[dict[str, int], int]:
    num_correct, num_examples = dict.fromkeys(models, 0), 0
    copies = _copies(models, torch.device(device))
    with torch.inference_mode():
        for inputs, labels in test_batches:
            inputs, labels = inputs.to(device), labels.to(device)
            num_examples += len(labels)
            for name, model in copies.items():
                num_correct[name] += int((model(inputs).argmax(1) == labels.view(-1)).sum())
    return num_correct, num_examples


def _copies(models: dict[str, nn.Module], device: torch.device) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(model).to(device).eval() for name, model in models.items()}


def _cpu_run_ms(model: nn.Module, inputs: torch.Tensor, clock_s: Callable[[], float]) -> float:
    start_s = clock_s()
    model(inputs)
    return (clock_s() - start_s) * 1e3


def _cuda_run_ms(model: nn.Module, inputs: torch.Tensor, clock_s: Callable[[], float]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    model(inputs)
    end.record()
    torch.cuda.synchronize(inputs.device)
    return start.elapsed_time(end)


def _summary(runs_ms: list[float], device: torch.device, batch_size: int) -> Latency:
    deciles = statistics.quantiles(runs_ms, n=10, method='inclusive')
    return Latency(
        device=device.type, batch_size=batch_size, median_ms=statistics.median(runs_ms), p10_ms=deciles[0],
        p90_ms=deciles[-1], num_runs=len(runs_ms), num_threads=torch.get_num_threads())


def _batch(batch_size: int, example_shape: Sequence[int]) -> torch.Tensor:
    """Inputs between 0 and 1 that are the same in every call and draw on no global generator."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size, *example_shape, generator=generator)
