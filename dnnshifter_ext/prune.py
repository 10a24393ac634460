"""Module 4: carry out a removal plan on all layers in one batch (Algorithm 2 of the paper)."""

# O = output channels, I = input channels, C = input columns of the weight, K = taps of the kernel (all dimensions)

from __future__ import annotations

import math

import numpy as np
import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.fuse import copy_without, fused_layer, numbers
from dnnshifter_ext.graph import rebuild
from dnnshifter_ext.layers import Facts, LayerFacts
from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan
from dnnshifter_ext.rewire import rewire

CACHE_LINE = 64


class Memory:
    """Zeros for many tensors in one piece: numpy asks for large pages then, and those are there ten times as soon."""

    def __init__(self, num_bytes: int, num_tensors: int) -> None:
        self._free = np.zeros(num_bytes + num_tensors * CACHE_LINE, np.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Memory that no other array has."""
        begin = -self._free.ctypes.data % CACHE_LINE
        end = begin + math.prod(shape) * dtype.itemsize
        part, self._free = self._free[begin:end], self._free[end:]
        return part.view(dtype).reshape(shape)


def apply_plan(graph_module: fx.GraphModule, plan: RemovalPlan,
               facts: Facts | None = None) -> fx.GraphModule:
    """A new, smaller model, batch norms fused, that computes what `graph_module` (untouched) computes.

    facts: about its weights, where they were found before, for the plan.
    The sums of folded and merged constants and the new biases are taken in float64 and stored in the layer's own type.
    Raises ValueError when the plan was made for a model of other layers or sizes.
    """
    facts = Facts(graph_module) if facts is None else facts
    _check(plan, facts.layers)
    modules, norms = facts.modules, facts.fusable_norms
    memory = Memory(sum(_num_bytes(facts.layers[layer.layer], layer) for layer in plan.layers), len(plan.layers))
    narrow: dict[str, nn.Module | torch.Tensor] = {}
    with torch.no_grad():
        for layer in plan.layers:
            norm = facts.norms[norms[layer.layer].target] if layer.layer in norms else None
            narrow[layer.layer] = narrow_layer(facts.layers[layer.layer], layer, norm, memory)
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
    return rebuild(graph_module, narrow, graph)


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
                 memory: Memory) -> nn.Module:
    """A new conv or linear layer with the channels, weights and biases of the plan.

    norm: scale and shift of the batch norm that is fused into it, if any. Its tensors are contiguous and its own;
    `memory` is for its weight.
    """
    module, num_outputs = facts.module, facts.num_outputs
    outputs, columns = (np.array(kept, dtype=np.int64) for kept in (plan.keep_outputs, plan.keep_inputs))
    scale_O, shift_O = (np.ones(num_outputs), np.zeros(num_outputs)) if norm is None else norm
    bias_O = np.zeros(num_outputs) if module.bias is None else numbers(module.bias).copy()
    if plan.folded.channels:
        bias_O += facts.sums(_mask(outputs, num_outputs), _spread(plan.folded, facts.num_inputs))
    if plan.emptied.channels:
        bias_O[list(plan.emptied.channels)] = plan.emptied.values
        scale_of_weights_O = scale_O.copy()
        scale_of_weights_O[list(plan.emptied.channels)] = 0
    else:
        scale_of_weights_O = scale_O
    weight_OCK = memory.zeros((len(outputs), len(columns), facts.num_taps), facts.weights_NK.dtype)
    facts.fill(weight_OCK, outputs, columns, scale_of_weights_O)
    if plan.carrier is not None:
        ratio_I = _spread(plan.merged, facts.num_inputs)
        ratio_I /= ratio_I[plan.carrier]
        weight_OCK[:, plan.keep_inputs.index(plan.carrier)] = facts.merged(outputs, ratio_I, scale_of_weights_O)
    weight = torch.from_numpy(weight_OCK.reshape(*weight_OCK.shape[:2], *module.weight.shape[2:])).to(module.weight)
    needs_bias = norm is not None or module.bias is not None or plan.folded.channels or any(plan.emptied.values)
    bias = torch.from_numpy((bias_O * scale_O + shift_O)[outputs]).to(weight) if needs_bias else None
    return ops.with_tensors(module, weight, bias)


def _mask(channels: np.ndarray, num: int) -> np.ndarray:
    mask = np.zeros(num, dtype=bool)
    mask[channels] = True
    return mask


def _spread(constants: Constants, num: int) -> np.ndarray:
    """The constants at their positions, 0 elsewhere, (num,)."""
    spread = np.zeros(num)
    spread[list(constants.channels)] = constants.values
    return spread
