"""What the weights of one conv or linear layer say about its channels."""

# O = output channels, I = input channels, G = groups, K = taps of the kernel (all dimensions), N = any kernels

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
import torch
from torch import nn

from dnnshifter_ext.fuse import numbers

# Kernels whose sizes stay in the second-level cache.
BLOCK = 2**15


class LayerFacts:
    """Questions about one layer, answered from its weights; all answers are on the CPU.

    `constants` must be asked first: it says what is known of the inputs (constant_I, constants_I in float64).
    The weights are read once; later questions look at kernels with a non-zero weight only.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.groups = getattr(module, 'groups', 1)
        self.num_outputs = module.weight.shape[0]
        self.num_inputs = module.weight.shape[1] * self.groups
        self._asked: tuple | None = None

    def constants(self, constant_I: np.ndarray, constants_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which outputs are constant, and their values before any activation (float64, 0 where not): two of (O,)."""
        if self._asked and np.array_equal(constant_I, self._asked[0]) and np.array_equal(constants_I, self._asked[1]):
            return self._asked[2]
        self._shown_I = constant_I & (constants_I != 0)
        constant_O = ~(self._reads_GOI & ~self._by_input(constant_I)).any(2).reshape(-1)
        constants_O = np.zeros(self.num_outputs)
        if self.module.bias is not None:
            constants_O += numbers(self.module.bias)
        if self._shown_I.any() and constant_O.any():
            output_N, input_N, weights_NK = self._kernels(constant_O, self._shown_I)
            if self._is_padded:
                constant_O[output_N[self._meets_padding(weights_NK)]] = False
            np.add.at(constants_O, output_N, weights_NK.double().sum(1).numpy() * constants_I[input_N])
        self._asked = constant_I, constants_I, (constant_O, np.where(constant_O, constants_O, 0.0))
        return self._asked[2]

    def reads(self, varies_O: np.ndarray) -> np.ndarray:
        """Inputs for which an output that is read and varies has a non-zero weight, (I,)."""
        if self.groups == 1:
            return self._reads_GOI[0, varies_O].any(0)
        return (self._reads_GOI & self._by_output(varies_O)).any(1).reshape(-1)

    def cut(self, varies_O: np.ndarray) -> np.ndarray:
        """Inputs with a constant other than zero that such an output sees beside the zero padding, (I,)."""
        cut_I = np.zeros(self.num_inputs, dtype=bool)
        if self._shown_I.any() and varies_O.any() and self._is_padded:
            _, input_N, weights_NK = self._kernels(varies_O, self._shown_I)
            cut_I[input_N[self._meets_padding(weights_NK)]] = True
        return cut_I

    @property
    def _is_padded(self) -> bool:
        return bool(taps_on_padding(self.module).any())

    @cached_property
    def reads_any_O(self) -> np.ndarray:
        """Has the output any non-zero weight at all? (O,)"""
        return self._reads_GOI.any(2).reshape(-1)

    def _kernels(self, outputs_O: np.ndarray, inputs_I: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """Of each kernel between these that has a non-zero weight: its output (N,), input (N,), weights (N, K)."""
        num_groups, num_rows, num_columns = self._reads_GOI.shape
        rows = np.flatnonzero(outputs_O & self.reads_any_O)
        reads_RI = self._reads_GOI.reshape(-1, num_columns)[rows] & inputs_I.reshape(num_groups, -1)[rows // num_rows]
        row_N, column_N = np.divmod(np.flatnonzero(reads_RI), num_columns)
        output_N = rows[row_N]
        kernel_N = torch.from_numpy(output_N * num_columns + column_N)
        return output_N, output_N // num_rows * num_columns + column_N, self._weights_NK.index_select(0, kernel_N)

    def _meets_padding(self, weights_NK: torch.Tensor) -> np.ndarray:
        """Which kernels have a non-zero weight on such a tap, (N,)."""
        return (weights_NK.abs() @ taps_on_padding(self.module).to(weights_NK.dtype) != 0).numpy()

    def _by_output(self, mask_O: np.ndarray) -> np.ndarray:
        return mask_O.reshape(self.groups, -1, 1)

    def _by_input(self, mask_I: np.ndarray) -> np.ndarray:
        return mask_I.reshape(self.groups, 1, -1)

    @cached_property
    def _weights_NK(self) -> torch.Tensor:
        """All kernels, output by output, on the CPU and in a type that numpy knows."""
        weight = self.module.weight.detach().cpu()
        weights_NK = weight.reshape(weight.shape[0] * weight.shape[1], -1)
        return weights_NK if weight.dtype in (torch.float32, torch.float64) else weights_NK.float()

    @cached_property
    def _reads_GOI(self) -> np.ndarray:
        """Has the output any non-zero weight for the input? (G, O/G, I/G)"""
        # Both ways are several times as fast as a comparison or reduction by torch itself.
        reads_N = self._weights_NK.numpy()[:, 0] != 0 if self._weights_NK.shape[1] == 1 else (
            _sums_of_sizes(self._weights_NK).numpy() != 0)
        return reads_N.reshape(self.groups, -1, self.module.weight.shape[1])


def _sums_of_sizes(weights_NK: torch.Tensor) -> torch.Tensor:
    """The sum of the absolute values of each kernel, (N,), by blocks: new memory costs more than arithmetic."""
    num_kernels, num_taps = weights_NK.shape
    sums_N, ones_K = weights_NK.new_empty(num_kernels), weights_NK.new_ones(num_taps)
    sizes_BK = weights_NK.new_empty(min(num_kernels, BLOCK), num_taps)
    for start in range(0, num_kernels, BLOCK):
        block_BK = weights_NK[start:start + BLOCK]
        torch.mv(torch.abs(block_BK, out=sizes_BK[:len(block_BK)]), ones_K, out=sums_N[start:start + BLOCK])
    return sums_N


def taps_on_padding(module: nn.Module) -> torch.Tensor:
    """Taps of the kernel, (K,), that can fall on the zero padding of a convolution at some position or resolution.

    Tap t reads input position stride * output - padding + dilation * t. It stays inside the image everywhere when
    padding_before <= dilation * t <= dilation * (kernel - 1) - padding_after: the middle of a padded 3x3, for
    example.
    """
    if isinstance(module, nn.Linear):
        return torch.zeros(1, dtype=torch.bool)
    return _taps_on_padding(module.kernel_size, module.dilation, module.padding, module.padding_mode)


@cache
def _taps_on_padding(kernel_size: tuple[int, ...], dilations: tuple[int, ...], padding: tuple[int, ...] | str,
                     padding_mode: str) -> torch.Tensor:
    inside = torch.ones(1, dtype=torch.bool)
    for dim, (size, dilation) in enumerate(zip(kernel_size, dilations, strict=True)):
        reach = dilation * (size - 1)
        if padding == 'same':
            before, after = reach // 2, reach - reach // 2
        else:
            before = after = 0 if padding == 'valid' else padding[dim]
        offset = dilation * torch.arange(size)
        inside = (inside[:, None] & ((before <= offset) & (offset <= reach - after))).flatten()
    return ~inside if padding_mode == 'zeros' else torch.zeros_like(inside)
