"""A model some of whose layers are sparse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import copy
import itertools

import torch
from torch import fx, nn
from torch.nn import functional

from dnnshifter_ext import ops
from dnnshifter_ext.graph import rebuild, single_calls
from dnnshifter_ext.sparse.convolution import block_size
from dnnshifter_ext.sparse.filters import SparseFilters
from dnnshifter_ext.sparse.layers import NO_CLAMP, Clamp, SparseConv2d, SparseLayer, from_dense

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOL_FUNCTIONS = (functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
                   functional.adaptive_max_pool2d)
_RELU: Clamp = (0.0, None)
_CLAMPING = {torch.relu: _RELU, functional.relu: _RELU, functional.relu6: (0.0, 6.0), 'relu': _RELU, 'relu_': _RELU}


class InBlocks(nn.Module):
    """Calls a model with a few images at a time: what it computes for them then fits the processor's caches."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)  # or what comes out of its dense layers would want a gradient

    @property
    def meta(self) -> dict:
        """That of the model."""
        return self.model.meta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N, ...)."""
        if not len(x):  # refused by pools that take images for channels
            return self.model(x.new_zeros((1, *x.shape[1:])))[:0]
        size = block_size()
        if len(x) <= size or x.device.type == 'meta':
            return self.model(x)
        return torch.cat([self.model(block) for block in x.split(size)])


def to_hybrid(
    model: fx.GraphModule, sparse_layers: Collection[str], filters: Mapping[str, SparseFilters] | None = None,
) -> InBlocks:
    """`model` with the given layers on sparse kernels; an activation that clamps and a MaxPool2d(2) are part of them.

    model: takes one tensor and returns one, with the images first in both, and treats each image alone.
    filters: path -> weights, where they are not to be taken from the dense layer.
    Raises ValueError, with its path, for a layer that has no sparse form.
    """
    graph = copy.deepcopy(model.graph)
    modules = dict(model.named_modules(remove_duplicate=False))
    called = {node.target for node in single_calls(model)}
    replacements = {}
    images_innermost = set()
    for node in list(graph.nodes):
        if node.op == 'call_module' and node.target in sparse_layers:
            try:
                if node.target not in called:
                    raise ValueError('it is used more than once')
                layer = modules[node.target]
                replacements[node.target] = from_dense(
                    layer, _take_clamp(modules, node), _take_pool(modules, node) if isinstance(layer, nn.Conv2d) else 1,
                    (filters or {}).get(node.target))
            except ValueError as error:
                raise ValueError(f"'{node.target}' cannot be sparse: {error}") from error
            if isinstance(replacements[node.target], SparseConv2d):
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
            if layer.pool == 2:
                _follow_with(node, functional.max_pool2d, 2)
            if (layer.low, layer.high) != NO_CLAMP:
                _follow_with(node, torch.clamp, layer.low, layer.high)
    dense = rebuild(model.model, replacements, graph)
    dense.meta.update(model.meta)
    return dense


def candidates(model: fx.GraphModule) -> dict[str, fx.Node]:
    """Path -> node of the layers that have a sparse form."""
    found = {}
    for node, layer in single_calls(model).items():
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


def _take_pool(modules: dict[str, nn.Module], node: fx.Node) -> int:
    """2 if a max pool of 2x2 alone reads `node`, and is taken out of the graph; otherwise 1."""
    readers = list(node.users)
    if len(readers) != 1 or not _is_pool(modules, readers[0]):
        return 1
    [reader] = readers
    if reader.op == 'call_module':
        pool = modules[reader.target]
        given = type(pool) is nn.MaxPool2d and (
            pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    else:
        given = reader.target is functional.max_pool2d and (reader.args[1:], dict(reader.kwargs))
    if given not in _HALVING:
        return 1
    reader.replace_all_uses_with(node)
    node.graph.erase_node(reader)
    return 2


# Ways to write a max pool of 2x2: of modules, and of calls.
_HALVING = (*itertools.product((2, (2, 2)), (2, (2, 2)), (0, (0, 0)), (1, (1, 1)), (False,)),
            ((2,), {}), ((2, 2), {}), (((2, 2),), {}), ((2,), {'stride': 2}), ((), {'kernel_size': 2}),
            ((), {'kernel_size': 2, 'stride': 2}))


def _is_pool(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    if not node.args or any(arg is True for arg in node.args):  # return_indices, perhaps
        return False
    if node.op == 'call_module':
        return type(modules[node.target]) in _POOLS and not getattr(modules[node.target], 'return_indices', False)
    return node.target in _POOL_FUNCTIONS and not node.kwargs.get('return_indices')


def _is_elementwise(modules: dict[str, nn.Module], node: fx.Node) -> bool:
    if node.op == 'call_module':
        return type(modules[node.target]) in ops.ELEMENTWISE_MODULES
    return node.target in ops.ELEMENTWISE_METHODS or node.target in ops.ELEMENTWISE_FUNCTIONS.values() or (
        node.target in ops.FUNCTIONS.values() and ops.name_of(node.target) in _SAME_SHAPE)


_SAME_SHAPE = ('operator.add', 'operator.iadd', 'operator.mul', 'operator.imul', 'torch.add', 'torch.mul')


def _follow_with(node: fx.Node, function: Callable, *args: object) -> None:
    """Lets all readers of `node` read what the function makes of it."""
    with node.graph.inserting_after(node):
        new = node.graph.call_function(function, (node, *args))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


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
