"""A model some of whose layers are sparse."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import copy

import torch
from torch import fx, nn
from torch.nn import functional

from dnnshifter_ext import ops
from dnnshifter_ext.graph import rebuild, single_calls
from dnnshifter_ext.sparse.convolution import block_size
from dnnshifter_ext.sparse.filters import SparseFilters
from dnnshifter_ext.sparse.layers import NO_CLAMP, Clamp, SparseLayer, from_dense

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOL_FUNCTIONS = (functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
                   functional.adaptive_max_pool2d)
_RELU: Clamp = (0.0, None)
_CLAMPING = {torch.relu: _RELU, functional.relu: _RELU, functional.relu6: (0.0, 6.0), 'relu': _RELU, 'relu_': _RELU}


class InBlocks(nn.Module):
    """Calls a model with a few images at a time: what it computes for them then fits the processor's caches."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__()
        self.model = model

    @property
    def meta(self) -> dict:
        """That of the model."""
        return self.model.meta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N, ...)."""
        size = block_size()
        if len(x) <= size or x.device.type == 'meta':
            return self.model(x)
        return torch.cat([self.model(block) for block in x.split(size)])


def to_hybrid(
    model: fx.GraphModule, sparse_layers: Collection[str], filters: Mapping[str, SparseFilters] | None = None,
) -> InBlocks:
    """`model` with the given layers on sparse kernels, an activation that clamps being part of them.

    model: takes one tensor and returns one, with the images first in both, and treats each image alone.
    filters: path -> weights, where they are not to be taken from the dense layer.
    Raises ValueError, with its path, for a layer that has no sparse form.
    """
    graph = copy.deepcopy(model.graph)
    modules = dict(model.named_modules())
    called = {node.target for node in single_calls(model)}
    replacements = {}
    images_innermost = set()
    for node in list(graph.nodes):
        if node.op == 'call_module' and node.target in sparse_layers:
            try:
                if node.target not in called:
                    raise ValueError('it is used more than once')
                replacements[node.target] = from_dense(
                    modules[node.target], _take_clamp(modules, node), (filters or {}).get(node.target))
            except ValueError as error:
                raise ValueError(f"'{node.target}' cannot be sparse: {error}") from error
            images_innermost.add(node)
        elif images_innermost.intersection(node.all_input_nodes):
            if _is_pool(modules, node):
                images_innermost.add(_pool_across(node))
            elif _is_elementwise(modules, node):
                images_innermost.add(node)
    graph.lint()
    hybrid = rebuild(model, replacements, graph)
    hybrid.meta.update(model.meta)
    return InBlocks(hybrid).eval()


def to_dense(model: InBlocks) -> fx.GraphModule:
    """The same with all layers dense, for what the sparse kernels cannot do: other devices, compilers, gradients.

    Raises ValueError, with its path, for a layer that torch has no dense form of.
    """
    graph = copy.deepcopy(model.model.graph)
    replacements = {}
    for node in list(graph.nodes):
        layer = model.model.get_submodule(node.target) if node.op == 'call_module' else None
        if isinstance(layer, SparseLayer):
            try:
                replacements[node.target] = layer.to_dense()
            except ValueError as error:
                raise ValueError(f"'{node.target}' cannot be dense: {error}") from error
            with graph.inserting_after(node):
                clamped = graph.call_function(torch.clamp, (node, layer.low, layer.high))
            node.replace_all_uses_with(clamped, delete_user_cb=lambda user, own=clamped: user is not own)
            if (layer.low, layer.high) == NO_CLAMP:
                clamped.replace_all_uses_with(node)
                graph.erase_node(clamped)
    dense = rebuild(model.model, replacements, graph)
    dense.meta.update(model.meta)
    return dense


def candidates(model: fx.GraphModule) -> dict[str, fx.Node]:
    """Path -> node of the layers that have a sparse form."""
    modules = dict(model.named_modules())
    found = {}
    for node in single_calls(model):
        layer = modules[node.target]
        if type(layer) in (nn.Conv2d, nn.Linear) and layer.weight.dtype == torch.float32 and (
                getattr(layer, 'padding_mode', 'zeros') == 'zeros'):
            found[node.target] = node
    return found


def is_per_image(model: fx.GraphModule) -> bool:
    """Whether `to_hybrid` takes it, as far as the graph shows: one tensor in and one out."""
    nodes = list(model.graph.nodes)
    return sum(node.op == 'placeholder' for node in nodes) == 1 and isinstance(nodes[-1].args[0], fx.Node)


def _take_clamp(modules: dict[str, nn.Module], node: fx.Node) -> Clamp:
    """The limits of the activation that alone reads `node`, taken out of the graph; NO_CLAMP if there is none."""
    if len(node.users) != 1:
        return NO_CLAMP
    [reader] = node.users
    clamp = None
    if reader.op == 'call_module':
        module = modules[reader.target]
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            clamp = (module.min_val, module.max_val)
        elif type(module) is nn.ReLU:
            clamp = _RELU
    elif reader.op in ('call_function', 'call_method'):
        clamp = _CLAMPING.get(reader.target)
    if clamp is None:
        return NO_CLAMP
    reader.replace_all_uses_with(node)
    node.graph.erase_node(reader)
    return clamp


def _is_pool(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    if node.op == 'call_module':
        return type(modules[node.target]) in _POOLS and not getattr(modules[node.target], 'return_indices', False)
    return node.target in _POOL_FUNCTIONS and not node.kwargs.get('return_indices')


def _is_elementwise(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    if node.op == 'call_module':
        return type(modules[node.target]) in ops.ELEMENTWISE_MODULES
    return node.target in ops.ELEMENTWISE_METHODS or node.target in ops.ELEMENTWISE_FUNCTIONS.values() or (
        node.target in ops.FUNCTIONS.values() and ops.name_of(node.target) in _SAME_SHAPE)


_SAME_SHAPE = ('operator.add', 'operator.iadd', 'operator.mul', 'operator.imul', 'torch.add', 'torch.mul')


def _pool_across(node: fx.Node) -> fx.Node:
    """Lets a pool see images as channels and channels as images, which to torch is its fast layout, channels_last."""
    graph = node.graph
    with graph.inserting_before(node):
        swapped = graph.call_function(torch.transpose, (node.args[0], 0, 1))
    node.args = (swapped, *node.args[1:])
    with graph.inserting_after(node):
        back = graph.call_function(torch.transpose, (node, 0, 1))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)
    return back
