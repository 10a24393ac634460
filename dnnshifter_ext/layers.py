"""What the weights of one conv or linear layer say about its channels, and the narrower layer that is left of them.

This is plain numpy; `layers_in_c` gives the same answers several times as fast where there is a compiler.
"""

# O = output channels, I = input channels, G = groups, C = input channels of one group, K = taps of the kernel (all
# dimensions), N = any kernels

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
import math

import numpy as np
from scipy.sparse import csr_array
import torch
from torch import nn

from dnnshifter_ext.fuse import numbers

# Weights, as one byte each they stay in the second-level cache.
BLOCK = 2**19


@dataclass(frozen=True)
class Kernels:
    """Some kernels of a layer: their outputs and inputs (N,), and weights (N, K)."""

    output_N: np.ndarray
    input_N: np.ndarray
    weights_NK: np.ndarray

    def sums(self, constants_I: np.ndarray, num_outputs: int) -> np.ndarray:
        """What they add to each output when every input is a constant, (O,) in float64."""
        sums_N = self.weights_NK @ np.ones(self.weights_NK.shape[1])
        return np.bincount(self.output_N, weights=sums_N * constants_I[self.input_N], minlength=num_outputs)


@dataclass(frozen=True)
class Filling:
    """A narrow layer's weight, zeros before, and what of a layer goes into it.

    outputs, columns: those that stay, in int64, (O,) and (C,) of `narrow_OCK`. scale_O: of all outputs of the layer, as
    factors; one with 0 gets no weights. ratio_I: how much of each input's kernel the column at `carrier` gets, if any.
    """

    narrow_OCK: np.ndarray
    outputs: np.ndarray
    columns: np.ndarray
    scale_O: np.ndarray
    ratio_I: np.ndarray | None = None
    carrier: int = 0


class LayerFacts:
    """Questions about one layer, answered from its weights; all answers are on the CPU.

    The weights are read once; later questions look at kernels with a non-zero weight only.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.groups = getattr(module, 'groups', 1)
        self.num_outputs, self.num_columns = module.weight.shape[:2]
        self.num_inputs = self.num_columns * self.groups
        self.num_taps = math.prod(module.weight.shape[2:])

    def biases(self) -> np.ndarray:
        """(O,) in float64, zeros where the layer has none; the caller's own."""
        return np.zeros(self.num_outputs) if self.module.bias is None else numbers(self.module.bias).copy()

    def constants(self, constant_I: np.ndarray, constants_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which outputs are constant, and what they are then, before any activation: two of (O,), float64.

        constants_I: of the inputs, in float64, and 0 where they vary.
        """
        constant_O = ~self.reads_any_O
        constants_O = self.biases()
        if constant_I.any():
            live = self.reads_any_O.nonzero()[0]
            constant_O[live] = ~(self._reads_OC[live] & self._by_output(~constant_I, live)).any(1)
            shown_I = constants_I != 0
            if constant_O[live].any() and shown_I.any():
                if self._is_padded:
                    constant_O[self._beside_padding(constant_O, shown_I).output_N] = False
                constants_O = constants_O + self.kernels(constant_O, shown_I).sums(constants_I, self.num_outputs)
        return constant_O, constants_O

    def reads(self, varies_O: np.ndarray) -> np.ndarray:
        """Inputs for which an output that is read and varies has a non-zero weight, (I,)."""
        outputs = varies_O.nonzero()[0]
        if self.groups == 1:
            return self._reads_OC[outputs].any(0)
        reads_GC = np.zeros((self.groups, self.num_columns), dtype=bool)
        row_N, column_N = self._reads_OC[outputs].nonzero()
        reads_GC[self._group(outputs[row_N]), column_N] = True
        return reads_GC.reshape(-1)

    def cut(self, varies_O: np.ndarray, constants_I: np.ndarray) -> np.ndarray:
        """Inputs whose constant is not zero and that such an output sees beside the zero padding, (I,).

        constants_I: 0 where they vary.
        """
        cut_I = np.zeros(self.num_inputs, dtype=bool)
        if self._is_padded and constants_I.any():
            cut_I[self._beside_padding(varies_O, constants_I != 0).input_N] = True
        return cut_I

    def kernels(self, outputs_O: np.ndarray, inputs_I: np.ndarray) -> Kernels:
        """The kernels between these that have a non-zero weight."""
        outputs = (outputs_O & self.reads_any_O).nonzero()[0]
        flat_N = (self._reads_OC[outputs] & self._by_output(inputs_I, outputs)).reshape(-1).nonzero()[0]
        row_N = flat_N // self.num_columns
        output_N = outputs[row_N]
        kernel_N = flat_N + (output_N - row_N) * self.num_columns
        input_N = kernel_N - (output_N - self._group(output_N)) * self.num_columns
        return Kernels(output_N, input_N, self.weights_NK.take(kernel_N, 0))

    def sums(self, outputs_O: np.ndarray, constants_I: np.ndarray) -> np.ndarray:
        """What inputs that are these constants add to each of these outputs, (O,) in float64; 0 for the others."""
        return self.kernels(outputs_O, constants_I != 0).sums(constants_I, self.num_outputs)

    def fill(self, filling: Filling) -> None:
        """Puts weights into a narrow layer."""
        outputs, columns, scale_O, ratio_I = filling.outputs, filling.columns, filling.scale_O, filling.ratio_I
        scale_N = np.repeat(scale_O[outputs], len(columns))
        chosen_N = (outputs[:, None] * self.num_columns + columns).reshape(-1)
        reads_N = self._reads_OC.reshape(-1)[chosen_N] & (scale_N != 0)
        narrow_NK = filling.narrow_OCK.reshape(-1, self.num_taps)
        narrow_NK[reads_N] = self.weights_NK[chosen_N[reads_N]] * scale_N[reads_N, None]
        if ratio_I is not None:
            kernels = self.kernels(mask_of(outputs, self.num_outputs) & (scale_O != 0), ratio_I != 0)
            factor_N = ratio_I[kernels.input_N] * scale_O[kernels.output_N]
            # Output by output, as the kernels are: a product with a matrix of one factor per kernel.
            first_O = np.searchsorted(kernels.output_N, np.append(outputs, self.num_outputs))
            merge_ON = csr_array((factor_N, np.arange(len(factor_N)), first_O), shape=(len(outputs), len(factor_N)))
            filling.narrow_OCK[:, filling.carrier] = merge_ON @ kernels.weights_NK

    @cached_property
    def reads_any_O(self) -> np.ndarray:
        """Has the output any non-zero weight at all? (O,)"""
        return self._reads_OC.any(1)

    @cached_property
    def _is_padded(self) -> bool:
        return bool(taps_on_padding(self.module).any())

    def _beside_padding(self, outputs_O: np.ndarray, inputs_I: np.ndarray) -> Kernels:
        """Those of the kernels between these that have a non-zero weight on a tap that can fall on zero padding."""
        kernels = self.kernels(outputs_O, inputs_I)
        weights_NK = kernels.weights_NK
        meets_N = np.abs(weights_NK) @ taps_on_padding(self.module).astype(weights_NK.dtype) != 0
        return Kernels(kernels.output_N[meets_N], kernels.input_N[meets_N], weights_NK[meets_N])

    def _group(self, output_N: np.ndarray) -> np.ndarray:
        return output_N * self.groups // self.num_outputs

    def _by_output(self, mask_I: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The mask for the inputs of each of these outputs, to be broadcast to (len(outputs), C)."""
        return mask_I.reshape(self.groups, -1)[self._group(outputs)] if self.groups > 1 else mask_I

    @cached_property
    def weights_NK(self) -> np.ndarray:
        """All kernels, output by output, in float64 or else float32."""
        weight = self.module.weight.detach()
        weight = weight if weight.dtype is torch.float64 else weight.float()
        return weight.numpy(force=True).reshape(self.num_outputs * self.num_columns, -1)

    @cached_property
    def _reads_OC(self) -> np.ndarray:
        """Has the output any non-zero weight for the input?"""
        reads_N, size = np.empty(len(self.weights_NK), dtype=bool), max(1, BLOCK // self.num_taps)
        for start in range(0, len(reads_N), size):
            reads_N[start:start + size] = _any_in_each(self.weights_NK[start:start + size] != 0)
        return reads_N.reshape(self.num_outputs, self.num_columns)


def _any_in_each(true_NK: np.ndarray) -> np.ndarray:
    """Is any of each row true? (N,), several times as fast as numpy's own reduction of short rows."""
    num_taps, width, any_in_width = true_NK.shape[1], 1, true_NK.reshape(-1)
    while 2 * width <= num_taps:  # begins at each of the taps, wherever that ends
        any_in_width = any_in_width[:-width] | any_in_width[width:]
        width *= 2
    begins_N = any_in_width[::num_taps]
    return begins_N if width == num_taps else begins_N | any_in_width[num_taps - width::num_taps]


def mask_of(indices: np.ndarray, num: int) -> np.ndarray:
    """True at these indices, (num,)."""
    mask = np.zeros(num, dtype=bool)
    mask[indices] = True
    return mask


def taps_on_padding(module: nn.Module) -> np.ndarray:
    """Taps of the kernel, (K,), that can fall on the zero padding of a convolution at some position or resolution.

    Tap t reads input position stride * output - padding + dilation * t. It stays inside the image everywhere when
    padding_before <= dilation * t <= dilation * (kernel - 1) - padding_after: the middle of a padded 3x3, for
    example.
    """
    if isinstance(module, nn.Linear):
        return np.zeros(1, dtype=bool)
    return _taps_on_padding(module.kernel_size, module.dilation, module.padding, module.padding_mode)


@cache
def _taps_on_padding(kernel_size: tuple[int, ...], dilations: tuple[int, ...], padding: tuple[int, ...] | str,
                     padding_mode: str) -> np.ndarray:
    inside = np.ones(1, dtype=bool)
    for dim, (size, dilation) in enumerate(zip(kernel_size, dilations, strict=True)):
        reach = dilation * (size - 1)
        if padding == 'same':
            before, after = reach // 2, reach - reach // 2
        else:
            before = after = 0 if padding == 'valid' else padding[dim]
        offset = dilation * np.arange(size)
        inside = (inside[:, None] & ((before <= offset) & (offset <= reach - after))).reshape(-1)
    return ~inside if padding_mode == 'zeros' else np.zeros_like(inside)
