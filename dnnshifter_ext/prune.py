"""Module 4: carry out a removal plan on all layers in one batch (Algorithm 2 of the paper)."""

# O = output channels, I = input channels, C = input columns of the weight, K = taps of the kernel (all dimensions
# flattened), N = any kernels; in capitals before a _, those that stay

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np
from scipy.sparse import csr_array
import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.fuse import copy_without, fusable_norms, fused_layer, numbers, scale_and_shift, scaled
from dnnshifter_ext.graph import rebuild
from dnnshifter_ext.layers import LayerFacts, facts_of
from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan
from dnnshifter_ext.rewire import rewire

# The share of kernels with a non-zero weight below which these are put one by one among zeros.
SPARSE = 1 / 4
# Weights that stay in the second-level cache.
BLOCK = 2**17
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
               facts: dict[str, LayerFacts] | None = None) -> fx.GraphModule:
    """A new, smaller model, batch norms fused, that computes what `graph_module` (untouched) computes.

    facts: about its layers (see `layers.facts_of`), where they were found before, for the plan.
    The sums of folded and merged constants and the new biases are taken in float64 and stored in the layer's own type.
    Raises ValueError when the plan was made for a model of other layers or sizes.
    """
    facts = facts_of(graph_module) if facts is None else facts
    _check(plan, facts)
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    norms = fusable_norms(graph_module)
    memory = Memory(sum(_num_bytes(facts[layer.layer], layer) for layer in plan.layers), len(plan.layers))
    narrow: dict[str, nn.Module | torch.Tensor] = {}
    with torch.no_grad():
        for layer in plan.layers:
            norm = modules[norms[layer.layer].target] if layer.layer in norms else None
            narrow[layer.layer] = narrow_layer(facts[layer.layer], layer, norm, memory)
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


def narrow_layer(facts: LayerFacts, plan: LayerPlan, norm: nn.Module | None, memory: Memory) -> nn.Module:
    """A new conv or linear layer with the channels, weights and biases of the plan, and with `norm` fused into it.

    Its tensors are contiguous and its own; `memory` is for its weight.
    """
    module, num_outputs = facts.module, facts.num_outputs
    scale_O, shift_O = (np.ones(num_outputs), np.zeros(num_outputs)) if norm is None else scale_and_shift(norm)
    bias_O = np.zeros(num_outputs) if module.bias is None else numbers(module.bias).copy()
    kept_O = _mask(plan.keep_outputs, num_outputs)
    if plan.folded.channels:
        folded_I = _spread(plan.folded, facts.num_inputs)
        bias_O += facts.kernels(kept_O, folded_I != 0).sums(folded_I, num_outputs)
    bias_O[list(plan.emptied.channels)] = plan.emptied.values
    bias_O = bias_O * scale_O + shift_O
    weight_OCK = memory.zeros((len(plan.keep_outputs), len(plan.keep_inputs), facts.weights_NK.shape[1]),
                              facts.weights_NK.dtype)
    _fill(weight_OCK, facts, plan, scale_O)
    weight = torch.from_numpy(weight_OCK.reshape(*weight_OCK.shape[:2], *module.weight.shape[2:])).to(module.weight)
    needs_bias = norm is not None or module.bias is not None or plan.folded.channels or any(plan.emptied.values)
    return ops.with_tensors(module, weight, torch.from_numpy(bias_O[kept_O]).to(weight) if needs_bias else None)


def _fill(weight_OCK: np.ndarray, facts: LayerFacts, plan: LayerPlan, scale_O: np.ndarray) -> None:
    """Puts the weights that stay, times the scale of their output, into the zeros of a narrow layer."""
    outputs, columns = np.array(plan.keep_outputs), np.array(plan.keep_inputs)
    alive_O = _mask(outputs, facts.num_outputs)
    alive_O[list(plan.emptied.channels)] = False
    fill = _scatter if facts.density < SPARSE else _gather
    fill(weight_OCK, facts, outputs, columns, scale_O * alive_O)
    if plan.carrier is not None:
        ratio_I = _spread(plan.merged, facts.num_inputs)
        ratio_I /= ratio_I[plan.carrier]
        kernels = facts.kernels(alive_O, ratio_I != 0)
        factor_N = ratio_I[kernels.input_N] * scale_O[kernels.output_N]
        # Output by output, as the kernels are: a product with a matrix of one factor per kernel.
        first_O = np.searchsorted(kernels.output_N, np.append(outputs, facts.num_outputs))
        merge_ON = csr_array((factor_N, np.arange(len(factor_N)), first_O), shape=(len(outputs), len(factor_N)))
        weight_OCK[:, plan.keep_inputs.index(plan.carrier)] = merge_ON @ kernels.weights_NK


def _scatter(weight_OCK: np.ndarray, facts: LayerFacts, outputs: np.ndarray, columns: np.ndarray,
             scale_O: np.ndarray) -> None:
    """The kernels with a non-zero weight, one by one."""
    keep_O, keep_C = _mask(outputs, facts.num_outputs), _mask(columns, facts.num_columns)
    kernels = facts.kernels(keep_O & (scale_O != 0), np.tile(keep_C, facts.groups))
    # Where a kernel goes, by its output and by its input.
    row_O, column_I = np.cumsum(keep_O) - 1, np.tile(np.cumsum(keep_C) - 1, facts.groups)
    position_N = row_O[kernels.output_N] * len(columns) + column_I[kernels.input_N]
    torch.from_numpy(weight_OCK).flatten(0, 1).index_copy_(
        0, torch.from_numpy(position_N), scaled(torch.from_numpy(kernels.weights_NK), scale_O[kernels.output_N]))


def _gather(weight_OCK: np.ndarray, facts: LayerFacts, outputs: np.ndarray, columns: np.ndarray,
            scale_O: np.ndarray) -> None:
    """All kernels, by blocks of outputs."""
    weight_OCK = torch.from_numpy(weight_OCK)
    all_OCK = torch.from_numpy(facts.weights_NK).view(facts.num_outputs, facts.num_columns, -1)
    size = max(1, BLOCK // all_OCK[0].numel())
    for start in range(0, len(outputs), size):
        chosen = outputs[start:start + size]
        first, stop = chosen[0], chosen[-1] + 1
        is_range = stop - first == len(chosen)  # which needs no copy
        block_OCK = all_OCK[first:stop] if is_range else all_OCK.index_select(0, torch.from_numpy(chosen))
        if len(columns) < facts.num_columns:
            block_OCK = block_OCK.index_select(1, torch.from_numpy(columns))
        scaled(block_OCK, scale_O[chosen], out=weight_OCK[start:start + size])


def _mask(channels: Sequence[int], num: int) -> np.ndarray:
    mask = np.zeros(num, dtype=bool)
    mask[np.asarray(channels, dtype=int)] = True
    return mask


def _spread(constants: Constants, num: int) -> np.ndarray:
    """The constants at their positions, 0 elsewhere, (num,)."""
    spread = np.zeros(num)
    spread[list(constants.channels)] = constants.values
    return spread
