"""Which rule each node of a graph has. Nothing is guessed: a node that is not recognised exactly is a barrier."""

# N = batch, C = channels, K = taps

from __future__ import annotations

from collections.abc import Callable, Iterable
import math
import operator

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from dnnshifter_ext import ops, rules
from dnnshifter_ext.facts import Facts
from dnnshifter_ext.graph import single_calls

_ARITHMETIC: dict[object, Callable] = {
    operator.add: operator.add, operator.iadd: operator.add, torch.add: operator.add,
    'add': operator.add, 'add_': operator.add,
    operator.sub: operator.sub, operator.isub: operator.sub, torch.sub: operator.sub,
    'sub': operator.sub, 'sub_': operator.sub,
    operator.mul: operator.mul, operator.imul: operator.mul, torch.mul: operator.mul,
    'mul': operator.mul, 'mul_': operator.mul,
    operator.truediv: operator.truediv, torch.div: operator.truediv, 'div': operator.truediv, 'div_': operator.truediv,
}
_IN_PLACE_FUNCTIONS = (operator.iadd, operator.isub, operator.imul)
_SAME_METHODS = ('contiguous', 'clone', 'detach')
_SAME_FUNCTIONS = (functional.interpolate, torch.clone)
_SAME_MODULES = (nn.Identity, *ops.DROPOUTS, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
                 nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d)
_CONSTANT_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)

# Path -> module.
Modules = dict[str, nn.Module]


def find_rules(graph_module: fx.GraphModule, shapes: dict[fx.Node, torch.Size],
               facts: Facts) -> dict[fx.Node, rules.Rule]:
    """Node -> rule in the order of the graph, for every tensor, and for whatever else reads channels."""
    return _Recogniser(graph_module, shapes, facts).run()


class _Recogniser:
    def __init__(self, graph_module: fx.GraphModule, shapes: dict[fx.Node, torch.Size],
                 facts: Facts) -> None:
        self.graph_module, self.facts = graph_module, facts
        self.modules = facts.modules
        self.shapes = shapes
        self.calls = single_calls(graph_module)
        self.rules: dict[fx.Node, rules.Rule] = {}
        self.overwritten = _overwritten(graph_module, self.modules, shapes)
        self.shuffles = dict(_shuffles(graph_module, shapes))
        self.inside_shuffles = {inner for inside, _, _ in self.shuffles.values() for inner in inside}

    def run(self) -> dict[fx.Node, rules.Rule]:
        for node in self.graph_module.graph.nodes:
            if node in self.inside_shuffles:
                continue
            if node in self.shapes:
                self.rules[node] = self._rule(node)
            elif node.op == 'output' or not self._is_harmless(node):
                self.rules[node] = self._barrier(node, 'it feeds the output of the model' if node.op == 'output' else
                                                 f'{_describe(self.graph_module, node)} depends on the channels')
        return self.rules

    def _rule(self, node: fx.Node) -> rules.Rule:
        if node.op == 'placeholder':
            return self._barrier(node, 'it is an input of the model')
        if any(source in self.overwritten for source in node.all_input_nodes):
            return self._barrier(node, 'it reads a value that another operation overwrites')
        if node.op == 'get_attr':
            return self._parameter(node)
        if node in self.shuffles:
            _, source, index = self.shuffles[node]
            return rules.Shuffle(node, source, index, axis=1)
        recognise = {'call_module': self._module, 'call_function': self._function, 'call_method': self._function}
        return recognise[node.op](node) or self._barrier(node, _describe(self.graph_module, node))

    def _barrier(self, node: fx.Node, reason: str) -> rules.Barrier:
        shape = self.shapes.get(node, (0,))
        axis = len(shape) - 1 if self._acts_on_last(node) else min(1, len(shape) - 1)
        sources = self._tensors_behind(node)
        return rules.Barrier(node, *sources, reason=reason, num=shape[axis] if shape else 1, axis=max(axis, 0))

    def _acts_on_last(self, node: fx.Node) -> bool:
        """Whether the channels of a barrier's value are its last dimension; else they are the second."""
        return node.target is functional.layer_norm or (
            node.op == 'call_module' and isinstance(self.modules[node.target], (nn.LayerNorm, nn.Linear)))

    def _tensors_behind(self, node: fx.Node) -> list[fx.Node]:
        """The tensors a node reads, also through parts of tuples; sizes are checked apart (see `_is_harmless`)."""
        found: dict[fx.Node, None] = {}
        for source in node.all_input_nodes:
            if source in self.rules and source in self.shapes:
                found[source] = None
            elif not is_size(source):
                found.update(dict.fromkeys(self._tensors_behind(source)))
        return list(found)

    def _parameter(self, node: fx.Node) -> rules.Rule:
        tensor = _attribute(self.graph_module, node.target)
        axes = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        single_use = sum(other.target == node.target for other in self.graph_module.graph.nodes) == 1
        if len(axes) == 1 and tensor.is_floating_point() and single_use:
            return rules.Parameter(node, tensor, axis=axes[0])
        return self._barrier(node, f"the tensor '{node.target}'")

    def _source(self, node: fx.Node) -> tuple[fx.Node | None, int]:
        """(the main input, the dimension of its channels); None when it is not a tensor of the graph."""
        source = node.args[0] if node.args else node.kwargs.get('input')
        if not isinstance(source, fx.Node) or source not in self.rules or source not in self.shapes:
            return None, 0
        return source, self.rules[source].axis

    def _module(self, node: fx.Node) -> rules.Rule | None:
        module = self.modules[node.target]
        source, axis = self._source(node)
        if source is None or len(node.args) != 1 or node.kwargs or (node not in self.calls and module.state_dict()):
            return None  # a layer that is shared would have to be narrowed for all its readers at once
        kind, ndim, num = type(module), len(self.shapes[source]), self.shapes[source][axis]
        if isinstance(module, nn.Linear) and ops.is_conv_or_linear(module):
            last = axis == ndim - 1 == len(self.shapes[node]) - 1
            return rules.Layer(node, source, self.facts.layers[node.target], axis) if last else None
        if ops.is_conv_or_linear(module):
            batched = ndim == module.weight.ndim
            return rules.Layer(node, source, self.facts.layers[node.target], 1) if axis == 1 and batched else None
        if kind in ops.BATCH_NORMS:
            known = axis == 1 and module.running_mean is not None
            return rules.Norm(node, source, self.facts, axis) if known else None
        if kind is nn.PReLU:
            per_channel = module.num_parameters == 1 or (axis == 1 and module.num_parameters == num)
            return rules.Slope(node, source, module, axis) if per_channel else None
        if kind in ops.ELEMENTWISE_MODULES:
            return rules.Pointwise(node, source, module, axis)
        if kind in _SAME_MODULES:
            return rules.Same(node, source, axis=axis)
        if kind in _CONSTANT_PADS:
            spatial = len(module.padding) // 2 < ndim - axis
            return rules.Border(node, source, float(module.value if hasattr(module, 'value') else 0), axis) \
                if spatial else None
        if kind in ops.MAX_POOLS and not module.return_indices:
            return self._pool(node, source, ops.MAX_POOLS.index(kind) + 1)
        if kind in ops.AVG_POOLS:
            return self._average(node, source, ops.AVG_POOLS.index(kind) + 1, module.padding, module.count_include_pad,
                                 getattr(module, 'divisor_override', None))
        if kind in ops.ADAPTIVE_POOLS and not getattr(module, 'return_indices', False):
            return self._pool(node, source, ops.ADAPTIVE_POOLS.index(kind) % 3 + 1)
        if kind is nn.Flatten:
            return self._reshape(node, source)
        return None

    def _function(self, node: fx.Node) -> rules.Rule | None:
        target = node.target
        if target in _ARITHMETIC:
            return self._arithmetic(node, _ARITHMETIC[target])
        if target is torch.cat:
            return self._concat(node)
        if target is operator.getitem:
            return self._getitem(node)
        source, axis = self._source(node)
        if source is None:
            return None
        ndim = len(self.shapes[source])
        if target in ops.ELEMENTWISE_FUNCTIONS.values() or (node.op == 'call_method'
                                                            and target in ops.ELEMENTWISE_METHODS):
            return self._activation(node, source, axis)
        if (node.op == 'call_method' and target in _SAME_METHODS and len(node.args) == 1) or target in _SAME_FUNCTIONS:
            return rules.Same(node, source, axis=axis) if ndim == len(self.shapes[node]) else None
        if target is functional.dropout:
            return None if _argument(node, 2, 'training', True) else rules.Same(node, source, axis=axis)
        if target in ops.MAX_POOL_FUNCTIONS and not _argument(node, 6, 'return_indices', False):
            return self._pool(node, source, ops.MAX_POOL_FUNCTIONS.index(target) + 1)
        if target in ops.AVG_POOL_FUNCTIONS:
            return self._average(node, source, ops.AVG_POOL_FUNCTIONS.index(target) + 1,
                                 _argument(node, 3, 'padding', 0), _argument(node, 5, 'count_include_pad', True),
                                 _argument(node, 6, 'divisor_override', None))
        if target in ops.ADAPTIVE_POOL_FUNCTIONS and not _argument(node, 2, 'return_indices', False):
            return self._pool(node, source, ops.ADAPTIVE_POOL_FUNCTIONS.index(target) % 3 + 1)
        if target is functional.pad:
            return self._pad(node, source)
        if target in (torch.mean, 'mean'):
            return self._mean(node, source)
        if target in (torch.permute, 'permute', torch.transpose, 'transpose'):
            return self._moved(node, source)
        if target in (torch.flatten, 'flatten', torch.reshape, 'reshape', 'view'):
            return self._reshape(node, source)
        return None

    def _activation(self, node: fx.Node, source: fx.Node, axis: int) -> rules.Rule | None:
        rest = (node.args[1:], {name: value for name, value in node.kwargs.items() if name != 'input'})
        if _nodes_in(rest):
            return None  # a computed parameter
        call = node.target if node.op == 'call_function' else getattr(torch.Tensor, node.target)
        return rules.Pointwise(node, source, lambda x_C: call(x_C, *rest[0], **rest[1]), axis)

    def _arithmetic(self, node: fx.Node, function: Callable) -> rules.Rule | None:
        if len(node.args) != 2 or node.kwargs:
            return None
        first, second = node.args
        tensors = [part for part in node.args if isinstance(part, fx.Node)]
        if any(part not in self.rules or part not in self.shapes for part in tensors):
            return None
        if len(tensors) == 1:
            axis = self.rules[tensors[0]].axis
            if tensors[0] is first:
                return rules.Pointwise(node, first, lambda x_C: function(x_C, second), axis)
            return rules.Pointwise(node, second, lambda x_C: function(first, x_C), axis)
        if first is second:
            return None
        ndim = len(self.shapes[node])
        # The axes must coincide once the shapes are aligned at their last dimension, as broadcasting does.
        axes = {self.rules[part].axis + ndim - len(self.shapes[part]) for part in tensors}
        if len(axes) != 1:
            return None
        [axis] = axes
        num = self.shapes[node][axis]
        sizes = [self.shapes[part][self.rules[part].axis] for part in tensors]
        if any(size not in (1, num) for size in sizes) or num not in sizes:
            return None
        may_scatter = (function is operator.add and axis == 1
                       and self.shapes[first] == self.shapes[second] == self.shapes[node])
        return rules.Combine(node, first, second, function, num, axis, may_scatter)

    def _concat(self, node: fx.Node) -> rules.Rule | None:
        parts = node.args[0] if node.args else node.kwargs.get('tensors', ())
        dim = _argument(node, 1, 'dim', 0)
        if not isinstance(parts, (list, tuple)) or any(part not in self.rules or part not in self.shapes
                                                       for part in parts):
            return None
        axes = {self.rules[part].axis for part in parts}
        return rules.Concat(node, *parts, axis=axes.pop()) \
            if axes == {dim % len(self.shapes[node])} else None

    def _getitem(self, node: fx.Node) -> rules.Rule | None:
        whole, index = node.args
        if is_split(whole) and isinstance(index, int):
            source, axis = self._source(whole)
            if source is None or _argument(whole, 2, 'dim', 0) % len(self.shapes[source]) != axis:
                return None
            sizes = self._sizes_of_split(whole, source, axis)
            if sizes is None:
                return None
            return rules.Part(node, source, sizes, index % len(sizes), axis)
        return None

    def _sizes_of_split(self, node: fx.Node, source: fx.Node, axis: int) -> list[int] | None:
        num, how = self.shapes[source][axis], _argument(node, 1, 'split_size', None)
        how = node.kwargs.get('chunks', node.kwargs.get('split_size_or_sections', how))
        if _nodes_in(how) or how is None:
            return None
        if node.target in (torch.chunk, 'chunk'):
            how = math.ceil(num / how)
        if isinstance(how, int):
            return [min(how, num - start) for start in range(0, num, how)]
        return list(how)

    def _pool(self, node: fx.Node, source: fx.Node, num_dims: int) -> rules.Rule | None:
        axis, ndim = self.rules[source].axis, len(self.shapes[source])
        return rules.Same(node, source, axis=axis) if axis < ndim - num_dims else None

    def _average(self, node: fx.Node, source: fx.Node, num_dims: int, padding: object, counts_padding: object,
                 divisor: object) -> rules.Rule | None:
        pool = self._pool(node, source, num_dims)
        if pool is None or divisor is not None or _nodes_in(padding):
            return None
        padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
        return rules.Border(node, source, 0.0, pool.axis) if padded and counts_padding else pool

    def _pad(self, node: fx.Node, source: fx.Node) -> rules.Rule | None:
        axis, ndim = self.rules[source].axis, len(self.shapes[source])
        padding, mode = _argument(node, 1, 'pad', None), _argument(node, 2, 'mode', 'constant')
        fill = _argument(node, 3, 'value', None)
        if not isinstance(padding, (list, tuple)) or len(padding) // 2 >= ndim - axis or _nodes_in((padding, fill)):
            return None
        return rules.Border(node, source, float(fill or 0), axis) if mode == 'constant' \
            else rules.Same(node, source, axis=axis)

    def _mean(self, node: fx.Node, source: fx.Node) -> rules.Rule | None:
        axis, ndim = self.rules[source].axis, len(self.shapes[source])
        dims = _argument(node, 1, 'dim', None)
        dims = [dims] if isinstance(dims, int) else dims
        if not dims or _nodes_in(dims):
            return None
        dims = {dim % ndim for dim in dims}
        if axis in dims or 0 in dims:
            return None
        keeps = len(self.shapes[node]) == ndim
        return rules.Same(node, source, axis=axis if keeps else axis - sum(dim < axis for dim in dims))

    def _moved(self, node: fx.Node, source: fx.Node) -> rules.Rule | None:
        axis, ndim = self.rules[source].axis, len(self.shapes[source])
        dims = node.args[1:] if len(node.args) > 2 or isinstance(node.args[-1], int) else node.args[-1]
        if node.kwargs or _nodes_in(dims):
            return None
        dims = [dim % ndim for dim in dims]
        if node.target in (torch.transpose, 'transpose'):
            order = list(range(ndim))
            order[dims[0]], order[dims[1]] = dims[1], dims[0]
        else:
            order = dims
        return rules.Same(node, source, axis=order.index(axis)) if order[0] == 0 else None

    def _reshape(self, node: fx.Node, source: fx.Node) -> rules.Rule | None:
        """A flatten of neighbouring dimensions behind the batch, however it is spelled."""
        before, after, axis = self.shapes[source], self.shapes[node], self.rules[source].axis
        if axis == 0 or before[:1] != after[:1]:
            return None
        if len(before) == len(after):
            return rules.Reshape(node, source, axis=axis, merged=None) if before == after else None
        num_merged = len(before) - len(after) + 1
        for start in range(1, len(after)):
            stop = start + num_merged
            if (num_merged > 1 and before[:start] == after[:start] and before[stop:] == after[start + 1:]
                    and math.prod(before[start:stop]) == after[start]):
                merged = (start, stop - 1)
                if start <= axis < stop:
                    return rules.Flatten(node, source, merged, tuple(before[start:stop]), axis - start)
                return rules.Reshape(node, source, axis=axis if axis < start else axis - num_merged + 1,
                                     merged=merged)
        return None

    def _is_harmless(self, node: fx.Node) -> bool:
        """Whether what is not a tensor stays right when channels go: parts of splits, sizes of other dimensions."""
        tensors = [source for source in node.all_input_nodes if source in self.rules and source in self.shapes]
        if not tensors:
            return True
        if is_split(node):
            return all(user.target is operator.getitem and isinstance(user.args[1], int)
                       for user in node.users)
        if len(tensors) == 1 and is_size(node):
            return all(self._ignores_channels(user, self.rules[tensors[0]].axis, len(self.shapes[tensors[0]]))
                       for user in node.users) if _is_whole_size(node) else \
                self._may_change(node, node.args[1] % len(self.shapes[tensors[0]]), self.rules[tensors[0]].axis)
        return False

    def _ignores_channels(self, node: fx.Node, axis: int, ndim: int) -> bool:
        """Whether a reader of all sizes looks only at those of other dimensions."""
        if node.target is not operator.getitem:
            return False
        index = node.args[1]
        if isinstance(index, slice):
            return not _nodes_in((index.start, index.stop, index.step)) and axis not in range(ndim)[index]
        return isinstance(index, int) and self._may_change(node, index % ndim, axis)

    def _may_change(self, node: fx.Node, dim: int, axis: int) -> bool:
        """Whether the size of dimension `dim` is that of no channels, or is used inside of shuffles only."""
        if dim != axis:
            return True
        users = list(node.users)
        while users:
            user = users.pop()
            if user in self.inside_shuffles or user in self.shuffles:
                continue
            if user in self.shapes or user.op == 'output' or not user.users:
                return False
            users += user.users
        return True


def is_split(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target in (torch.chunk, 'chunk', torch.split, 'split')


def is_size(node: fx.Node) -> bool:
    return _is_whole_size(node) or (node.op == 'call_method' and node.target == 'size' and len(node.args) == 2
                                    and isinstance(node.args[1], int) and not node.kwargs)


def _is_whole_size(node: fx.Node) -> bool:
    return (node.target is getattr and node.args[1:] == ('shape',)) or (
        node.op == 'call_method' and node.target == 'size' and len(node.args) == 1 and not node.kwargs)


def _shuffles(graph_module: fx.GraphModule, shapes: dict) -> Iterable[tuple[fx.Node, tuple]]:
    """(last node, (the nodes inside, source, index)) of each view - transpose - [contiguous] - view that shuffles."""
    for last in graph_module.graph.nodes:
        if last.target not in ('view', 'reshape', torch.reshape) or last not in shapes:
            continue
        inside, node = [], last.args[0]
        if isinstance(node, fx.Node) and node.target == 'contiguous':
            inside, node = [node], node.args[0]
        if not isinstance(node, fx.Node) or node.target not in (torch.transpose, 'transpose') \
                or tuple(node.args[1:]) not in ((1, 2), (2, 1)):
            continue
        first = node.args[0]
        inside += [node, first]
        if not isinstance(first, fx.Node) or first.target not in ('view', 'reshape', torch.reshape):
            continue
        source = first.args[0]
        if any(len(inner.users) != 1 for inner in inside) or source not in shapes:
            continue
        before, wide, after = shapes[source], shapes[first], shapes[last]
        if (before == after and len(wide) == len(before) + 1 and wide[:1] == before[:1] and wide[3:] == before[2:]
                and wide[1] * wide[2] == before[1]):
            yield last, (inside, source, np.arange(before[1]).reshape(wide[1], wide[2]).T.reshape(-1))


def _overwritten(graph_module: fx.GraphModule, modules: Modules, shapes: dict) -> set[fx.Node]:
    """Values that an in-place operation changes under the eyes of other readers, and what shares their memory."""
    found: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        if not _is_in_place(modules, node):
            continue
        chain, value = [], node.args[0] if node.args else node.kwargs.get('input')
        while isinstance(value, fx.Node):
            chain.append(value)
            if sum(not is_size(user) for user in value.users) > 1:
                found.update(chain)
            if not may_be_view(modules, value):
                break
            value = value.args[0] if value.args else None
    return found


def _is_in_place(modules: Modules, node: fx.Node) -> bool:
    if node.op == 'call_module':
        return bool(getattr(modules[node.target], 'inplace', False))
    if node.op == 'call_method':
        return node.target.endswith('_') and not node.target.endswith('__')
    if node.op == 'call_function':
        name = getattr(node.target, '__name__', '')
        return (node.target in _IN_PLACE_FUNCTIONS or node.target is operator.setitem
                or bool(node.kwargs.get('inplace', False)) or (name.endswith('_') and not name.endswith('__'))
                or (node.target in ops.ELEMENTWISE_FUNCTIONS.values() and True in node.args[1:]))
    return False


def may_be_view(modules: Modules, node: fx.Node) -> bool:
    """Whether the node's value may be the memory of its input: all but what surely makes new memory."""
    if node.op == 'call_module':
        module = modules[node.target]
        return not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *ops.BATCH_NORMS)) or \
            _is_in_place(modules, node)
    return node.op in ('call_function', 'call_method') and (
        node.target not in (torch.cat, operator.add, operator.mul, operator.sub, torch.add, torch.mul)
        or _is_in_place(modules, node))


def _attribute(graph_module: fx.GraphModule, path: str) -> torch.Tensor:
    parent, _, name = path.rpartition('.')
    return getattr(graph_module.get_submodule(parent), name)


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _nodes_in(arguments: object) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def _describe(graph_module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == 'call_module':
        kind = type(graph_module.get_submodule(node.target)).__name__
        return f"'{node.target}' ({kind})"
    name = node.target if isinstance(node.target, str) else getattr(node.target, '__name__', str(node.target))
    return f"'{node.name}' ({name})"
