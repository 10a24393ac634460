"""Module 4, what is between the layers: the nodes of the graph that spell out channels, or get an index map."""

from __future__ import annotations

import copy
import operator

import numpy as np
import torch
from torch import fx, nn

from dnnshifter_ext.plan import NodePlan
from dnnshifter_ext.recognise import Modules, may_be_view

Parts = dict[str, nn.Module | torch.Tensor]


def rewire(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    """Carries out the plan on `node` of a copy of the graph; returns the parts it needs, by their path.

    modules: those of the model whose graph it is, by their path; '' is the model itself.
    """
    with node.graph.inserting_before(node):
        return _ACTIONS[plan.action](modules, node, plan)


def as_index(positions: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The positions as a tensor of int64."""
    # numpy reads a long tuple six times as fast as torch.
    return torch.from_numpy(np.array(positions, dtype=np.int64)).to(device)


def _select(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    parent, _, name = node.target.rpartition('.')
    return {node.target: _selected(getattr(modules[parent], name), plan.numbers)}


def _split(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get('dim', 0)
    node.op, node.target = 'call_function', torch.split
    node.args, node.kwargs = (node.args[0], list(plan.numbers), dim), {}
    return {}


def _flatten(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    new = node.args[0]
    if plan.numbers:
        new = node.graph.call_function(torch.flatten, (node.args[0], *plan.numbers))
    node.replace_all_uses_with(new)
    _erase_unused(node)
    return {}


def _shuffle(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    """The same shuffle as one selection; `node` is the last of view, transpose, (contiguous,) view."""
    source = node.args[0]
    while source.target in ('contiguous', 'transpose', torch.transpose):
        source = source.args[0]
    path = f'{node.name}_index'
    new = node.graph.call_function(torch.index_select, (source.args[0], 1, node.graph.create_node('get_attr', path)))
    node.replace_all_uses_with(new)
    _erase_unused(node)
    return {path: as_index(plan.numbers, _like(modules).device)}


def _gather(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    path = f'{node.name}_index'
    node.args = (node.graph.call_function(
        torch.index_select, (node.args[0], 1, node.graph.create_node('get_attr', path))),)
    return {path: as_index(plan.numbers, _like(modules).device)}


def _scatter(modules: Modules, node: fx.Node, plan: NodePlan) -> Parts:
    """branch + stream as an index_add, in place where nobody else will read the stream: new memory is slow."""
    (operand, num_behind, *positions), graph, like = plan.numbers, node.graph, _like(modules)
    branch, total = node.args[operand], node.args[1 - operand]
    in_place = _is_last_reader(modules, node, total)
    path = f'{node.name}_index'
    parts: Parts = {path: as_index(tuple(positions), like.device)}
    if any(plan.values):
        parts[f'{node.name}_shift'] = like.new_tensor(plan.values).view(-1, *[1] * num_behind)
        shift = graph.create_node('get_attr', f'{node.name}_shift')
        total = graph.call_method('add_', (total, shift)) if in_place else graph.call_function(
            operator.add, (total, shift))
        in_place = True
    arguments = (total, 1, graph.create_node('get_attr', path), branch)
    total = graph.call_method('index_add_', arguments) if in_place else graph.call_function(
        torch.index_add, arguments)
    node.replace_all_uses_with(total)
    graph.erase_node(node)
    return parts


_ACTIONS = {'select': _select, 'split': _split, 'flatten': _flatten, 'shuffle': _shuffle, 'gather': _gather,
            'scatter': _scatter}


def _like(modules: Modules) -> torch.Tensor:
    return next(tensor for tensor in modules[''].parameters() if tensor.is_floating_point()).detach()


def _is_last_reader(modules: Modules, node: fx.Node, value: fx.Node) -> bool:
    """Whether nothing that shares memory with `value`, which must be the graph's own, is read after `node`."""
    shared, unvisited = {value}, [value]
    while unvisited:
        value = unvisited.pop()
        readers = [user for user in value.users if user is not node]
        if value.op in ('placeholder', 'get_attr') or any(reader > node for reader in readers):
            return False
        views = [reader for reader in readers if reader not in shared and may_be_view(modules, reader)]
        if may_be_view(modules, value):
            views += [source for source in value.all_input_nodes if source not in shared]
        shared.update(views)
        unvisited += views
    return True


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


def _selected(part: nn.Module | torch.Tensor, keep: tuple[int, ...]) -> nn.Module | torch.Tensor:
    """The given channels of a batch norm, a PReLU or a parameter."""
    if isinstance(part, torch.Tensor):
        [axis] = [dim for dim, size in enumerate(part.shape) if size > 1]
        return nn.Parameter(part.detach().index_select(axis, as_index(keep, part.device)),
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
            selected = tensor.detach().index_select(0, as_index(keep, tensor.device))
            setattr(new, name, nn.Parameter(selected) if isinstance(tensor, nn.Parameter) else selected)
    return new
