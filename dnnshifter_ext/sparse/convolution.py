"""A sparse convolution of numpy arrays, with bias and activation. Needs no torch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
import os
import threading

import numpy as np

from dnnshifter_ext.sparse import library
from dnnshifter_ext.sparse.filters import SparseFilters

Pair = tuple[int, int]
MAX_PLANS = 64
NOT_FINITE = ('the inputs of a sparse layer have NaN or infinite values; check what the model is called with, and what '
              'comes before')
MAX_EXTENT = 1 << 16  # of anything in an image; what the kernels compute with these fits their integers
MAX_WORKER_BYTES = 1 << 33  # offsets into the packed tile are int32
_ALIGNMENT = 64
_POINTER = ctypes.c_void_p
_PAIRS = ('kernel', 'stride', 'padding', 'dilation')
_scratch = threading.local()


@dataclass(frozen=True)
class Geometry:
    """What torch's Conv2d calls by these names. A linear layer is a 1x1 convolution of 1x1 images.

    padding: above and to the left; padding_end: below and to the right. pool: 1, or 2 for a max pool of 2x2 at the end
    (MaxPool2d(2)).
    """

    in_channels: int
    out_channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    padding_end: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    pool: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for what no convolution has: the kernels rely on it."""
        reach = tuple(kernel * dilation for kernel, dilation in zip(self.kernel, self.dilation, strict=True))
        positive = (self.in_channels, self.out_channels, self.groups, *self.kernel, *self.stride, *self.dilation)
        extents = (*reach, *self.kernel, *self.stride, *self.padding, *self.padding_end, *self.dilation)
        if (not all(isinstance(size, int) for size in (*positive, *extents)) or min(positive) < 1 or min(extents) < 0
                or max(extents) > MAX_EXTENT or self.in_channels % self.groups or self.out_channels % self.groups
                or self.pool not in (1, 2)):
            raise ValueError(f'{self} is not a convolution')

    def output_size(self, height: int, width: int) -> Pair:
        """With the pool. Raises ValueError when the kernel is larger than the padded image, or nothing is left."""
        height, width = self.convolved_size(height, width)
        if min(height, width) < self.pool:
            raise ValueError(f'outputs of {height}x{width} are too few for a pool of {self.pool}x{self.pool}; '
                             'give larger images')
        return height // self.pool, width // self.pool

    def convolved_size(self, height: int, width: int) -> Pair:
        """Without the pool. Raises ValueError when the kernel is larger than the padded image."""
        sizes = tuple(
            (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1
            for size, begin, end, dilation, kernel, stride in zip(
                (height, width), self.padding, self.padding_end, self.dilation, self.kernel, self.stride, strict=True))
        if min(sizes) < 1:
            raise ValueError(f'an image of {height}x{width} is too small for a kernel of {self.kernel[0]}x'
                             f'{self.kernel[1]} with dilation {self.dilation[0]}x{self.dilation[1]}; give a larger one')
        return sizes


class _Struct(ctypes.Structure):
    """`convolution` of kernels.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            'batch', 'in_channels', 'height', 'width', 'out_channels', 'out_height', 'out_width', 'groups',
            'kernel_height', 'kernel_width', 'stride_height', 'stride_width', 'pad_top', 'pad_left',
            'dilation_height', 'dilation_width', 'pool', 'across_images')),
        *((name, _POINTER) for name in ('pointers', 'positions', 'values', 'bias')),
        ('low', ctypes.c_float), ('high', ctypes.c_float),
        ('planned', ctypes.c_int64 * 12),
    ]


@dataclass(frozen=True)
class _Plan:
    """For one shape of input and number of threads; the same for all calls."""

    struct: _Struct
    address: ctypes.c_void_p
    scratch_bytes: int
    threads: ctypes.c_int64


@dataclass(frozen=True, eq=False)
class SparseConvolution:
    """min(max(convolution(x) + bias, low), high), pooled.

    bias: (O,) float32. Arrays are used as they are: they may not change.
    """

    filters: SparseFilters
    bias: np.ndarray
    geometry: Geometry
    low: float = -np.inf
    high: float = np.inf
    _plans: dict[tuple, _Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.filters.check()
        g = self.geometry
        out_channels, in_channels, *kernel = self.filters.shape
        if (out_channels, in_channels * g.groups, *(kernel or (1, 1))) != (g.out_channels, g.in_channels, *g.kernel):
            raise ValueError(f'weights of shape {self.filters.shape} do not belong to {g}')
        if (self.bias.dtype != np.float32 or self.bias.shape != (g.out_channels,)
                or not self.bias.flags.c_contiguous):
            raise ValueError(f'a bias of {_describe(self.bias)}, not contiguous float32 ({g.out_channels},)')

    def __call__(self, x: np.ndarray, num_threads: int | None = None) -> np.ndarray:
        """(N, C, H, W) float32 -> (N, O, H', W'), both laid out as `is_across_images(N)` says; others are copied.

        num_threads: by default one per core. Raises ValueError for another type, number of channels or dimensions, for
        images smaller than the kernel, and for NaN or infinite values.
        """
        if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 4:
            raise ValueError(f'a sparse layer takes float32 arrays (N, C, H, W), not {_describe(x)}')
        num_threads = num_threads or os.cpu_count() or 1
        batch, channels, height, width = x.shape
        if channels != self.geometry.in_channels:
            raise ValueError(f'{channels} channels for a layer of {self.geometry.in_channels}')
        size = self.geometry.output_size(height, width)
        if library.load() is None:
            return self._without_compiler(x)
        across = is_across_images(batch)
        x = np.ascontiguousarray(x.transpose(1, 2, 3, 0)) if across else np.ascontiguousarray(x)
        shape = (self.geometry.out_channels, *size)
        out = np.empty((*shape, batch) if across else (batch, *shape), np.float32)
        self.run((batch, height, width), x.ctypes.data, out.ctypes.data, num_threads)
        return out.transpose(3, 0, 1, 2) if across else out

    def run(self, shape: tuple[int, int, int], input_address: int, output_address: int, num_threads: int) -> None:
        """From memory to memory; `shape`: (N, H, W). Raises ValueError for NaN or infinite inputs."""
        if not shape[0]:
            return
        loaded = library.load()
        plan = self._plans.get((shape, num_threads))
        if plan is None:
            plan = self._plan(loaded, shape, num_threads)
        if loaded.functions.convolve(plan.address, _POINTER(input_address), _POINTER(output_address),
                                     _scratch_address(plan.scratch_bytes), plan.threads, _POINTER(loaded.parallel)):
            raise ValueError(NOT_FINITE)

    @property
    def scratch_bytes(self) -> int:
        """The most memory that a call so far needed beside inputs, outputs and weights, per calling thread."""
        return max((plan.scratch_bytes for plan in list(self._plans.values())), default=0)

    def _plan(self, loaded: library.Library, shape: tuple[int, int, int], num_threads: int) -> _Plan:
        batch, height, width = shape
        geometry, filters = self.geometry, self.filters
        struct = _Struct(
            batch, geometry.in_channels, height, width, geometry.out_channels, *geometry.convolved_size(height, width),
            geometry.groups, *geometry.kernel, *geometry.stride, *geometry.padding, *geometry.dilation,
            geometry.pool, is_across_images(batch), filters.pointers.ctypes.data, filters.positions.ctypes.data,
            filters.values.ctypes.data, self.bias.ctypes.data, self.low, self.high)
        if loaded.functions.size_of_convolution() != ctypes.sizeof(struct):
            raise RuntimeError('kernels.c and convolution.py disagree')
        threads = ctypes.c_int64(num_threads if loaded.parallel else 1)
        plan = _Plan(struct, _POINTER(ctypes.addressof(struct)),
                     loaded.functions.plan(ctypes.byref(struct), threads), threads)
        if plan.scratch_bytes > MAX_WORKER_BYTES * threads.value:
            raise ValueError(f'{geometry} on images of {height}x{width} is too large for the sparse kernels')
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[shape, num_threads] = plan
        return plan

    def _without_compiler(self, x: np.ndarray) -> np.ndarray:
        """The same with one sparse matrix product per position of the kernel."""
        from scipy import sparse

        if not np.isfinite(x).all():
            raise ValueError(NOT_FINITE)
        g = self.geometry
        size = g.convolved_size(*x.shape[2:])
        padded = np.pad(x, ((0, 0), (0, 0), *zip(g.padding, g.padding_end, strict=True)))
        weight = self.filters.to_dense().reshape(g.groups, g.out_channels // g.groups, -1, *g.kernel)
        out = np.empty((g.groups, g.out_channels // g.groups, len(x) * size[0] * size[1]), np.float32)
        out[:] = self.bias.reshape(g.groups, -1, 1)
        for row in range(g.kernel[0]):
            for column in range(g.kernel[1]):
                top, left = row * g.dilation[0], column * g.dilation[1]
                read = padded[:, :, top:top + (size[0] - 1) * g.stride[0] + 1:g.stride[0],
                              left:left + (size[1] - 1) * g.stride[1] + 1:g.stride[1]]
                read = read.transpose(1, 0, 2, 3).reshape(g.groups, g.in_channels // g.groups, -1)
                for group in range(g.groups):
                    out[group] += sparse.csr_array(weight[group, :, :, row, column]) @ read[group]
        out = out.reshape(g.out_channels, len(x), *size).transpose(1, 0, 2, 3)
        if g.pool == 2:
            even = out[:, :, :size[0] // 2 * 2, :size[1] // 2 * 2]
            out = np.maximum.reduce([even[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)])
        return np.ascontiguousarray(np.clip(out, self.low, self.high, dtype=np.float32))


def is_across_images(batch: int) -> bool:
    """Whether inputs and outputs of so many images have the images innermost in memory, or the columns."""
    loaded = library.load()
    return loaded is not None and batch >= loaded.functions.lanes() // 2


def block_size() -> int:
    """How many images at a time keep all that is computed in the caches: one vector."""
    loaded = library.load()
    return loaded.functions.lanes() if loaded else 16


def _scratch_address(num_bytes: int) -> ctypes.c_void_p:
    """Memory of this thread, aligned."""
    if getattr(_scratch, 'num_bytes', -1) < num_bytes:
        _scratch.memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
        _scratch.num_bytes = num_bytes
        address = _scratch.memory.ctypes.data
        _scratch.address = _POINTER(address + -address % _ALIGNMENT)
    return _scratch.address


def _describe(x: object) -> str:
    return f'{x.dtype} {x.shape}' if isinstance(x, np.ndarray) else type(x).__name__
