"""Module 4: carry out a removal plan on all layers in one batch (Algorithm 2 of the paper)."""

# O = output channels, I = input columns, K = taps of the kernel (all dimensions flattened)

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.fuse import drop_nodes, fusable_norms, fused_layer, scale_and_shift, scaled
from dnnshifter_ext.graph import rebuild
from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan
from dnnshifter_ext.rewire import as_index, rewire


def apply_plan(graph_module: fx.GraphModule, plan: RemovalPlan) -> fx.GraphModule:
    """A new, smaller model, batch norms fused, that computes what `graph_module` (untouched) computes.

    The sums of folded and merged constants and the new biases are taken in float64 and stored in the layer's own type.
    Raises ValueError when the plan was made for a model of other layers or sizes.
    """
    narrow: dict[str, nn.Module | torch.Tensor] = {}
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    norms = fusable_norms(graph_module)
    for layer_plan in plan.layers:
        name, module = layer_plan.layer, modules.get(layer_plan.layer)
        if module is None or not ops.is_conv_or_linear(module):
            raise ValueError(f"the plan is for another model: there is no conv or linear layer '{name}'")
        size, planned = tuple(module.weight.shape[:2]), (layer_plan.num_outputs, layer_plan.num_inputs)
        if size != planned:
            raise ValueError(
                f"the plan is for another model: '{name}' has {size} outputs and inputs, not {planned}")
        norm = modules[norms[name].target] if name in norms else None
        with torch.no_grad():
            narrow[name] = narrow_layer(module, layer_plan, norm)
    narrow |= {path: fused_layer(modules[path], modules[norm.target])  # of layers that lose nothing, not even inputs
               for path, norm in norms.items() if path not in narrow}
    graph = copy.deepcopy(graph_module.graph)
    nodes = {node.name: node for node in graph.nodes}
    fused = {norm.name for norm in norms.values()}
    for node_plan in plan.nodes:
        if node_plan.node not in nodes:
            raise ValueError(f"the plan is for another model: there is no node '{node_plan.node}'")
        if node_plan.node not in fused:
            narrow |= rewire(modules, nodes[node_plan.node], node_plan)
    drop_nodes(graph, norms.values())
    return rebuild(graph_module, narrow, graph)


def narrow_layer(module: nn.Module, plan: LayerPlan, norm: nn.Module | None = None) -> nn.Module:
    """A new conv or linear layer with the channels, weights and biases of the plan, and with `norm` fused into it.

    Its tensors are contiguous and its own.
    """
    device, dtype = module.weight.device, module.weight.dtype
    keep_O, keep_I = (as_index(keep, device) for keep in (plan.keep_outputs, plan.keep_inputs))
    weight = _chosen(module.weight.detach(), keep_O, keep_I)
    needs_bias = norm is not None or module.bias is not None or plan.folded.channels or any(plan.emptied.values)
    bias_O = torch.zeros(len(keep_O), dtype=torch.float64, device=device)
    if module.bias is not None:
        bias_O += module.bias.detach().index_select(0, keep_O)
    if plan.folded.channels:
        columns, values = _tensors(plan.folded, device)
        folded_OIK = _taps(_chosen(module.weight.detach(), keep_O, columns))
        bias_O += folded_OIK.flatten(1) @ values.repeat_interleave(folded_OIK.shape[2])
    if plan.carrier is not None:
        columns, values = _tensors(plan.merged, device)
        ratios = values / plan.merged.values[plan.merged.channels.index(plan.carrier)]
        summed_OK = torch.einsum('oik,i->ok', _taps(_chosen(module.weight.detach(), keep_O, columns)), ratios)
        position = plan.keep_inputs.index(plan.carrier)
        weight[:, position] = summed_OK.reshape(weight[:, position].shape).to(dtype)
    if plan.emptied.channels:
        channels, values = _tensors(plan.emptied, device)
        positions = torch.searchsorted(keep_O, channels)
        weight[positions] = 0
        bias_O[positions] = values
    if norm is not None:
        scale_O, shift_O = (part_O[list(plan.keep_outputs)] for part_O in scale_and_shift(norm))
        weight = scaled(weight, scale_O)
        bias_O = bias_O * torch.from_numpy(scale_O).to(device) + torch.from_numpy(shift_O).to(device)
    return ops.with_tensors(module, weight, bias_O.to(dtype) if needs_bias else None)


def _chosen(weight: torch.Tensor, outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of weight[outputs, inputs]: kernel by kernel, which is several times faster than by rows."""
    num_outputs, num_inputs, *kernel = weight.shape
    if len(outputs) == num_outputs and len(inputs) == num_inputs:
        return weight.clone(memory_format=torch.contiguous_format)
    if not kernel:
        return weight.index_select(0, outputs).index_select(1, inputs)
    kernels = (outputs[:, None] * num_inputs + inputs).view(-1)
    return weight.reshape(num_outputs * num_inputs, -1).index_select(0, kernels).view(
        len(outputs), len(inputs), *kernel)


def _tensors(constants: Constants, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (as_index(constants.channels, device),
            torch.tensor(constants.values, dtype=torch.float64, device=device))


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, *kernel) as (O, I, K) in float64."""
    return weight.double().reshape(*weight.shape[:2], -1)
