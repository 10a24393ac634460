"""Sparse networks run hybrid (some layers on sparse kernels) beside the same run dense, in one process.

    OMP_NUM_THREADS=2 python -m benchmarks.sparse_execution --checkpoints=FOLDER [--only=NAME,...] [--seconds=S]
                                                            [--batch_sizes=1,128] [--layers] [--output=FILE.json]
                                                            [--figure=FILE.png]

Models take turns, in the opposite order in every other round; a ratio is that of
the same round, with the 95 % confidence interval of the median. "Dense" is the sparse network with batch norms fused,
at its best: contiguous or channels_last, whichever is faster. The hybrid is chosen for each batch size by itself.
--layers adds, for each layer at the hybrid's block of images, what its kernel achieves beside what the machine can do,
and other ways to use its sparsity: torch's compressed sparse rows (MKL) on unfolded inputs, and the same kernel with
whole k x k kernels kept where one weight is left.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import contextlib
import copy
import ctypes
from dataclasses import asdict, dataclass
import functools
import os
from pathlib import Path
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from torch import fx, nn
import torch.nn.functional as F

from benchmarks import output
from benchmarks.checkpoints import Checkpoint
from benchmarks.convert import choose
from dnnshifter_ext import backends, compiler
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.graph import capture, trace_shapes
from dnnshifter_ext.profiler import Speedup, speedup
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.removal import plan_removal
from dnnshifter_ext.sparse.choice import with_execution
from dnnshifter_ext.sparse.convolution import block_size
from dnnshifter_ext.sparse.filters import SparseFilters
from dnnshifter_ext.sparse.hybrid import candidates
from dnnshifter_ext.sparse.layers import SparseConv2d, from_dense
from dnnshifter_ext.structure import structure_of
from open_lth.datasets import registry
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.hparams import DatasetHparams

CONTIGUOUS, CHANNELS_LAST, ONNX, PAPER, EXACT, HYBRID = FORMS = (
    'dense, fused', 'dense, fused, channels_last', 'dense, fused, ONNX Runtime', "the paper's rule", 'exact, dense',
    'hybrid')
NUM_EXAMPLES = 16
MIN_ROUNDS = 7
PAUSE_S = 0.02  # until the threads of the run before, which wait for more work in a loop, sleep
ROOFLINE = Path(__file__).with_name('roofline.c')


@dataclass(frozen=True)
class Timing:
    """All forms at one batch size. speedups: of each form over the best dense one."""

    batch_size: int
    p50_ms: dict[str, float]
    best_dense: str
    speedups: dict[str, Speedup]
    num_sparse: int


@dataclass(frozen=True)
class Layer:
    """One convolution at a block of images. gflops: of the weights that are left, multiply-add = 2; ms: by way."""

    name: str
    density: float
    shape: tuple[int, ...]
    gflops: float
    kernels_left: float
    ms: dict[str, float]


@dataclass(frozen=True)
class Result:
    """weights_bytes: by form; difference: largest of the hybrid against the dense outputs over their range, and changed
    predictions, on so many real images (random ones if there are none)."""

    checkpoint: str
    ratio: float
    weights_bytes: dict[str, int]
    timings: tuple[Timing, ...]
    difference: float
    changed_predictions: int
    num_images: int
    images: str
    layers: tuple[Layer, ...]


def measure(checkpoint: Checkpoint, seconds: float, batch_sizes: Sequence[int], with_layers: bool) -> Result:
    """seconds: of measuring per batch size."""
    model = checkpoint.load()
    few = checkpoint.inputs(NUM_EXAMPLES)
    captured = capture(model)
    structure = structure_of(captured, trace_shapes(captured, [few[:1]]))
    paper = apply_plan(captured, plan_removal(structure, mode='paper'), structure.facts)
    conversion = convert(model, few)
    hybrids = {n: with_execution(conversion.pruned, (checkpoint.inputs(n),), 'auto') for n in batch_sizes}
    models = {CONTIGUOUS: conversion.fused, PAPER: paper, EXACT: conversion.pruned}
    timings = tuple(_time(models | {HYBRID: hybrid}, checkpoint.inputs(n), seconds, execution.num_sparse)
                    for n, (hybrid, execution) in hybrids.items())
    images, what = _real_images(few)
    hybrid, _ = hybrids[max(batch_sizes)]
    difference, changed = _compare(conversion.fused, hybrid, images)
    weights = {form: size_bytes(part) for form, part in (models | {HYBRID: hybrid}).items()}
    layers = tuple(_layers(conversion.pruned, few)) if with_layers else ()
    prunable = [part.weight for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    ratio = sum(part.numel() for part in prunable) / max(sum(int(part.count_nonzero()) for part in prunable), 1)
    return Result(checkpoint.name, ratio, weights, timings, difference, changed, len(images), what, layers)


def _time(models: dict[str, nn.Module], inputs: torch.Tensor, seconds: float, num_sparse: int) -> Timing:
    runs = {CONTIGUOUS: models[CONTIGUOUS],
            CHANNELS_LAST: backends.prepare('channels_last', copy.deepcopy(models[CONTIGUOUS]), inputs),
            ONNX: backends.prepare('onnxruntime', copy.deepcopy(models[CONTIGUOUS]), inputs),
            **{form: models[form] for form in (PAPER, EXACT, HYBRID)}}
    rounds_ms = _in_turn([lambda run=run: run(inputs) for run in runs.values()], seconds)
    by_form = dict(zip(runs, zip(*rounds_ms, strict=True), strict=True))
    p50_ms = {form: statistics.median(times) for form, times in by_form.items()}
    best = min(CONTIGUOUS, CHANNELS_LAST, key=p50_ms.get)
    return Timing(len(inputs), p50_ms, best, {form: speedup(by_form[best], by_form[form]) for form in runs}, num_sparse)


def _in_turn(runs: list[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Milliseconds: [round][run], each warm: two calls, of which the second counts."""
    rounds_ms: list[list[float]] = []
    with torch.inference_mode():
        begin_s = time.perf_counter()
        while len(rounds_ms) <= MIN_ROUNDS or time.perf_counter() < begin_s + seconds:
            times = [0.0] * len(runs)
            for index in range(len(runs))[::1 if len(rounds_ms) % 2 else -1]:
                time.sleep(PAUSE_S)
                runs[index]()
                run_s = time.perf_counter()
                runs[index]()
                times[index] = (time.perf_counter() - run_s) * 1e3
            rounds_ms.append(times)
    return rounds_ms[1:]  # the first one loads code


def _real_images(like: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Those of Fashion-MNIST if they are installed and fit."""
    if like.shape[1:] == (3, 32, 32):
        with contextlib.suppress(UserError):
            loader = registry.get(DatasetHparams('fashion_mnist_32', 1000), train=False)
            return torch.cat([images for images, _ in loader]), 'test images of Fashion-MNIST'
    return torch.randn(NUM_EXAMPLES, *like.shape[1:], generator=torch.Generator().manual_seed(1)), 'random inputs'


def _compare(dense: nn.Module, hybrid: nn.Module, images: torch.Tensor) -> tuple[float, int]:
    with torch.inference_mode():
        outputs, others = (torch.cat([model(part) for part in images.split(128)]) for model in (dense, hybrid))
    span = float(outputs.max() - outputs.min())
    return float((outputs - others).abs().max()) / span, int((outputs.argmax(1) != others.argmax(1)).sum())


def _layers(model: fx.GraphModule, inputs: torch.Tensor) -> list[Layer]:
    shapes = trace_shapes(model, [inputs[:1]])
    found = []
    for path, node in candidates(model).items():
        layer = model.get_submodule(path)
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
            continue
        sparse = from_dense(layer)
        x = torch.randn(block_size(), *shapes[node.args[0].name][1:], generator=torch.Generator().manual_seed(0))
        across = x.flatten(1).t().contiguous().t().view(x.shape)
        num_outputs = len(x) * shapes[node.name][2] * shapes[node.name][3]
        weight = layer.weight.detach()
        kept = (weight != 0).flatten(2).any(2)
        ways = {'dense': functools.partial(layer, x), 'sparse': functools.partial(sparse, across),
                'whole kernels': functools.partial(_whole_kernels(layer, kept), across),
                'compressed rows': _compressed_rows(layer, x)}
        rounds_ms = _in_turn(list(ways.values()), seconds=0)
        times = {way: statistics.median(runs) for way, runs in zip(ways, zip(*rounds_ms, strict=True), strict=True)}
        found.append(Layer(path, sparse.filters().density, tuple(x.shape[1:]),
                           2 * sparse.num_nonzero * num_outputs * 1e-9, float(kept.float().mean()), times))
    return found


def _whole_kernels(layer: nn.Conv2d, kept_OI: torch.Tensor) -> SparseConv2d:
    weight = layer.weight.detach()
    mask = kept_OI[:, :, None, None].expand_as(weight).numpy().reshape(-1)
    flat = np.flatnonzero(mask)
    return from_dense(layer, filters=SparseFilters.from_flat(weight.shape, flat, weight.numpy().reshape(-1)[flat]))


def _compressed_rows(layer: nn.Conv2d, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it is in beta
        rows = layer.weight.detach().flatten(1).to_sparse_csr()

    def run() -> torch.Tensor:
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return rows @ columns.transpose(0, 1).flatten(1)
    return run


def machine_gflops() -> dict[str, float]:
    """What one core does at most, multiply-adds being 2: from registers, and with one operand from each cache."""
    cc = compiler.find()
    if cc is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'roofline.so')
        subprocess.run((cc, *compiler.FLAGS, compiler.NATIVE, os.fspath(ROOFLINE), '-o', path), check=True)
        gflops = ctypes.CDLL(path).gflops
        gflops.restype = ctypes.c_double
        return {name: gflops(ctypes.c_long(num_bytes)) for name, num_bytes in (
            ('registers', 0), ('16 KiB (first-level cache)', 2**14), ('256 KiB (second-level)', 2**18),
            ('8 MiB (third-level)', 2**23))}


def report(result: Result) -> str:
    dense = result.weights_bytes[CONTIGUOUS]
    lines = [f'{result.checkpoint}: {result.ratio:.1f}x compressed; hybrid: {result.difference:.1e} of the output '
             f'range off, {result.changed_predictions} changed predictions on {result.num_images:,} {result.images}',
             '',
             '| form | weights (MB) | smaller by | ' + ' | '.join(
                 f'batch {t.batch_size}: ms | speed-up' for t in result.timings) + ' |',
             '|---|' + '---:|' * (2 + 2 * len(result.timings))]
    for form in FORMS:
        weights = result.weights_bytes.get(form, dense)
        cells = [f'{t.p50_ms[form]:.2f} | {_speedup(t.speedups[form], form == t.best_dense)}' for t in result.timings]
        lines.append(f'| {form} | {weights / 1e6:.2f} | {dense / weights:.2f}x | ' + ' | '.join(cells) + ' |')
    lines += ['', 'Layers on sparse kernels: ' + ', '.join(
        f'{t.num_sparse} at batch {t.batch_size}' for t in result.timings), '']
    if result.layers:
        lines += ['| layer | input | density (%) | kernels left (%) | dense (ms) | sparse (ms) | GFLOP/s | '
                  'reads (GB/s) | whole kernels (ms) | compressed rows (ms) |', '|---|---|' + '---:|' * 8]
        for layer in result.layers:
            rate = layer.gflops / layer.ms['sparse'] * 1e3
            lines.append(
                f'| {layer.name} | {"x".join(map(str, layer.shape))} | {100 * layer.density:.2f} | '
                f'{100 * layer.kernels_left:.1f} | {layer.ms["dense"]:.3f} | {layer.ms["sparse"]:.3f} | {rate:.0f} | '
                f'{2 * rate:.0f} | {layer.ms["whole kernels"]:.3f} | {layer.ms["compressed rows"]:.3f} |')
        lines.append('')
    return '\n'.join(lines)


def _speedup(value: Speedup, is_base: bool) -> str:
    return '1' if is_base else f'{value.median:.2f}x ({value.low:.2f}-{value.high:.2f})'


def figure(results: Sequence[Result]) -> object:
    """Size, and speed-up at each batch size, against the compression ratio."""
    from matplotlib.figure import Figure

    results = sorted(results, key=lambda result: result.ratio)
    ratios = [result.ratio for result in results]
    batch_sizes = [timing.batch_size for timing in results[0].timings]
    canvas = Figure(figsize=(5 * (1 + len(batch_sizes)), 4.2), layout='constrained')
    axes = canvas.subplots(1, 1 + len(batch_sizes))
    styles = {PAPER: ('x', '--', 'tab:red'), EXACT: ('o', '-', 'tab:blue'), HYBRID: ('^', '-', 'tab:green')}
    for form, (marker, line, color) in styles.items():
        style = dict(marker=marker, linestyle=line, color=color, label=form)
        axes[0].plot(ratios, [r.weights_bytes[CONTIGUOUS] / r.weights_bytes[form] for r in results], **style)
        for index in range(len(batch_sizes)):
            speedups = [result.timings[index].speedups[form] for result in results]
            middle = np.array([s.median for s in speedups])
            error = [middle - [s.low for s in speedups], [s.high for s in speedups] - middle]
            axes[1 + index].errorbar(ratios, middle, error, capsize=3, **style)
    axes[0].set_ylabel('bytes of weights, dense / converted (x)')
    for ax, batch_size in zip(axes[1:], batch_sizes, strict=True):
        ax.set_ylabel(f'speed-up over the dense model, batch {batch_size} (x)')
    for ax in axes:
        ax.axhline(1, color='0.6', linewidth=1)
        ax.set_xscale('log', base=2)
        ax.set_yscale('log', base=2)
        ax.set_xticks(ratios, [f'{ratio:.3g}x' for ratio in ratios])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda value, _: f'{value:g}x')
        ax.set_xlabel('compression ratio (weights / non-zero weights)')
        ax.grid(alpha=0.3)
        ax.legend(fontsize='small')
    return canvas


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.sparse_execution', description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoints', help='folder of NAME.npz, as for benchmarks.convert (without it: random '
                        'sparse networks, made here)')
    parser.add_argument('--only', help='names of checkpoints, with commas between')
    parser.add_argument('--seconds', type=float, default=20, help='of measuring per network and batch size')
    parser.add_argument('--batch_sizes', default='1,128')
    parser.add_argument('--layers', action='store_true', help='each convolution by itself, too')
    parser.add_argument('--output', help='a JSON file of everything that was measured')
    parser.add_argument('--figure', help='a PNG: size and speed-up against the compression ratio')
    args = parser.parse_args(argv)
    try:
        if not re.fullmatch(r'[1-9]\d*(,[1-9]\d*)*', args.batch_sizes):
            raise UserError(f"--batch_sizes is written like 1,128, not '{args.batch_sizes}'")
        for path in filter(None, (args.output, args.figure)):
            if not Path(path).absolute().parent.is_dir():
                raise UserError(f'there is no folder {Path(path).parent}')
        found = choose(args.checkpoints, args.only)
    except UserError as error:
        sys.exit(f'error: {error}')
    batch_sizes = tuple(map(int, args.batch_sizes.split(',')))
    print(f'{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}')
    peaks = machine_gflops()
    print('One core, at most (GFLOP/s): ' + ', '.join(f'{name} {peak:.0f}' for name, peak in peaks.items()), flush=True)
    results = []
    for checkpoint in found:
        results.append(measure(checkpoint, args.seconds, batch_sizes, args.layers))
        print(f'\n{report(results[-1])}', flush=True)
    output.write(args.output, {'machine_gflops': peaks, 'results': [asdict(result) for result in results]})
    if args.figure:
        with write_atomically(args.figure, 'wb') as file:
            figure(results).savefig(file, format='png', dpi=150)


if __name__ == '__main__':
    main()
