"""Module 4: carry out a removal plan on all layers in one batch (Algorithm 2 of the paper)."""

# O = output channels, I = input columns, K = taps of the kernel (all dimensions flattened)

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.graph import rebuild
from dnnshifter_ext.plan import Constants, LayerPlan, NodePlan, RemovalPlan


def apply_plan(graph_module: fx.GraphModule, plan: RemovalPlan) -> fx.GraphModule:
    """A new, smaller model that computes what `graph_module` (untouched) computes.

    The sums of folded and merged constants are taken in float64 and stored in the layer's own type.
    Raises ValueError when the plan was made for a model of other layers or sizes.
    """
    narrow: dict[str, nn.Module | torch.Tensor] = {}
    modules = dict(graph_module.named_modules())
    for layer_plan in plan.layers:
        name, module = layer_plan.layer, modules.get(layer_plan.layer)
        if module is None or not ops.is_conv_or_linear(module):
            raise ValueError(f"the plan is for another model: there is no conv or linear layer '{name}'")
        size, planned = tuple(module.weight.shape[:2]), (layer_plan.num_outputs, layer_plan.num_inputs)
        if size != planned:
            raise ValueError(
                f"the plan is for another model: '{name}' has {size} outputs and inputs, not {planned}")
        with torch.no_grad():
            narrow[name] = narrow_layer(module, layer_plan)
    graph = copy.deepcopy(graph_module.graph)
    nodes = {node.name: node for node in graph.nodes}
    for node_plan in plan.nodes:
        if node_plan.node not in nodes:
            raise ValueError(f"the plan is for another model: there is no node '{node_plan.node}'")
        _narrow_node(graph_module, nodes[node_plan.node], node_plan, narrow)
    return rebuild(graph_module, narrow, graph)


def _narrow_node(graph_module: fx.GraphModule, node: fx.Node, plan: NodePlan,
                 narrow: dict[str, nn.Module | torch.Tensor]) -> None:
    if plan.action == 'select':
        parent, _, name = node.target.rpartition('.')
        narrow[node.target] = _select(getattr(graph_module.get_submodule(parent), name), plan.numbers)
    elif plan.action == 'split':
        dim = node.args[2] if len(node.args) > 2 else node.kwargs.get('dim', 0)
        node.op, node.target = 'call_function', torch.split
        node.args, node.kwargs = (node.args[0], list(plan.numbers), dim), {}
    else:
        with node.graph.inserting_before(node):
            new = _shuffled(node, plan, narrow) if plan.action == 'shuffle' else node.args[0]
            if plan.action == 'flatten' and plan.numbers:
                new = node.graph.call_function(torch.flatten, (node.args[0], *plan.numbers))
        node.replace_all_uses_with(new)
        _erase_unused(node)


def _shuffled(node: fx.Node, plan: NodePlan, narrow: dict[str, nn.Module | torch.Tensor]) -> fx.Node:
    """The same shuffle as one selection; `node` is the last of view, transpose, (contiguous,) view."""
    source = node.args[0]
    while source.target in ('contiguous', 'transpose', torch.transpose):
        source = source.args[0]
    target = f'{node.name}_index'
    narrow[target] = torch.tensor(plan.numbers)
    index = node.graph.create_node('get_attr', target)
    return node.graph.call_function(torch.index_select, (source.args[0], 1, index))


def _erase_unused(node: fx.Node) -> None:
    """Erases a node nobody reads, and what was computed for it alone: sizes and views, nothing with an effect."""
    inputs = list(node.all_input_nodes)
    if node.users or not inputs:  # without inputs it has been erased already, on another path
        return
    node.graph.erase_node(node)
    for source in inputs:
        if source.op == 'call_method' or source.target in (operator.getitem, operator.floordiv, getattr,
                                                           torch.transpose):
            _erase_unused(source)


def _select(part: nn.Module | torch.Tensor, keep: tuple[int, ...]) -> nn.Module | torch.Tensor:
    """The given channels of a batch norm, a PReLU or a parameter."""
    if isinstance(part, torch.Tensor):
        [axis] = [dim for dim, size in enumerate(part.shape) if size > 1]
        return nn.Parameter(part.detach().index_select(axis, torch.tensor(keep, device=part.device)),
                            requires_grad=part.requires_grad)
    new = copy.deepcopy(part)
    if isinstance(part, nn.PReLU):
        if part.num_parameters == 1:
            return new
        new.num_parameters = len(keep)
    else:
        new.num_features = len(keep)
    for name, tensor in part.state_dict(keep_vars=True).items():
        if tensor.ndim == 1:
            selected = tensor.detach().index_select(0, torch.tensor(keep, device=tensor.device))
            setattr(new, name, nn.Parameter(selected) if isinstance(tensor, nn.Parameter) else selected)
    return new


def narrow_layer(module: nn.Module, plan: LayerPlan) -> nn.Module:
    """A new conv or linear layer with the channels, weights and biases of the plan; contiguous tensors."""
    device, dtype = module.weight.device, module.weight.dtype
    keep_O, keep_I = (torch.tensor(keep, device=device) for keep in (plan.keep_outputs, plan.keep_inputs))
    rows_OI = module.weight.detach().index_select(0, keep_O)
    weight = rows_OI.index_select(1, keep_I)
    needs_bias = module.bias is not None or plan.folded.channels or any(plan.emptied.values)
    bias_O = torch.zeros(len(keep_O), dtype=torch.float64, device=device)
    if module.bias is not None:
        bias_O += module.bias.detach().index_select(0, keep_O)
    if plan.folded.channels:
        columns, values = _tensors(plan.folded, device)
        bias_O += _taps(rows_OI.index_select(1, columns)).sum(2) @ values
    if plan.carrier is not None:
        columns, values = _tensors(plan.merged, device)
        ratios = values / plan.merged.values[plan.merged.channels.index(plan.carrier)]
        summed_OK = torch.einsum('oik,i->ok', _taps(rows_OI.index_select(1, columns)), ratios)
        position = plan.keep_inputs.index(plan.carrier)
        weight[:, position] = summed_OK.reshape(weight[:, position].shape).to(dtype)
    if plan.emptied.channels:
        channels, values = _tensors(plan.emptied, device)
        positions = torch.searchsorted(keep_O, channels)
        weight[positions] = 0
        bias_O[positions] = values
    return ops.with_tensors(module, weight, bias_O.to(dtype) if needs_bias else None)


def _tensors(constants: Constants, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.tensor(constants.channels, device=device),
            torch.tensor(constants.values, dtype=torch.float64, device=device))


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, *kernel) as (O, I, K) in float64."""
    return weight.double().reshape(*weight.shape[:2], -1)
