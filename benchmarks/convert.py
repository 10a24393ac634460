"""What a conversion costs and what comes out of it, beside two other tools, measured in one process.

    pip install -r benchmarks/requirements.txt    # the other tools; those that are missing are left out
    OMP_NUM_THREADS=2 python -m benchmarks.convert [--checkpoints=FOLDER] [--only=NAME,...] [--rounds=N] [--seconds=S]
                                                   [--backends=eager,compile] [--output=FILE.json]

Times: all tools convert the same network in turn, in the opposite order in every other round, after a round that is not
counted. A ratio is that of the same round. Peers change the model they are given: making that copy is not timed.
Differences: largest over all outputs, on random inputs; "fused by torch" is what fusing batch norms does by itself.
Memory: how far the resident set of a fresh process rises above what it is with the input model, after a small model has
been converted to load all code. Latency: models run in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
import contextlib
import copy
import ctypes
from dataclasses import asdict, dataclass
from functools import partial
import gc
import importlib.metadata
import multiprocessing
from pathlib import Path
import platform
import re
import statistics
import sys

import torch
from torch import nn

from benchmarks import checkpoints, converters, output
from benchmarks.checkpoints import Checkpoint
from benchmarks.converters import Converter, Stages
import dnnshifter_ext
from dnnshifter_ext.backends import BACKENDS
from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.graph import capture, trace_shapes
from dnnshifter_ext.methods.unstructured import cost
from dnnshifter_ext.profiler import Latency, compare_latency
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.removal import plan_removal
from dnnshifter_ext.structure import structure_of
from open_lth.foundations.errors import UserError

NUM_INPUTS = 64  # for the differences
NUM_EXAMPLES = 16  # what a conversion is given, as by main.py convert
MEMORY_RUNS = 3
MALLOPT_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
REFERENCE = 'torch-pruning'  # the peer that times are compared with
BASELINES = SPARSE, FUSED = 'sparse', 'fused by torch'  # the models that others are compared with
SMALL = Checkpoint('small', 'cifar_vgg_5', 10, ratio=4)


@dataclass(frozen=True)
class Quality:
    """A model beside the sparse one: size, and largest differences of the outputs.

    difference: both in float32. difference_float64: this one in float32, the sparse one in float64.
    """

    num_params: int
    num_bytes: int
    difference: float
    difference_float64: float
    changed_predictions: int


@dataclass(frozen=True)
class Memory:
    """Most bytes on top of the input model: capture, analysis and rebuilding; and `convert` as a whole, with its proof.
    """

    model_bytes: int
    conversion_bytes: int
    with_proof_bytes: int


@dataclass(frozen=True)
class Result:
    """All that was measured for one checkpoint, by tool.

    latencies: by back end and batch size before that; memory: ours, by how malloc treats freed memory; failures: why
    something of a tool, or of a back end, is missing.
    """

    checkpoint: str
    output_range: float
    stages: dict[str, list[Stages]]
    quality: dict[str, Quality]
    latencies: dict[str, dict[int, dict[str, Latency]]]
    memory: dict[str, Memory]
    failures: dict[str, str]


def measure(
    checkpoint: Checkpoint, rounds: int, seconds: float, batch_sizes: Sequence[int], backends: Sequence[str],
) -> Result:
    """Converts the network with every tool that is installed.

    seconds: of latency per model, back end and batch size. Only plain torch runs the layers of torch-simplify, so other
    back ends get no peer's model.
    """
    model, inputs = checkpoint.load(), checkpoint.inputs(NUM_INPUTS)
    stages, converted, failures = time_conversions(model, inputs[:NUM_EXAMPLES], converters.installed(), rounds)
    fused = copy.deepcopy(model)
    converters.fuse(fused, converters.conv_norm_pairs(fused))
    models = {SPARSE: model, FUSED: fused} | {
        name: other for name, other in converted.items() if name not in converters.TIMED_ONLY}
    with torch.inference_mode():
        outputs, outputs_float64 = model(inputs), copy.deepcopy(model).double()(inputs.double())
    quality = {}
    for name in list(models):
        other = models[name]
        try:
            quality[name] = quality_of(other, inputs, outputs, outputs_float64)
        except RuntimeError as error:
            failures[name] = f'its model does not run: {_first_line(error)}'
            del models[name]
    latencies: dict[str, dict[int, dict[str, Latency]]] = {}
    for backend in backends:
        able = {name: other for name, other in models.items() if backend == 'eager' or name not in converters.PEERS}
        try:
            latencies[backend] = {
                batch_size: compare_latency(able, inputs.shape[1:], batch_size, budget_s=seconds, backend=backend)
                for batch_size in batch_sizes}
        except ValueError as error:
            failures[backend] = _first_line(error)
    memory = {} if 'DNNShifter' in failures else measure_memory(checkpoint)
    return Result(checkpoint.name, float(outputs.max() - outputs.min()), stages, quality, latencies, memory, failures)


def time_conversions(
    model: nn.Module, inputs: torch.Tensor, tools: dict[str, Converter], rounds: int,
) -> tuple[dict[str, list[Stages]], dict[str, nn.Module], dict[str, str]]:
    """(tool -> its times in every round, tool -> its model, tool -> the error that it ended with)."""
    stages: dict[str, list[Stages]] = {name: [] for name in tools}
    converted: dict[str, nn.Module] = {}
    failures: dict[str, str] = {}
    order = list(tools)
    for _ in range(1 + rounds):
        with _no_garbage_collection():
            for name in order:
                own = copy.deepcopy(model)
                try:
                    converted[name], times = tools[name](own, inputs)
                    stages[name].append(times)
                except Exception as error:  # whatever a tool raises is its result
                    failures[name] = f'{type(error).__name__}: {_first_line(error)}'
        order = [name for name in reversed(order) if name not in failures]
    return {name: stages[name][1:] for name in tools if name in order}, {
        name: converted[name] for name in tools if name in order}, failures


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """One before and none within, as timeit does: it takes longer than a conversion."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def quality_of(
    model: nn.Module, inputs: torch.Tensor, outputs: torch.Tensor, outputs_float64: torch.Tensor,
) -> Quality:
    """outputs, outputs_float64: those of the sparse model. Raises RuntimeError when the model does not run."""
    with torch.inference_mode():
        own = model(inputs)
    return Quality(
        num_params=sum(p.numel() for p in model.parameters()),
        num_bytes=size_bytes(model),
        difference=float((own - outputs).abs().max()),
        difference_float64=float((own - outputs_float64).abs().max()),
        changed_predictions=int((own.argmax(1) != outputs.argmax(1)).sum()))


def measure_memory(checkpoint: Checkpoint) -> dict[str, Memory]:
    """How malloc treats freed memory -> what was measured, each in a process of its own; empty without a /proc."""
    if not Path('/proc/self/clear_refs').exists():
        return {}
    memory = {}
    for malloc, initializer in (('freed memory given back', _give_back_freed_memory), ("malloc's defaults", None)):
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), initializer) as process:
            memory[malloc] = process.submit(measure_memory_here, checkpoint).result()
    return memory


def measure_memory_here(checkpoint: Checkpoint) -> Memory:
    """In this very process."""
    dnnshifter_ext.convert(SMALL.load(), SMALL.inputs(NUM_EXAMPLES))  # loads all code
    model, inputs = checkpoint.load(), checkpoint.inputs(NUM_EXAMPLES)
    return Memory(size_bytes(model), *(
        max(cost.measured(partial(conversion, model, inputs), torch.device('cpu'))[1].peak_memory_bytes
            for _ in range(MEMORY_RUNS))
        for conversion in (_convert_without_proof, dnnshifter_ext.convert)))


def _give_back_freed_memory() -> None:
    """Blocks of 64 KiB and more, at once: otherwise it depends on the past of the process how much malloc keeps."""
    ctypes.CDLL(None).mallopt(MALLOPT_MMAP_THRESHOLD, 1 << 16)


def _convert_without_proof(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """The steps of `dnnshifter_ext.convert` but the last."""
    captured = capture(model)
    structure = structure_of(captured, trace_shapes(captured, [inputs[:1]]))
    return apply_plan(captured, plan_removal(structure), structure.facts)


def report(result: Result) -> str:
    """The result as text."""
    parts = [f'==== {result.checkpoint}', times_table(result.stages), quality_table(result)]
    if result.memory:
        parts.append(memory_table(result.memory))
    parts += [latency_table(f'{backend}, batch {batch_size}', latencies)
              for backend, by_batch_size in result.latencies.items() for batch_size, latencies in by_batch_size.items()]
    parts += [f'{name}: {failure}' for name, failure in result.failures.items()]
    return '\n\n'.join(parts)


def times_table(stages: dict[str, list[Stages]]) -> str:
    """Medians, for the sum and its ratio also from the smallest to the largest."""
    rows = [('conversion (ms)', 'capture', 'fuse', 'analyse', 'rebuild', 'all', 'all but capture', f'/ {REFERENCE}')]
    for name, times in stages.items():
        ratios = [own.conversion_ms / peer.conversion_ms for own, peer in zip(times, stages.get(REFERENCE, ()))]
        capture_ms, analysis_ms, rebuilding_ms = (
            f'{statistics.median(getattr(stage, field) for stage in times):.1f}'
            for field in ('capture_ms', 'analysis_ms', 'rebuilding_ms'))
        fusing_ms = [stage.fusing_ms for stage in times if stage.fusing_ms is not None]
        rows.append((
            name, capture_ms, f'{statistics.median(fusing_ms):.1f}' if fusing_ms else 'in rebuild', analysis_ms,
            rebuilding_ms, f'{statistics.median(stage.capture_ms + stage.conversion_ms for stage in times):.1f}',
            spread([stage.conversion_ms for stage in times]), spread(ratios, 2) if ratios else '-'))
    num_rounds = max(map(len, stages.values()), default=0)
    return f'{aligned(rows)}\nmedian (min-max), n = {num_rounds}; a ratio is that of the same round'


def quality_table(result: Result) -> str:
    fused = result.quality[FUSED]
    rows = [('size and outputs', 'parameters', 'smaller', 'MB', 'max |diff|', '/ fusion', 'to float64', '/ fusion',
             'changed')]
    for name, quality in result.quality.items():
        rows.append((
            name, f'{quality.num_params:,}', f'{fused.num_params / quality.num_params:.2f}x',
            f'{quality.num_bytes / 1e6:.2f}', f'{quality.difference:.2g}',
            relative(quality.difference, fused.difference), f'{quality.difference_float64:.2g}',
            relative(quality.difference_float64, fused.difference_float64), f'{quality.changed_predictions}'))
    return (f'{aligned(rows)}\nsmaller: than with batch norms fused. max |diff|: to the sparse model, both in float32; '
            f'to float64: to the sparse model in float64.\n'
            f'The outputs range over {result.output_range:.3g}. changed: predictions, of {NUM_INPUTS}')


def memory_table(memory: dict[str, Memory]) -> str:
    rows = [('memory on top of the input model', 'conversion', '/ model', 'with its proof', '/ model')]
    for malloc, measured in memory.items():
        rows.append((malloc, *(
            cell for num_bytes in (measured.conversion_bytes, measured.with_proof_bytes)
            for cell in (f'{num_bytes / 1e6:.1f} MB', f'{num_bytes / measured.model_bytes:.2f}'))))
    return f'{aligned(rows)}\nresident set at most, in {MEMORY_RUNS} runs'


def latency_table(title: str, latencies: dict[str, Latency]) -> str:
    rows = [(f'latency, {title} (ms)', 'p50', 'p95', 'runs', *(f'speed-up over {name}' for name in BASELINES))]
    for name, latency in latencies.items():
        speedups = (latency.speedup_over.get(baseline) for baseline in BASELINES)
        rows.append((name, f'{latency.p50_ms:.2f}', f'{latency.p95_ms:.2f}', f'{latency.num_runs}', *(
            f'{speedup.median:.2f}x ({speedup.low:.2f}-{speedup.high:.2f})' if speedup else '-'
            for speedup in speedups)))
    return f'{aligned(rows)}\nspeed-up: median of the same rounds, with its 95 % confidence interval'


def relative(difference: float, of_fusion: float) -> str:
    return f'{difference / of_fusion:.2g}' if of_fusion else '-'


def spread(values: Sequence[float], digits: int = 1) -> str:
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})'


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right, a line below the titles."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ['  '.join([f'{row[0]:<{widths[0]}}', *(f'{cell:>{width}}' for cell, width in zip(row[1:], widths[1:]))])
             for row in rows]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def machine() -> dict[str, str | int]:
    """What the numbers depend on."""
    cpu = re.search(r'^model name\s*:\s*(.+)$', _text('/proc/cpuinfo'), re.MULTILINE)
    return {'cpu': cpu[1] if cpu else platform.machine(), 'cores': multiprocessing.cpu_count(),
            'threads': torch.get_num_threads(), 'python': platform.python_version(), 'torch': torch.__version__} | {
                peer.package: importlib.metadata.version(peer.package)
                for peer in converters.PEERS.values() if peer.is_installed}


def choose(folder: str | None, only: str | None) -> tuple[Checkpoint, ...]:
    """Raises UserError when a name of `only` is none of a checkpoint."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f'--checkpoints: there is no folder {folder}')
    found = checkpoints.SYNTHETIC if folder is None else checkpoints.find(Path(folder))
    by_name = {checkpoint.name: checkpoint for checkpoint in found}
    chosen = tuple(by_name) if only is None else only.split(',')
    for name in chosen:
        if name not in by_name:
            raise UserError(f"--only: there is no '{name}', but {', '.join(by_name)}")
    return tuple(by_name[name] for name in chosen)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.convert', description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoints', help='folder of NAME.npz, a state dict each; NAME begins with '
                        f'{" or ".join(checkpoints.NETWORKS)} (without it: random ones, made here)')
    parser.add_argument('--only', help='names of checkpoints, with commas between')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--seconds', type=float, default=2, help='of latency per model and batch size')
    parser.add_argument('--batch_sizes', default='1,128')
    parser.add_argument('--backends', default='eager', help=f'of {",".join(BACKENDS)}; compile takes minutes')
    parser.add_argument('--output', help='a JSON file of everything that was measured')
    args = parser.parse_args(argv)
    try:
        if args.rounds < 1:
            raise UserError(f'--rounds must be at least 1, not {args.rounds}')
        if not re.fullmatch(r'[1-9]\d*(,[1-9]\d*)*', args.batch_sizes):
            raise UserError(f"--batch_sizes is written like 1,128, not '{args.batch_sizes}'")
        for backend in args.backends.split(','):
            if backend not in BACKENDS:
                raise UserError(f"--backends: there is no '{backend}', but {', '.join(BACKENDS)}")
        output.require_folder(args.output)
        batch_sizes = [int(size) for size in args.batch_sizes.split(',')]
        chosen, used, results = choose(args.checkpoints, args.only), machine(), []
        print(', '.join(f'{key} {value}' for key, value in used.items()), flush=True)
        for package in sorted({peer.package for peer in converters.PEERS.values() if not peer.is_installed}):
            print(f'{package} is not installed and left out: pip install -r benchmarks/requirements.txt')
        for checkpoint in chosen:
            results.append(measure(checkpoint, args.rounds, args.seconds, batch_sizes, args.backends.split(',')))
            print(f'\n{report(results[-1])}', flush=True)
    except UserError as error:
        sys.exit(f'error: {error}')
    output.write(args.output, {'machine': used, 'arguments': vars(args), 'results': [asdict(r) for r in results]})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or 'no reason given').splitlines()[0]


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ''


if __name__ == '__main__':
    main()
