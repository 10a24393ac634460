"""What the weights of a model say, and the narrower layers that are made of them: all layers together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import ctypes
from functools import cached_property
import threading

import numpy as np
import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.fuse import fusable_norms, scales_and_shifts
from dnnshifter_ext.layers import Filling, LayerFacts
from dnnshifter_ext.layers_in_c import FillingInC, LayerFactsInC, LayerInC, functions_for


def facts_of_layer(module: nn.Module) -> LayerFacts:
    """The facts about a conv or linear layer."""
    functions = functions_for(np.dtype('float64' if module.weight.dtype is torch.float64 else 'float32'))
    return LayerFacts(module) if functions is None else LayerFactsInC(module, functions)


class Fillings:
    """Narrow layers to be filled, by any number of threads together (where that is compiled)."""

    def __init__(self, fillings: Iterable[tuple[LayerFacts, Filling]]) -> None:
        self._plain: list[tuple[LayerFacts, Filling]] = []
        self._memory: dict[ctypes.CDLL, list[FillingInC]] = {}
        for facts, filling in fillings:
            if isinstance(facts, LayerFactsInC):
                self._memory.setdefault(facts.functions, []).append(FillingInC(facts.layer, filling))
            else:
                self._plain.append((facts, filling))
        self._compiled = {functions: (FillingInC * len(many))(*many) for functions, many in self._memory.items()}

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
        compiled = [facts for facts in reversed(self.layers.values()) if isinstance(facts, LayerFactsInC)]
        for functions in dict.fromkeys(facts.functions for facts in compiled):
            layers = [facts.layer for facts in compiled if facts.functions is functions]
            threading.Thread(target=_find_all, args=(functions, layers)).start()

    @cached_property
    def norms(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Path of a batch norm -> the scale and the shift of its channels in evaluation mode, each (C,) in float64."""
        return scales_and_shifts(self._norms)


def _find_all(functions: ctypes.CDLL, layers: Sequence[LayerInC]) -> None:
    addresses = (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, layers))
    functions.find_all(addresses, len(layers))
