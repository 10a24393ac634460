"""Without torch: convolutions and linear layers on the sparse kernels, all else in numpy.

Between layers, arrays are (N, C, H, W) but lie in memory as the sparse kernels want them, for many images with the
images innermost; everything here keeps that. Large batches are taken in blocks that fit the processor's caches.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math

import numpy as np

from dnnshifter_ext.package import PackedVariant
from dnnshifter_ext.runtime import program as programs
from dnnshifter_ext.runtime.backends import Model, ProgramPlan, inflate_sparse, num_bytes
from dnnshifter_ext.runtime.program import Step
from dnnshifter_ext.sparse import library
from dnnshifter_ext.sparse.convolution import SparseConvolution, block_size
from dnnshifter_ext.sparse.filters import SparseFilters

LAYERS = ('conv', 'linear')


class NumpyPlan(ProgramPlan):
    def inflate(self) -> dict[str, SparseFilters | np.ndarray]:
        """Path of a layer -> its filters; name of any other tensor -> array."""
        weights: dict[str, SparseFilters | np.ndarray] = {}
        for step in self.program.steps:
            if step.kind in LAYERS:
                layer = step.options['layer']
                weights[layer], weights[f'{layer}.bias'] = inflate_sparse(self.variant, layer)
            elif 'tensor' in step.options:
                weights[step.options['tensor']] = self.variant.dense(step.options['tensor'])
        return weights

    def rebuild(self, weights: dict[str, SparseFilters | np.ndarray]) -> Model:
        last_uses = self.program.last_uses()
        convolutions: list[SparseConvolution] = []
        calls = []
        for step in self.program.steps:
            call = _MAKERS[step.kind](step, weights, self.num_threads)
            if step.kind in LAYERS:
                convolutions.append(call.keywords['convolution'])
            calls.append((step.name, step.inputs, call, last_uses[step.name]))

        def run(batch: np.ndarray) -> np.ndarray:
            size = block_size()
            blocks = [self._run(calls, batch[start:start + size]) for start in range(0, len(batch), size)]
            return np.ascontiguousarray(blocks[0]) if len(blocks) == 1 else np.concatenate(blocks)

        def scratch_bytes() -> int:
            return max((convolution.scratch_bytes for convolution in convolutions), default=0)

        return Model(run, sum(value.nbytes for value in weights.values()), scratch_bytes)

    def _run(self, calls: list, block: np.ndarray) -> np.ndarray:
        values = {'input': block}
        for name, inputs, call, unused in calls:
            values[name] = call(*(values[one] for one in inputs))
            for one in unused:
                del values[one]
        return values[self.program.output]


def plan(variant: PackedVariant, num_threads: int | None) -> NumpyPlan:
    """See `backends`. All layers run on the sparse kernels, whatever the profile says."""
    library.load()
    program = programs.program(variant.structure(), {name: tensor.shape for name, tensor in variant.tensors.items()})
    layers = {step.options['layer'] for step in program.steps if step.kind in LAYERS}
    return NumpyPlan(variant, program, num_threads, num_bytes(variant, layers))


# ---- one per kind of step: (step, weights, num_threads) -> function of the step's inputs

def _layer(step: Step, weights: dict, num_threads: int | None) -> Callable:
    options = step.options
    filters, bias = weights[options['layer']], weights[f'{options["layer"]}.bias']
    convolution = SparseConvolution(filters, bias, options['geometry'], options['low'], options['high'])
    function = _convolve if step.kind == 'conv' else _linear
    return functools.partial(function, convolution=convolution, num_threads=num_threads)


def _convolve(x: np.ndarray, convolution: SparseConvolution, num_threads: int | None) -> np.ndarray:
    return convolution(x, num_threads)


def _linear(x: np.ndarray, convolution: SparseConvolution, num_threads: int | None) -> np.ndarray:
    return convolution(x[:, :, None, None], num_threads)[:, :, 0, 0]


def _pool(step: Step, weights: dict, num_threads: int | None) -> Callable:
    options, is_max = step.options, step.kind == 'max_pool'
    combine, fill = (np.maximum, -np.inf) if is_max else (np.add, 0)
    share = np.float32(1 / math.prod(options['kernel']))

    def pool(x: np.ndarray) -> np.ndarray:
        for axis, sizes in enumerate(zip(options['kernel'], options['stride'], options['padding'], strict=True), 2):
            x = _slide(x, axis, *sizes, combine, fill)
        return x if is_max else x * share

    return pool


def _slide(x: np.ndarray, axis: int, kernel: int, stride: int, padding: int, combine: np.ufunc,
           fill: float) -> np.ndarray:
    """What `combine` makes of each window along one axis."""
    before = (slice(None),) * axis
    if padding:
        shape = list(x.shape)
        shape[axis] += 2 * padding
        # Like `x` in memory: strides in order of those of `x`.
        order = np.argsort(x.strides)[::-1]
        padded = np.full([shape[one] for one in order], fill, x.dtype).transpose(np.argsort(order))
        padded[(*before, slice(padding, padding + x.shape[axis]))] = x
        x = padded
    size = (x.shape[axis] - kernel) // stride + 1
    parts = [x[(*before, slice(first, first + (size - 1) * stride + 1, stride))] for first in range(kernel)]
    return functools.reduce(combine, parts)


def _clamp(step: Step, weights: dict, num_threads: int | None) -> Callable:
    low, high = np.float32(step.options['low']), np.float32(step.options['high'])
    return lambda x: np.minimum(np.maximum(x, low), high)


def _reshape(step: Step, weights: dict, num_threads: int | None) -> Callable:
    return lambda x: x.reshape(len(x), *step.shape)


def _mean(step: Step, weights: dict, num_threads: int | None) -> Callable:
    axes = tuple(axis + 1 for axis in step.options['axes'])
    return lambda x: x.mean(axes, keepdims=step.options['keepdim'])


def _elementwise(step: Step, weights: dict, num_threads: int | None) -> Callable:
    return np.add if step.kind == 'add' else np.multiply


def _cat(step: Step, weights: dict, num_threads: int | None) -> Callable:
    return lambda *parts: np.concatenate(parts, step.options['axis'] + 1)


def _gather(step: Step, weights: dict, num_threads: int | None) -> Callable:
    index = weights[step.options['tensor']]
    # Taken along the first axis where images are innermost, so that they still are.
    return lambda x: np.moveaxis(np.moveaxis(x, 0, -1)[index], -1, 0) if _is_across(x) else x[:, index]


def _scatter_add(step: Step, weights: dict, num_threads: int | None) -> Callable:
    index = weights[step.options['tensor']]
    if len(np.unique(index)) != len(index):
        raise ValueError(f"'{step.name}' adds to a channel twice, which only the torch back end can do")

    def scatter_add(x: np.ndarray, source: np.ndarray) -> np.ndarray:
        out = x.copy('K')
        out[:, index] += source
        return out

    return scatter_add


def _constant(step: Step, weights: dict, num_threads: int | None) -> Callable:
    value = weights[step.options['tensor']]
    return lambda: value


def _is_across(x: np.ndarray) -> bool:
    return len(x) > 1 and x.strides[0] == x.itemsize


_MAKERS = {'conv': _layer, 'linear': _layer, 'clamp': _clamp, 'max_pool': _pool, 'avg_pool': _pool,
           'reshape': _reshape, 'mean': _mean, 'add': _elementwise, 'mul': _elementwise, 'cat': _cat,
           'gather': _gather, 'scatter_add': _scatter_add, 'constant': _constant}
