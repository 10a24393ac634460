"""The answers of `layers`, from layers.c: several times as fast, and without the interpreter's lock."""

# O = output channels, I = input channels, C = input channels of one group, K = taps of the kernel, N = any kernels,
# W = words of 64 columns

from __future__ import annotations

import ctypes
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from torch import nn

from dnnshifter_ext import compiler
from dnnshifter_ext.layers import Filling, LayerFacts, taps_on_padding

SOURCE = Path(__file__).with_name('layers.c')


class LayerFactsInC(LayerFacts):
    """functions: of layers.c, for the type of the weights (see `functions_for`); layer: what they are called with."""

    def __init__(self, module: nn.Module, functions: ctypes.CDLL) -> None:
        super().__init__(module)
        self.functions, self.layer = functions, LayerInC(self)

    def constants(self, constant_I: np.ndarray, constants_I: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        constant_O = np.empty(self.num_outputs, dtype=bool)
        constants_O = self.biases()
        self._call('constants', _mask(constant_I), _numbers(constants_I), constant_O, constants_O)
        return constant_O, constants_O

    def reads(self, varies_O: np.ndarray) -> np.ndarray:
        reads_I = np.zeros(self.num_inputs, dtype=bool)
        self._call('reads', _mask(varies_O), reads_I)
        return reads_I

    def cut(self, varies_O: np.ndarray, constants_I: np.ndarray) -> np.ndarray:
        cut_I = np.zeros(self.num_inputs, dtype=bool)
        if self._is_padded and constants_I.any():
            self._call('cut', _mask(varies_O), _numbers(constants_I), cut_I)
        return cut_I

    def sums(self, outputs_O: np.ndarray, constants_I: np.ndarray) -> np.ndarray:
        sums_O = np.empty(self.num_outputs)
        self._call('sums', _mask(outputs_O), _numbers(constants_I), sums_O)
        return sums_O

    @property
    def reads_any_O(self) -> np.ndarray:
        return self._found.reads_OW.any(1)

    @property
    def _reads_OC(self) -> np.ndarray:
        bits = np.unpackbits(self._found.reads_OW.view(np.uint8), axis=1, bitorder='little', count=self.num_columns)
        return bits.view(bool)

    @cached_property
    def _found(self) -> LayerInC:
        self.functions.find(ctypes.addressof(self.layer))
        return self.layer

    def _call(self, function: str, *arrays: np.ndarray) -> None:
        getattr(self.functions, function)(
            ctypes.addressof(self._found), *(array.ctypes.data for array in arrays))


def _mask(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(mask, bool)


def _numbers(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, np.float64)


class LayerInC(ctypes.Structure):
    """`layer` of layers.c, and the memory that it points to."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ('outputs', 'columns', 'groups', 'taps')),
        *((name, ctypes.c_void_p) for name in ('weights', 'on_padding', 'reads')),
        ('state', ctypes.c_int64)]

    def __init__(self, facts: LayerFacts) -> None:
        self.weights_NK, self.on_padding_K = facts.weights_NK, taps_on_padding(facts.module)
        self.reads_OW = np.empty((facts.num_outputs, -(-facts.num_columns // 64)), dtype=np.uint64)
        super().__init__(
            facts.num_outputs, facts.num_columns, facts.groups, facts.num_taps,
            *(array.ctypes.data for array in (self.weights_NK, self.on_padding_K, self.reads_OW)))


class FillingInC(ctypes.Structure):
    """`filling` of layers.c, and the memory that it points to."""

    _fields_ = [
        ('layer', ctypes.c_void_p), ('num_outputs', ctypes.c_int64), ('num_columns', ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ('outputs', 'columns', 'scale', 'ratio')), ('carrier', ctypes.c_int64),
        ('narrow', ctypes.c_void_p), ('is_begun', ctypes.c_int64)]

    def __init__(self, layer: LayerInC, filling: Filling) -> None:
        self.memory = layer, filling
        super().__init__(
            ctypes.addressof(layer), len(filling.outputs), len(filling.columns),
            *(None if array is None else array.ctypes.data
              for array in (filling.outputs, filling.columns, filling.scale_O, filling.ratio_I)),
            filling.carrier, filling.narrow_OCK.ctypes.data)


@cache
def functions_for(dtype: np.dtype) -> ctypes.CDLL | None:
    """Those of layers.c, compiled now if they never were on this machine (0.2 s); None without a C compiler."""
    options = ('-DFLOAT64',) if dtype == np.float64 else ()
    path = compiler.compile_once(SOURCE, f"the converter's loops for {dtype}",
                                 'models are converted with numpy, at half the speed', *options)
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
