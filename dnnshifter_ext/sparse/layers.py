"""Sparse layers as torch modules, for inference on the CPU.

Between them, many images travel with the images innermost in memory: an ordinary tensor (N, C, H, W) with the strides
of a contiguous (C, H, W, N), so that the operations between sparse layers see nothing unusual, and element by element
ones keep it.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import nn

from dnnshifter_ext.sparse import library
from dnnshifter_ext.sparse.convolution import Geometry, SparseConvolution, is_across_images
from dnnshifter_ext.sparse.filters import SparseFilters

Clamp = tuple[float | None, float | None]  # the lowest and the highest output, None for any
NO_CLAMP: Clamp = (None, None)


class SparseLayer(nn.Module):
    """What SparseConv2d and SparseLinear share.

    bias (O,), pointers (O + 1,), positions and values (num_nonzero,): buffers, see SparseFilters."""

    pool = 1

    def __init__(self, num_filters: int, num_nonzero: int, low: float | None, high: float | None) -> None:
        super().__init__()
        self.num_nonzero, self.low, self.high = num_nonzero, low, high
        self.register_buffer('pointers', torch.zeros(num_filters + 1, dtype=torch.int32))
        self.register_buffer('positions', torch.zeros(num_nonzero, dtype=torch.uint16))
        self.register_buffer('values', torch.zeros(num_nonzero))
        self.register_buffer('bias', torch.zeros(num_filters))
        self._prepared: tuple[tuple[torch.Tensor, ...], SparseConvolution] | None = None

    def __getstate__(self) -> dict:
        return vars(self) | {'_prepared': None}  # it points into memory; a copy has its own

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self._prepared = None  # what was loaded into the same memory has yet to be checked

    def geometry(self) -> Geometry:
        raise NotImplementedError

    def weight_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """The dense layer, without clamp and pool. Raises ValueError when torch has none that pads like this one."""
        raise NotImplementedError

    def filters(self) -> SparseFilters:
        """The weights; they share memory with the buffers."""
        return SparseFilters(self.weight_shape(), *(
            tensor.numpy() for tensor in (self.pointers, self.positions, self.values)))

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, O, H', W'). Raises ValueError for anything but finite float32 inputs on the CPU."""
        convolution = self.prepare()
        batch, channels, height, width = x.shape
        geometry = convolution.geometry
        if channels != geometry.in_channels:
            raise ValueError(f'{self._name()} takes {geometry.in_channels} channels, not {channels}')
        try:
            size = geometry.output_size(height, width)
            if library.load() is None:
                return torch.from_numpy(convolution(x.detach().numpy()))
            across = is_across_images(batch)
            if not across:
                x = x.contiguous()
                out = torch.empty((batch, geometry.out_channels, *size))
            else:
                if not x.permute(1, 2, 3, 0).is_contiguous():
                    x = x.reshape(batch, -1).t().contiguous()  # torch is fast at matrices
                out = torch.empty((geometry.out_channels, *size, batch)).permute(3, 0, 1, 2)
            convolution.run((batch, height, width), x.data_ptr(), out.data_ptr(), torch.get_num_threads())
        except ValueError as error:
            raise ValueError(f'{self._name()}: {error}') from error
        return out

    def prepare(self) -> SparseConvolution:
        """What the first call would do: checks the weights, and compiles the kernels. Raises ValueError."""
        tensors = tuple(self._buffers.values())
        if self._prepared is None or not all(map(operator.is_, self._prepared[0], tensors)):  # others were put there
            self._prepared = tensors, self._convolution()
        return self._prepared[1]

    def _convolution(self) -> SparseConvolution:
        if self.values.device.type != 'cpu' or self.values.dtype != torch.float32:
            raise ValueError(f'{self._name()} runs in float32 on the CPU, not in {self.values.dtype} on '
                             f"{self.values.device}; convert with execution='dense' for that")
        library.load()
        return SparseConvolution(
            self.filters(), self.bias.numpy(), self.geometry(), -math.inf if self.low is None else self.low,
            math.inf if self.high is None else self.high)

    def _check(self, x: torch.Tensor, is_shaped: bool, takes: str) -> None:
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f'{self._name()} is for inference: it has no gradient; train the dense model instead')
        if x.device.type != 'cpu':
            raise ValueError(
                f"{self._name()} runs on the CPU, not on {x.device}; convert with execution='dense' for that")
        if x.dtype != torch.float32 or not is_shaped:
            raise ValueError(f'{self._name()} takes float32 {takes}, not {x.dtype} {tuple(x.shape)}')

    def _name(self) -> str:
        return f'{type(self).__name__}({self.extra_repr()})'

    def _into(self, dense: nn.Module) -> nn.Module:
        weight = torch.from_numpy(self.filters().to_dense())
        dense.weight, dense.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, self.bias.clone()))
        return dense.eval()

    def _load(self, filters: SparseFilters, bias: torch.Tensor | None) -> None:
        """bias: None for zeros."""
        self.pointers, self.positions, self.values = (
            torch.from_numpy(array) for array in (filters.pointers, filters.positions, filters.values))
        if bias is not None:
            self.bias = bias.detach().clone()


class SparseConv2d(SparseLayer):
    """torch's Conv2d with zero padding, followed by min(max(y, low), high), and by MaxPool2d(2) if `pool` is 2.

    padding: above, below, to the left, to the right.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], stride: tuple[int, int],
                 padding: tuple[int, int, int, int], dilation: tuple[int, int], groups: int, num_nonzero: int,
                 low: float | None = None, high: float | None = None, pool: int = 1) -> None:
        super().__init__(out_channels, num_nonzero, low, high)
        self.pool = pool
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    @classmethod
    def like(cls, layer: nn.Conv2d, filters: SparseFilters, clamp: Clamp = NO_CLAMP, pool: int = 1) -> SparseConv2d:
        """`layer` with these weights. Raises ValueError for a layer that pads with anything but zeros."""
        if layer.padding_mode != 'zeros':
            raise ValueError(f"padding_mode '{layer.padding_mode}' has no sparse form")
        new = cls(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, _padding(layer),
                  layer.dilation, layer.groups, filters.num_nonzero, *clamp, pool)
        new._load(filters, layer.bias)
        return new.eval()

    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def to_dense(self) -> nn.Conv2d:
        top, bottom, left, right = self.padding
        if top != bottom or left != right:
            raise ValueError(f'{self._name()} pads its sides differently')
        return self._into(nn.Conv2d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, (top, left), self.dilation, self.groups,
            device='meta'))

    def geometry(self) -> Geometry:
        top, bottom, left, right = self.padding
        return Geometry(self.in_channels, self.out_channels, self.kernel_size, self.stride, (top, left),
                        (bottom, right), self.dilation, self.groups, self.pool)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, O, H', W')."""
        if x.device.type == 'meta':  # shapes alone
            return x.new_empty((len(x), self.out_channels, *self.geometry().output_size(*x.shape[2:])))
        self._check(x, x.dim() == 4, '(N, C, H, W)')
        return self.convolve(x)

    def extra_repr(self) -> str:
        return (f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
                f'num_nonzero={self.num_nonzero}')


class SparseLinear(SparseLayer):
    """torch's Linear, followed by min(max(y, low), high)."""

    def __init__(self, in_features: int, out_features: int, num_nonzero: int, low: float | None = None,
                 high: float | None = None) -> None:
        super().__init__(out_features, num_nonzero, low, high)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def like(cls, layer: nn.Linear, filters: SparseFilters, clamp: Clamp = NO_CLAMP, pool: int = 1) -> SparseLinear:
        """`layer` with these weights. Raises ValueError for a pool."""
        if pool != 1:
            raise ValueError('a linear layer has nothing to pool')
        new = cls(layer.in_features, layer.out_features, filters.num_nonzero, *clamp)
        new._load(filters, layer.bias)
        return new.eval()

    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    def to_dense(self) -> nn.Linear:
        return self._into(nn.Linear(self.in_features, self.out_features, device='meta'))

    def geometry(self) -> Geometry:
        return Geometry(self.in_features, self.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., I) -> (..., O)."""
        shape = (*x.shape[:-1], self.out_features)
        if x.device.type == 'meta':
            return x.new_empty(shape)
        self._check(x, x.dim() > 0 and x.shape[-1] == self.in_features, f'(..., {self.in_features})')
        rows = x if x.dim() == 2 else x.reshape(math.prod(shape[:-1]), self.in_features)
        out = self.convolve(rows[:, :, None, None])[:, :, 0, 0]
        return out if x.dim() == 2 else out.reshape(shape)

    def extra_repr(self) -> str:
        return f'{self.in_features}, {self.out_features}, num_nonzero={self.num_nonzero}'


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Above, below, to the left, to the right."""
    if not isinstance(layer.padding, str):
        return tuple(size for size in layer.padding for _ in range(2))
    total = [dilation * (size - 1) * (layer.padding == 'same')
             for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    return tuple(part for size in total for part in (size // 2, size - size // 2))


def from_dense(
    layer: nn.Module, clamp: Clamp = NO_CLAMP, pool: int = 1, filters: SparseFilters | None = None,
) -> SparseLayer:
    """The sparse form of a Conv2d or Linear layer, with its weights or with `filters`.

    Raises ValueError when there is none: for other layers, other types of numbers, other paddings than with zeros, and
    filters of more than 65,536 weights.
    """
    forms = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}
    if type(layer) not in forms:
        raise ValueError(f'{type(layer).__name__} has no sparse form')
    if layer.weight.dtype != torch.float32:
        raise ValueError(f'{layer.weight.dtype} weights have no sparse form')
    filters = SparseFilters.from_dense(layer.weight.detach().numpy()) if filters is None else filters
    return forms[type(layer)].like(layer, filters, clamp, pool)
