"""Module 4: carry out a removal plan on all layers in one batch (Algorithm 2 of the paper)."""

# O = output channels, I = input channels, C = input columns of the weight, K = taps of the kernel (all dimensions)

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import math

import numpy as np
import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.facts import Facts, Fillings
from dnnshifter_ext.fuse import copy_without, fused_layer
from dnnshifter_ext.graph import rebuild
from dnnshifter_ext.layers import Filling, LayerFacts, mask_of
from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan
from dnnshifter_ext.rewire import rewire

CACHE_LINE = 64
WORTH_A_THREAD = 2**22  # bytes to be filled


class Memory:
    """Zeros for many arrays in one piece: numpy asks for large pages then, and those are there ten times as soon."""

    def __init__(self, num_bytes: int, num_arrays: int) -> None:
        self._free = np.zeros(num_bytes + num_arrays * CACHE_LINE, np.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Memory that no other array has."""
        begin = -self._free.ctypes.data % CACHE_LINE
        end = begin + math.prod(shape) * dtype.itemsize
        part, self._free = self._free[begin:end], self._free[end:]
        return part.view(dtype).reshape(shape)


def apply_plan(graph_module: fx.GraphModule, plan: RemovalPlan, facts: Facts | None = None) -> fx.GraphModule:
    """A new, smaller model, batch norms fused, that computes what `graph_module` (untouched) computes.

    facts: about its weights, where they were found before, for the plan.
    The sums of folded and merged constants and the new biases are taken in float64 and stored in the layer's own type.
    Raises ValueError when the plan was made for a model of other layers or sizes, IndexError when it names channels
    that a layer has not.
    """
    facts = Facts(graph_module) if facts is None else facts
    _check(plan, facts.layers)
    modules, norms = facts.modules, facts.fusable_norms
    num_bytes = sum(_num_bytes(facts.layers[layer.layer], layer) for layer in plan.layers)
    memory = Memory(num_bytes, len(plan.layers))
    narrow: dict[str, nn.Module | torch.Tensor] = {}
    filled: dict[str, Filling] = {}
    for layer in plan.layers:
        path = layer.layer
        norm = facts.norms[norms[path].target] if path in norms else None
        narrow[path], filled[path] = narrow_layer(facts.layers[path], layer, norm, memory)
    fillings = Fillings((facts.layers[path], filling) for path, filling in filled.items())
    with ThreadPoolExecutor(1) as pool:
        other_thread = pool.submit(fillings.run) if num_bytes >= WORTH_A_THREAD else None
        graph = _rewired(graph_module, plan, modules, norms, narrow)
        small = rebuild(graph_module, narrow, graph)
        fillings.run()
        if other_thread is not None:
            other_thread.result()
    with torch.no_grad():
        for path, filling in filled.items():
            weight, narrow_OCK = narrow[path].weight, torch.from_numpy(filling.narrow_OCK)
            if weight.data_ptr() != narrow_OCK.data_ptr():  # of another type, or elsewhere
                weight.copy_(narrow_OCK.view(weight.shape))
    return small


def _rewired(graph_module: fx.GraphModule, plan: RemovalPlan, modules: dict[str, nn.Module], norms: dict[str, fx.Node],
             narrow: dict[str, nn.Module | torch.Tensor]) -> fx.Graph:
    """The graph of the narrow model; what else it needs is added to `narrow`."""
    narrow |= {path: fused_layer(modules[path], modules[norm.target])  # of layers that lose nothing, not even inputs
               for path, norm in norms.items() if path not in narrow}
    graph = copy_without(graph_module.graph, norms.values())
    nodes = {node.name: node for node in graph.nodes}
    fused = {norm.name for norm in norms.values()}
    for node_plan in plan.nodes:
        if node_plan.node in nodes:
            narrow |= rewire(modules, nodes[node_plan.node], node_plan)
        elif node_plan.node not in fused:
            raise ValueError(f"the plan is for another model: there is no node '{node_plan.node}'")
    return graph


def _check(plan: RemovalPlan, facts: dict[str, LayerFacts]) -> None:
    for layer in plan.layers:
        if layer.layer not in facts:
            raise ValueError(f"the plan is for another model: there is no conv or linear layer '{layer.layer}'")
        own = facts[layer.layer]
        size, planned = (own.num_outputs, own.num_columns), (layer.num_outputs, layer.num_inputs)
        if size != planned:
            raise ValueError(
                f"the plan is for another model: '{layer.layer}' has {size} outputs and inputs, not {planned}")


def _num_bytes(facts: LayerFacts, plan: LayerPlan) -> int:
    return len(plan.keep_outputs) * len(plan.keep_inputs) * facts.weights_NK[0].nbytes


def narrow_layer(facts: LayerFacts, plan: LayerPlan, norm: tuple[np.ndarray, np.ndarray] | None,
                 memory: Memory) -> tuple[nn.Module, Filling]:
    """A new conv or linear layer with the channels and biases of the plan, its weight zeros, and what goes into that.

    norm: scale and shift of the batch norm that is fused into it, if any. Its tensors are contiguous and its own;
    `memory` is for its weight.
    """
    module, num_outputs = facts.module, facts.num_outputs
    outputs, columns = (np.array(kept, dtype=np.int64) for kept in (plan.keep_outputs, plan.keep_inputs))
    scale_O, shift_O = (np.ones(num_outputs), np.zeros(num_outputs)) if norm is None else norm
    bias_O = facts.biases()
    if plan.folded.channels:
        bias_O += facts.sums(mask_of(outputs, num_outputs), _spread(plan.folded, facts.num_inputs))
    scale_of_weights_O = scale_O
    if plan.emptied.channels:
        emptied = list(plan.emptied.channels)
        bias_O[emptied], scale_of_weights_O = plan.emptied.values, scale_O.copy()
        scale_of_weights_O[emptied] = 0
    needs_bias = norm is not None or module.bias is not None or plan.folded.channels or any(plan.emptied.values)
    ratio_I, carrier = None, 0
    if plan.carrier is not None:
        ratio_I, carrier = _spread(plan.merged, facts.num_inputs), plan.keep_inputs.index(plan.carrier)
        ratio_I /= ratio_I[plan.carrier]
    filling = Filling(memory.zeros((len(outputs), len(columns), facts.num_taps), facts.weights_NK.dtype),
                      outputs, columns, scale_of_weights_O, ratio_I, carrier)
    weight = torch.from_numpy(filling.narrow_OCK).view(len(outputs), len(columns), *module.weight.shape[2:])
    weight = weight.to(module.weight)
    bias = torch.from_numpy((bias_O * scale_O + shift_O)[outputs]).to(weight) if needs_bias else None
    return ops.with_tensors(module, weight, bias), filling


def _spread(constants: Constants, num: int) -> np.ndarray:
    """The constants at their positions, 0 elsewhere, (num,)."""
    spread = np.zeros(num)
    spread[list(constants.channels)] = constants.values
    return spread
