"""What the weights of a conv or linear layer say about its channels, and the narrower layer that is left of them.

The loops over the weights exist twice: in layers.c and, several times as slow, in numpy for where no compiler is.
"""

# O = output channels, I = input channels, G = groups, C = input channels of one group, K = taps of the kernel (all
# dimensions), N = any kernels

from __future__ import annotations

from collections.abc import Iterable, Sequence
import ctypes
from dataclasses import dataclass
from functools import cache, cached_property
import math
from pathlib import Path
import threading

import numpy as np
from scipy.sparse import csr_array
import torch
from torch import fx, nn

from dnnshifter_ext import compiler, ops
from dnnshifter_ext.fuse import fusable_norms, numbers, scales_and_shifts

SOURCE = Path(__file__).with_name('layers.c')
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

    def constants(self, constant_I: np.ndarray, constants_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which outputs are constant, and what they are then, before any activation: two of (O,), float64.

        constants_I: of the inputs, in float64, and 0 where they vary.
        """
        constant_O = ~self.reads_any_O
        constants_O = np.zeros(self.num_outputs) if self.module.bias is None else numbers(self.module.bias)
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

    def cut(self, varies_O: np.ndarray, shown_I: np.ndarray) -> np.ndarray:
        """Inputs, of the constant ones other than zero, that such an output sees beside the zero padding, (I,)."""
        cut_I = np.zeros(self.num_inputs, dtype=bool)
        if self._is_padded and shown_I.any():
            cut_I[self._beside_padding(varies_O, shown_I).input_N] = True
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
            is_chosen_O = np.zeros(self.num_outputs, dtype=bool)
            is_chosen_O[outputs] = True
            kernels = self.kernels(is_chosen_O & (scale_O != 0), ratio_I != 0)
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


class CompiledLayerFacts(LayerFacts):
    """The same answers from layers.c."""

    def __init__(self, module: nn.Module, functions: ctypes.CDLL) -> None:
        super().__init__(module)
        self.functions, self.layer = functions, _Layer(self)

    def constants(self, constant_I: np.ndarray, constants_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        constant_O = np.empty(self.num_outputs, dtype=bool)
        constants_O = np.zeros(self.num_outputs) if self.module.bias is None else numbers(self.module.bias).copy()
        self._call('constants', constant_I, constants_I, constant_O, constants_O)
        return constant_O, constants_O

    def reads(self, varies_O: np.ndarray) -> np.ndarray:
        reads_I = np.zeros(self.num_inputs, dtype=bool)
        self._call('reads', varies_O, reads_I)
        return reads_I

    def cut(self, varies_O: np.ndarray, shown_I: np.ndarray) -> np.ndarray:
        cut_I = np.zeros(self.num_inputs, dtype=bool)
        if self._is_padded and shown_I.any():
            self._call('cut', varies_O, shown_I, cut_I)
        return cut_I

    def sums(self, outputs_O: np.ndarray, constants_I: np.ndarray) -> np.ndarray:
        sums_O = np.empty(self.num_outputs)
        self._call('sums', outputs_O, constants_I, sums_O)
        return sums_O

    @property
    def reads_any_O(self) -> np.ndarray:
        return self._found.reads_any_O

    @property
    def _reads_OC(self) -> np.ndarray:
        bits = np.unpackbits(self._found.reads_OW.view(np.uint8), axis=1, bitorder='little', count=self.num_columns)
        return bits.view(bool)

    @cached_property
    def _found(self) -> _Layer:
        self.functions.find(ctypes.addressof(self.layer))
        return self.layer

    def _call(self, function: str, *arguments: np.ndarray | int) -> int | None:
        """Arrays are masks, or of int64 or float64, and contiguous."""
        return getattr(self.functions, function)(ctypes.addressof(self._found), *(
            argument if isinstance(argument, int) else argument.ctypes.data for argument in arguments))


class _Layer(ctypes.Structure):
    """`layer` of layers.c, and the memory that it points to."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ('outputs', 'columns', 'groups', 'taps')),
        *((name, ctypes.c_void_p) for name in ('weights', 'on_padding', 'reads', 'reads_any')),
        ('state', ctypes.c_int64)]

    def __init__(self, facts: LayerFacts) -> None:
        self.weights_NK, self.on_padding_K = facts.weights_NK, taps_on_padding(facts.module)
        self.reads_OW = np.empty((facts.num_outputs, -(-facts.num_columns // 64)), dtype=np.uint64)
        self.reads_any_O = np.empty(facts.num_outputs, dtype=bool)
        super().__init__(
            facts.num_outputs, facts.num_columns, facts.groups, facts.num_taps,
            *(array.ctypes.data for array in (self.weights_NK, self.on_padding_K, self.reads_OW, self.reads_any_O)))


class _Filling(ctypes.Structure):
    """`filling` of layers.c, and the memory that it points to."""

    _fields_ = [
        ('layer', ctypes.c_void_p), ('num_outputs', ctypes.c_int64), ('num_columns', ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ('outputs', 'columns', 'scale', 'ratio')), ('carrier', ctypes.c_int64),
        ('narrow', ctypes.c_void_p), ('is_begun', ctypes.c_int64)]

    def __init__(self, layer: _Layer, filling: Filling) -> None:
        self.memory = layer, filling
        super().__init__(
            ctypes.addressof(layer), len(filling.outputs), len(filling.columns),
            *(None if array is None else array.ctypes.data
              for array in (filling.outputs, filling.columns, filling.scale_O, filling.ratio_I)),
            filling.carrier, filling.narrow_OCK.ctypes.data)


@cache
def functions_for(dtype: np.dtype) -> ctypes.CDLL | None:
    """Those of layers.c, compiled now if they never were on this machine (0.2 s); None without a C compiler."""
    path = compiler.compile_once(SOURCE, f"the converter's loops for {dtype}", 'they run on numpy, at half the speed',
                                 *(('-DFLOAT64',) if dtype == np.float64 else ()))
    if path is None:
        return None
    functions, size, pointer = ctypes.CDLL(path), ctypes.c_int64, ctypes.c_void_p
    functions.find_all.argtypes = (pointer, size)
    functions.find.argtypes = (pointer,)
    functions.constants.argtypes = (pointer,) * 5
    functions.sums.argtypes = functions.cut.argtypes = (pointer,) * 4
    functions.reads.argtypes = (pointer,) * 3
    functions.fill_all.argtypes, functions.fill_all.restype = (pointer, size), size
    return functions


def load_loops() -> None:
    """Compiles layers.c now, where it never was, and not in the middle of something that is timed."""
    for dtype in (np.float32, np.float64):
        functions_for(np.dtype(dtype))


def facts_of_layer(module: nn.Module) -> LayerFacts:
    """The facts about a conv or linear layer."""
    functions = functions_for(np.dtype('float64' if module.weight.dtype is torch.float64 else 'float32'))
    return LayerFacts(module) if functions is None else CompiledLayerFacts(module, functions)


class Fillings:
    """Narrow layers to be filled, by any number of threads together (where that is compiled)."""

    def __init__(self, fillings: Iterable[tuple[LayerFacts, Filling]]) -> None:
        self._plain: list[tuple[LayerFacts, Filling]] = []
        self._memory: dict[ctypes.CDLL, list[_Filling]] = {}
        for facts, filling in fillings:
            if isinstance(facts, CompiledLayerFacts):
                self._memory.setdefault(facts.functions, []).append(_Filling(facts.layer, filling))
            else:
                self._plain.append((facts, filling))
        self._compiled = {functions: (_Filling * len(many))(*many) for functions, many in self._memory.items()}

    def run(self) -> None:
        """Fills all that no other thread has begun.

        Raises IndexError when there is no such output or column.
        """
        for functions, fillings in self._compiled.items():
            if functions.fill_all(fillings, len(fillings)):
                raise IndexError('the plan is for another model: it names outputs or inputs that a layer has not')
        while self._plain:
            facts, filling = self._plain.pop()
            facts.fill(filling)


class Facts:
    """What the weights of a model say. Found when asked for, and kept.

    modules: all of the model, by their path ('' is the model itself). layers: the facts about every conv or linear
    layer, by its path. fusable_norms: path of a layer -> the call of the batch norm that can become part of it.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self.modules = dict(graph_module.named_modules(remove_duplicate=False))
        self.fusable_norms = fusable_norms(graph_module)
        self.layers = {path: facts_of_layer(module) for path, module in self.modules.items()
                       if ops.is_conv_or_linear(module)}
        self._norms = {path: module for path, module in self.modules.items()
                       if type(module) in ops.BATCH_NORMS and module.running_mean is not None}

    def begin(self) -> None:
        """Starts to read the weights of all layers, the last first: who asks about the first ones reads those."""
        compiled = [facts for facts in reversed(self.layers.values()) if isinstance(facts, CompiledLayerFacts)]
        for functions in dict.fromkeys(facts.functions for facts in compiled):
            layers = [facts.layer for facts in compiled if facts.functions is functions]
            threading.Thread(target=_find_all, args=(functions, layers)).start()

    @cached_property
    def norms(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Path of a batch norm -> the scale and the shift of its channels in evaluation mode, each (C,) in float64."""
        return scales_and_shifts(self._norms)


def _find_all(functions: ctypes.CDLL, layers: Sequence[_Layer]) -> None:
    addresses = (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, layers))
    functions.find_all(addresses, len(layers))


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
