"""Which channels feed which: the links along which channels can be removed.

A *link* joins one producer (conv or linear) to one reader along operations that treat every channel by itself
in the same way, so that channel c of the producer arrives as channel c (or, after a flatten, as the block of
features c*k .. c*k+k-1) of the reader and nowhere else. Everything that is not understood is a *barrier*: its
channels stay.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
import operator

import torch
from torch import fx, nn
from torch.nn import functional

from dnnshifter_ext import ops
from dnnshifter_ext.graph import layers


@dataclass(frozen=True)
class Link:
    """All outputs of layer `producer` are read by layer `reader`, and by nothing else.

    path: names of the graph's nodes the channels pass through between the two, in order.
    features_per_channel: input columns of the reader per channel of the producer (above 1 after a flatten).
    """

    producer: str
    reader: str
    path: tuple[str, ...]
    features_per_channel: int = 1


@dataclass(frozen=True)
class Barrier:
    """All outputs of `layer` stay, because of `reason`."""

    layer: str
    reason: str


def find_links(graph_module: fx.GraphModule) -> list[Link]:
    """Every link of the graph, in the order of the producers."""
    return [end for end in _ends(graph_module) if isinstance(end, Link)]


def find_barriers(graph_module: fx.GraphModule) -> list[Barrier]:
    """Every conv or linear layer without a link to a reader, with the reason, in the order of the calls."""
    ends = {end.layer: end for end in _ends(graph_module) if isinstance(end, Barrier)}
    taken_apart = layers(graph_module)
    found: dict[str, Barrier] = {}
    for node in graph_module.graph.nodes:
        if node.op != 'call_module' or not ops.is_conv_or_linear(graph_module.get_submodule(node.target)):
            continue
        if node.target not in taken_apart:
            grouped = getattr(graph_module.get_submodule(node.target), 'groups', 1) > 1
            reason = 'it is a grouped convolution' if grouped else 'it is shared or called more than once'
            found[node.target] = Barrier(node.target, reason)
        elif node.target in ends:
            found[node.target] = ends[node.target]
    return list(found.values())


def push_constants(graph_module: fx.GraphModule, link: Link, values: torch.Tensor) -> torch.Tensor:
    """What channels of constant `values` (C,) have become when they arrive at the reader, (C,), in float64.

    Pools, dropout and flatten keep a constant channel what it is, so that only the activations count.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    pushed = values.double()
    for name in link.path:
        node = nodes[name]
        kind = _kind(graph_module, node)
        if kind != 'elementwise':
            continue
        pushed = pushed.clone()  # an in-place activation must not reach the caller's tensor
        if node.op == 'call_module':
            pushed = copy.deepcopy(graph_module.get_submodule(node.target)).double()(pushed[None])[0]
        elif node.op == 'call_function':
            pushed = node.target(pushed, *node.args[1:], **_other_keywords(node))
        else:
            pushed = getattr(pushed, node.target)(*node.args[1:], **node.kwargs)
    return pushed.detach()


def _ends(graph_module: fx.GraphModule) -> list[Link | Barrier]:
    """For each layer in order: the link that begins there, or the barrier its channels run into."""
    candidates = layers(graph_module)
    return [_follow(graph_module, candidates, producer) for producer in candidates]


def _follow(graph_module: fx.GraphModule, candidates: dict[str, fx.Node], producer: str) -> Link | Barrier:
    module = graph_module.get_submodule(producer)
    node, path = candidates[producer], []
    channels_last = isinstance(module, nn.Linear)  # else they are dimension 1
    pool = f'pool{module.weight.ndim - 2}'
    is_flat = False
    while True:
        free_dims = (0,) if is_flat or channels_last else (0, 2, 3, 4)
        readers = [user for user in node.users if not _is_size_query(user, free_dims)]
        if len(readers) != 1:
            names = ', '.join(user.name for user in readers) or 'nothing'
            return Barrier(producer, f"its output '{node.name}' is read by {names}")
        previous, node = node, readers[0]
        if node.op == 'output':
            return Barrier(producer, 'it feeds the output of the model')
        if node.target in candidates and node.op == 'call_module':
            return _join(graph_module, producer, node.target, tuple(path), is_flat)
        kind = _kind(graph_module, node)
        if kind == 'flatten' and not channels_last:
            is_flat = True
        elif kind not in ('elementwise', 'identity') and (kind != pool or is_flat):
            return Barrier(producer, f"its channels reach '{node.name}' ({_describe(graph_module, node)})")
        if node.args[:1] != (previous,) and node.kwargs.get('input') is not previous:
            return Barrier(producer, f"its channels are not the main input of '{node.name}'")
        path.append(node.name)


def _join(
    graph_module: fx.GraphModule, producer: str, reader: str, path: tuple[str, ...], is_flat: bool,
) -> Link | Barrier:
    first, second = graph_module.get_submodule(producer), graph_module.get_submodule(reader)
    num_channels, num_columns = first.weight.shape[0], second.weight.shape[1]
    if type(first) is type(second) and not is_flat and num_channels == num_columns:
        return Link(producer, reader, path)
    if is_flat and isinstance(second, nn.Linear) and num_columns % num_channels == 0:
        return Link(producer, reader, path, num_columns // num_channels)
    return Barrier(
        producer, f"its {num_channels} channels do not line up with the {num_columns} inputs of '{reader}'")


def _kind(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """'elementwise', 'identity', 'pool1' to 'pool3', 'flatten' (all but the batch) or '' (not understood).

    A pool that returns indices too needs no care: picking one of the two is not understood.
    """
    if node.op == 'call_module':
        return _kind_of_module(graph_module.get_submodule(node.target))
    if _is_flatten(node):
        return 'flatten'
    if node.op == 'call_function':
        kind = _kind_of_function(node)
    elif node.target == 'contiguous':
        kind = 'identity'
    else:
        kind = 'elementwise' if node.target in ops.ELEMENTWISE_METHODS else ''
    # An activation with a computed parameter is no fixed function; a pool may ask for the size of its window.
    return '' if kind == 'elementwise' and _has_side_inputs(node) else kind


def _has_side_inputs(node: fx.Node) -> bool:
    side_inputs: list[fx.Node] = []
    fx.map_arg((node.args[1:], _other_keywords(node)), side_inputs.append)
    return bool(side_inputs)


def _other_keywords(node: fx.Node) -> dict:
    return {key: value for key, value in node.kwargs.items() if key != 'input'}


def _kind_of_module(module: nn.Module) -> str:
    kind = type(module)
    if kind in ops.ELEMENTWISE_MODULES or (kind is nn.PReLU and module.num_parameters == 1):
        return 'elementwise'
    if kind is nn.Identity or kind in ops.DROPOUTS:
        return 'identity'
    if kind in ops.MAX_POOLS:
        return f'pool{ops.MAX_POOLS.index(kind) + 1}'  # padded with minus infinity: a constant stays
    if kind in ops.AVG_POOLS and _averages(module.padding, module.count_include_pad,
                                           getattr(module, 'divisor_override', None)):
        return f'pool{ops.AVG_POOLS.index(kind) + 1}'
    if kind in ops.ADAPTIVE_POOLS:
        return f'pool{ops.ADAPTIVE_POOLS.index(kind) % 3 + 1}'
    if kind is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
        return 'flatten'
    return ''


def _kind_of_function(node: fx.Node) -> str:
    function = node.target
    if function in ops.ELEMENTWISE_FUNCTIONS.values():
        return 'elementwise'
    if function is functional.dropout:
        return '' if _argument(node, 2, 'training', True) else 'identity'
    if function in ops.MAX_POOL_FUNCTIONS:
        return f'pool{ops.MAX_POOL_FUNCTIONS.index(function) + 1}'
    if function in ops.AVG_POOL_FUNCTIONS and _averages(
            _argument(node, 3, 'padding', 0), _argument(node, 5, 'count_include_pad', True),
            _argument(node, 6, 'divisor_override', None)):
        return f'pool{ops.AVG_POOL_FUNCTIONS.index(function) + 1}'
    if function in ops.ADAPTIVE_POOL_FUNCTIONS:
        return f'pool{ops.ADAPTIVE_POOL_FUNCTIONS.index(function) % 3 + 1}'
    return ''


def _is_flatten(node: fx.Node) -> bool:
    """True for flatten(x, 1) and for view/reshape(x, batch size, -1), as functions and as methods."""
    if node.target in (torch.flatten, 'flatten'):
        return _argument(node, 1, 'start_dim', 0) == 1 and _argument(node, 2, 'end_dim', -1) == -1
    if node.target not in (torch.reshape, 'view', 'reshape') or node.kwargs:
        return False
    shape = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return len(shape) == 2 and _is_batch_size(shape[0]) and shape[1] == -1


def _averages(padding: int | tuple[int, ...], count_include_pad: bool, divisor: int | None) -> bool:
    """True if an average pool divides by the number of real elements, so that a constant stays what it is."""
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    return divisor is None and not (padded and count_include_pad)


def _is_size_query(node: fx.Node, dims: tuple[int, ...]) -> bool:
    """True if `node` asks for nothing but the sizes of `dims`, which the removal does not change."""
    if node.target is getattr:
        whole = node.args[1:] == ('shape',)
    elif node.op == 'call_method' and node.target == 'size' and not node.kwargs:
        if len(node.args) == 2:
            return node.args[1] in dims
        whole = True
    else:
        return False
    return whole and all(user.target is operator.getitem and user.args[1] in dims for user in node.users)


def _is_batch_size(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.target is operator.getitem:
        whole, index = value.args
        return index == 0 and isinstance(whole, fx.Node) and _is_size_query(whole, (0,))
    return value.target == 'size' and _is_size_query(value, (0,)) and len(value.args) == 2


def _argument(node: fx.Node, position: int, name: str, default: object) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _describe(graph_module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == 'call_module':
        module = graph_module.get_submodule(node.target)
        grouped = ', grouped' if getattr(module, 'groups', 1) > 1 else ''
        return f'{type(module).__name__}{grouped}'
    return node.target if isinstance(node.target, str) else getattr(node.target, '__name__', str(node.target))
