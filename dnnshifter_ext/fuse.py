"""Module 1 of the pipeline: fold every batch norm into the convolution or linear layer before it.

In evaluation mode a batch norm is y = s * x + (beta - s * mean) with s = gamma / sqrt(var + eps), so that
W' = s * W per output channel and b' = s * b + beta - s * mean (paper, section on model fusion).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.graph import rebuild, single_calls

_NORM_OF = dict(zip(ops.CONVS, ops.BATCH_NORMS, strict=True)) | {nn.Linear: nn.BatchNorm1d}


def fuse_conv_bn(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A new module in which every batch norm that directly follows a layer has become part of that layer.

    Scales and biases are computed in float64 and stored in the layer's own type; dilation, groups, stride, padding and
    its mode stay. A batch norm without running statistics, or whose input is also read elsewhere, stays too.
    """
    norms = fusable_norms(graph_module)
    fused = {path: fused_layer(graph_module.get_submodule(path), graph_module.get_submodule(norm.target))
             for path, norm in norms.items()}
    return rebuild(graph_module, fused, copy_without(graph_module.graph, norms.values()))


def fusable_norms(graph_module: fx.GraphModule) -> dict[str, fx.Node]:
    """Path of a layer -> the batch norm that can become part of it."""
    calls = single_calls(graph_module)
    return {node.args[0].target: node for node in calls if _can_fuse(calls, node)}


def copy_without(graph: fx.Graph, dropped: Iterable[fx.Node]) -> fx.Graph:
    """A copy in which the readers of those nodes read what they read."""
    dropped, copied, copies = set(dropped), fx.Graph(), {}
    for node in graph.nodes:
        copies[node] = copies[node.args[0]] if node in dropped else copied.node_copy(node, copies.__getitem__)
    return copied


def scales_and_shifts(norms: dict[str, nn.Module]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Path -> (s, t), each (C,) in float64: in evaluation mode the batch norm computes s * x + t.

    All norms at once: there may be many, and each is small.
    """
    if not norms:
        return {}
    sizes = [norm.num_features for norm in norms.values()]

    def numbers_of(name: str, default: float = 0.0) -> np.ndarray:
        parts = [getattr(norm, name) for norm in norms.values()]
        return numbers(torch.cat([torch.full((size,), default) if part is None else part.detach().cpu()
                                  for part, size in zip(parts, sizes)]))

    deviation = numbers_of('running_var')
    deviation += np.repeat([norm.eps for norm in norms.values()], sizes)
    np.sqrt(deviation, out=deviation)
    scale, shift, mean = numbers_of('weight', 1.0), numbers_of('bias'), numbers_of('running_mean')
    scale /= deviation
    mean *= scale
    shift -= mean
    ends = np.cumsum(sizes)
    return {path: (scale[end - size:end], shift[end - size:end]) for path, size, end in zip(norms, sizes, ends)}


def fused_layer(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """One conv or linear layer that computes norm(layer(x)) in evaluation mode."""
    [(scale_O, bias_O)] = scales_and_shifts({'': norm}).values()
    if layer.bias is not None:
        bias_O += scale_O * numbers(layer.bias)
    weight = layer.weight.detach()
    return ops.with_tensors(layer, scaled(weight, scale_O), torch.from_numpy(bias_O).to(weight))


def scaled(weight: torch.Tensor, scale_O: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
    """weight (O, ...) times the scale of each output, in `out` or new memory.

    The scale is the sum of two numbers of the weight's type: rounded to one, it would be wrong for all weights of an
    output alike, and such errors add up. A product in float64 would take several times as long.
    """
    scale = torch.from_numpy(scale_O).to(weight.device).view(-1, *[1] * (weight.ndim - 1))
    rounded = scale.to(weight.dtype)
    rest = (scale - rounded).to(weight.dtype)
    return torch.mul(weight, rest, out=out).addcmul_(weight, rounded)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    """The tensor in float64."""
    return tensor.double().numpy(force=True)


def _can_fuse(calls: dict[fx.Node, nn.Module], node: fx.Node) -> bool:
    norm = calls.get(node)
    if type(norm) not in ops.BATCH_NORMS or norm.running_mean is None:
        return False
    source = node.args[0]
    layer = calls.get(source)
    if layer is None or len(source.users) != 1 or not ops.is_conv_or_linear(layer):
        return False
    return type(norm) is _NORM_OF[type(layer)] and layer.weight.shape[0] == norm.num_features
