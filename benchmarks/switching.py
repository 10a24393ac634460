"""Switching between the variants of a VGG-16 portfolio: how long it takes, and what it takes in memory.

    OMP_NUM_THREADS=1 python -m benchmarks.switching [--checkpoints=FOLDER] [--backends=torch,numpy] [--rounds=N]
                                                     [--execution=sparse|auto|dense] [--output=FILE.json]

The portfolio: all VGG-16s of the folder (or made up ones), and the 64x one with the smallest half of its weights
pruned once more. Peers in the same process: an ensemble of the converted models, dense and in memory; and, per switch,
the same state dict compressed by zlib at level 6, then zlib, torch.load, load_state_dict into a dense model that is
there.

Cold: to a variant from its neighbour, both ways in turn in every round, after a round that is not counted. Decide is
what the policy QPSTrend takes on the history of a real load; inflate and rebuild end with a model that can be called.
Ready: the neighbour was inflated ahead; all that is left, decision and bookkeeping included. Under load: two threads
ask without a pause, one image at a time; "inside" are the queries that overlap a cold switch. Memory is counted by the
runtime; "as allocated" is the peak of what Python and numpy allocate (weights and all that inflating them takes), by
tracemalloc in a run of its own, the package included.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
import gc
import io
import itertools
from pathlib import Path
import sys
import threading
import time
import tracemalloc
import zlib

import numpy as np
import torch
from torch import nn

from benchmarks import checkpoints, output
from benchmarks.convert import machine, spread
from benchmarks.package import HALVED, networks, one_thread
import dnnshifter_ext
from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.package import Package, PackageError, deflate, models, read, write
from dnnshifter_ext.runtime import History, QPSTrend, Runtime, SwitchDecision, SwitchRecord, backends
from dnnshifter_ext.sparse.choice import EXECUTIONS
from open_lth.foundations.errors import UserError

MIB = 2**20
PHASES = ('decide_ms', 'inflate_ms', 'rebuild_ms', 'first_inference_ms')
NUM_CLIENTS = 2
QUIET_S = 2.0


@dataclass(eq=False)
class Portfolio:
    """content: the package; plain: name -> state dict by zlib; dense: name -> converted model."""

    content: bytes
    plain: dict[str, bytes]
    dense: dict[str, nn.Module]

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.package().variants]

    def package(self) -> Package:
        return read(self.content)


@dataclass
class Scripted:
    """Takes the time of a real policy, and then does what it is told."""

    policy: QPSTrend = field(default_factory=QPSTrend)
    target: int | None = None

    def decide(self, history: History, now_s: float) -> SwitchDecision:
        self.policy.decide(history, now_s)
        return SwitchDecision(history.active if self.target is None else self.target, 'as told')


@dataclass(frozen=True)
class Cold:
    """Of one variant, per round: the phases of our switch, and the plain way's time."""

    records: list[SwitchRecord]
    plain_ms: list[float]

    @property
    def ours_ms(self) -> list[float]:
        return [record.overhead_ms for record in self.records]


def make_portfolio(folder: str | None, execution: str) -> Portfolio:
    """Converts and packs. Raises UserError when the folder holds no VGG-16."""
    found = checkpoints.find(Path(folder)) if folder else checkpoints.SYNTHETIC
    names = [checkpoint.name for checkpoint in found if checkpoint.network == 'cifar_vgg_16']
    if len(names) < 2:
        raise UserError(f'{folder} holds {len(names)} VGG-16, and two are needed to switch')
    again = [name for name in names if '64' in name]
    variants, plain, dense = [], {}, {}
    for label, model, inputs, shape in networks(folder, ','.join(names), ','.join(again)):
        name = _ratio(model)
        print(f'converting {label} ({name})', file=sys.stderr, flush=True)
        conversion = dnnshifter_ext.convert(model, inputs, execution=execution)
        chosen = {} if conversion.execution is None else {'execution': conversion.execution.to_dict()}
        variants.append(models.variant(name, conversion.pruned, chosen | {'halved': label.endswith(HALVED)}, shape))
        state = io.BytesIO()
        torch.save(conversion.pruned.state_dict(), state)
        plain[name], dense[name] = zlib.compress(state.getvalue(), 6), conversion.pruned
    return Portfolio(write(variants), plain, dense)


def _ratio(model: nn.Module) -> str:
    """Prunable weights / weights left."""
    weights = [model.state_dict()[name] for name in model.prunable_layer_names]
    kept = sum(int(torch.count_nonzero(weight)) for weight in weights)
    return f'{sum(weight.numel() for weight in weights) / kept:.0f}x'


def cold_switches(portfolio: Portfolio, runtime: Runtime, policy: Scripted, rounds: int) -> dict[str, Cold]:
    """Up and down the portfolio, each switch followed by the plain way to the same variant."""
    found = {name: Cold([], []) for name in portfolio.names}
    path = [*range(1, len(portfolio.names)), *range(len(portfolio.names) - 2, -1, -1)]
    _told(runtime, policy, 0)
    for number in range(1 + rounds):
        for index in path:
            name = portfolio.names[index]
            record = _told(runtime, policy, index)
            begin_s = time.perf_counter()
            portfolio.dense[name].load_state_dict(
                torch.load(io.BytesIO(zlib.decompress(portfolio.plain[name])), weights_only=True))
            plain_ms = (time.perf_counter() - begin_s) * 1e3
            if number:
                found[name].records.append(record)
                found[name].plain_ms.append(plain_ms)
    return found


def ready_switches(portfolio: Portfolio, runtime: Runtime, policy: Scripted, num: int) -> list[float]:
    """Milliseconds of each: between the two smallest variants, the other one being ready."""
    times_ms = []
    _told(runtime, policy, 0)
    for number in range(num):
        policy.target = 1 - number % 2
        runtime.prefetch(portfolio.names[policy.target])
        begin_s = time.perf_counter()
        runtime.decide()
        times_ms.append((time.perf_counter() - begin_s) * 1e3)
        if not runtime.stats().switches[-1].was_prefetched:
            raise AssertionError('the switch was not to the variant that was ready')
    return times_ms


def _told(runtime: Runtime, policy: Scripted, index: int) -> SwitchRecord | None:
    policy.target = index
    runtime.decide()
    records = runtime.stats().switches
    if records and records[-1].error:
        raise AssertionError(records[-1].error)
    return records[-1] if records else None


def under_load(portfolio: Portfolio, runtime: Runtime, rounds: int) -> dict[str, list[float]]:
    """Latencies in milliseconds: 'quiet' of each of the two largest variants, 'inside' a switch between them."""
    image = np.zeros((1, 3, 32, 32), np.float32)
    answered: list[list[tuple[float, float]]] = [[] for _ in range(NUM_CLIENTS)]
    is_done = threading.Event()

    def ask(own: list) -> None:
        while not is_done.is_set():
            begin_s = time.perf_counter()
            runtime.infer(image)
            own.append((begin_s, time.perf_counter()))

    largest, second = portfolio.names[-1], portfolio.names[-2]
    runtime.switch_to(second)
    threads = [threading.Thread(target=ask, args=(own,)) for own in answered]
    for thread in threads:
        thread.start()
    windows, quiet = [], {}
    for name in (second, largest):
        runtime.switch_to(name)
        begin_s = time.perf_counter()
        time.sleep(QUIET_S)
        quiet[name] = begin_s, time.perf_counter()
    for _, name in zip(range(2 * rounds), itertools.cycle((second, largest))):
        begin_s = time.perf_counter()
        runtime.switch_to(name)
        windows.append((begin_s, time.perf_counter()))
        time.sleep(0.02)
    is_done.set()
    for thread in threads:
        thread.join()
    queries = [query for own in answered for query in own]

    def of(spans: Sequence[tuple[float, float]]) -> list[float]:
        return [(end_s - begin_s) * 1e3 for begin_s, end_s in queries
                if any(begin_s <= end and end_s >= begin for begin, end in spans)]

    return {**{f'quiet {name}': of([span]) for name, span in quiet.items()}, 'inside': of(windows)}


def allocated_bytes(portfolio: Portfolio, backend: str) -> int:
    """The peak, from a package that is not read yet, over all switches between neighbours."""
    content = bytes(bytearray(portfolio.content))  # counted below, once
    for _ in range(2):  # the first time, code is loaded
        gc.collect()
        tracemalloc.start()
        policy = Scripted()
        with Runtime(read(content), backend=backend, policy=policy, num_threads=1, decide_every_s=None) as runtime:
            for index in (*range(len(portfolio.names)), *range(len(portfolio.names) - 2, -1, -1)):
                _told(runtime, policy, index)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak_bytes + len(content)


def ensemble_ms(portfolio: Portfolio, rounds: int) -> list[float]:
    """One image through all models, and the most confident answer."""
    image, times_ms = torch.zeros(1, 3, 32, 32), []
    with torch.inference_mode():
        for _ in range(1 + rounds):
            begin_s = time.perf_counter()
            outputs = torch.cat([model(image).softmax(1) for model in portfolio.dense.values()])
            outputs[outputs.max(1).values.argmax()].argmax()
            times_ms.append((time.perf_counter() - begin_s) * 1e3)
    return times_ms[1:]


def measure(portfolio: Portfolio, backend: str, rounds: int) -> dict:
    policy = Scripted()
    with Runtime(portfolio.package(), backend=backend, policy=policy, num_threads=1, decide_every_s=None) as runtime:
        for _ in range(50):  # so that there is a history
            runtime.infer(np.zeros((1, 3, 32, 32), np.float32))
            time.sleep(0.002)
        cold = cold_switches(portfolio, runtime, policy, rounds)
        ready_ms = ready_switches(portfolio, runtime, policy, 40 * rounds)
        peak_bytes = runtime.stats().memory.peak_bytes
        load = under_load(portfolio, runtime, rounds)
    return {'cold': cold, 'ready_ms': ready_ms, 'peak_bytes': peak_bytes, 'load': load,
            'allocated_bytes': allocated_bytes(portfolio, backend)}


def report(portfolio: Portfolio, backend: str, result: dict, ensemble_times_ms: list[float]) -> str:
    """What was measured, as Markdown."""
    cold: dict[str, Cold] = result['cold']
    rows = [('switch to, cold (ms, p50)', *(phase.removesuffix('_ms').replace('_', ' ') for phase in PHASES),
             'decide + inflate + rebuild', 'p99', 'zlib-6 + torch.load', 'ratio')]
    for name in reversed(portfolio.names):
        ours_ms, plain_ms = cold[name].ours_ms, cold[name].plain_ms
        ratios = [plain / ours for plain, ours in zip(plain_ms, ours_ms, strict=True)]
        phases = [f'{np.median([getattr(record, phase) for record in cold[name].records]):.2f}' for phase in PHASES]
        rows.append((name, *phases, spread(ours_ms), f'{np.quantile(ours_ms, 0.99):.1f}', spread(plain_ms),
                     f'{spread(ratios)}x'))
    dense_bytes = sum(size_bytes(model) for model in portfolio.dense.values())
    peak_bytes, allocated = result['peak_bytes'], result['allocated_bytes']
    ready_ms, load = result['ready_ms'], result['load']
    quiet = {name: np.quantile(times, 0.99) for name, times in load.items() if name != 'inside'}
    inside_ms, slower_ms = np.quantile(load['inside'], 0.99), max(quiet.values())
    lines = [
        f'back end {backend}', '', _table(rows), '',
        f'switch, neighbour ready: p50 {np.median(ready_ms):.3f} ms, p99 {np.quantile(ready_ms, 0.99):.3f} ms '
        f'(n = {len(ready_ms)})',
        f'ensemble, one answer (all four models): {spread(ensemble_times_ms)} ms',
        f'memory: package {len(portfolio.content) / MIB:.2f} MiB; worst moment of a switch {peak_bytes / MIB:.2f} MiB, '
        f'as allocated {allocated / MIB:.2f} MiB; ensemble {dense_bytes / MIB:.1f} MiB: '
        f'1/{dense_bytes / peak_bytes:.1f}, as allocated 1/{dense_bytes / allocated:.1f}',
        'under load, p99: ' + ', '.join(f'{name} {value:.1f} ms' for name, value in quiet.items())
        + f', inside a switch {inside_ms:.1f} ms (n = {len(load["inside"])}): {inside_ms / slower_ms:.2f} times the '
        'slower one']
    return '\n'.join(lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *others = (f'| {" | ".join(row)} |' for row in rows)
    return '\n'.join([header, '|---|' + '---:|' * (len(rows[0]) - 1), *others])


def _plain_data(result: dict) -> dict:
    cold = {name: {'plain_ms': times.plain_ms, 'ours': [vars(record) for record in times.records]}
            for name, times in result['cold'].items()}
    return result | {'cold': cold}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.switching', description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoints', help='folder of NAME.npz, a state dict each; those that begin with vgg16 are '
                        'used (without it: random ones, made here)')
    parser.add_argument('--backends', default='torch,numpy', help=f'with commas between: {", ".join(backends.NAMES)}')
    parser.add_argument('--execution', default='sparse', choices=EXECUTIONS,
                        help='of the layers, for the torch back end')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--output', help='a JSON file of everything that was measured')
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1:
            raise UserError(f'--rounds must be at least 1, not {args.rounds}')
        unknown = set(args.backends.split(',')) - set(backends.NAMES)
        if unknown:
            raise UserError(f"--backends: there is no '{min(unknown)}', only {', '.join(backends.NAMES)}")
        output.require_folder(args.output)
        with one_thread():
            used = machine() | {'inflating with': deflate.LIBRARY}
            print(', '.join(f'{key} {value}' for key, value in used.items()), flush=True)
            portfolio = make_portfolio(args.checkpoints, args.execution)
            ensemble_times_ms = ensemble_ms(portfolio, args.rounds)
            results = {}
            for backend in args.backends.split(','):
                results[backend] = measure(portfolio, backend, args.rounds)
                print(f'\n{report(portfolio, backend, results[backend], ensemble_times_ms)}', flush=True)
    except (UserError, PackageError) as error:
        sys.exit(f'error: {error}')
    output.write(args.output, {'machine': used, 'arguments': vars(args), 'ensemble_ms': ensemble_times_ms,
                               'results': {backend: _plain_data(result) for backend, result in results.items()}})


if __name__ == '__main__':
    main()
