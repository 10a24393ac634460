"""Module 1 of the pipeline: fold every batch norm into the convolution or linear layer before it.

In evaluation mode a batch norm is y = s * x + (beta - s * mean) with s = gamma / sqrt(var + eps), so that
W' = s * W per output channel and b' = s * b + beta - s * mean (paper, section on model fusion).
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.graph import rebuild, single_calls

_NORM_OF = dict(zip(ops.CONVS, ops.BATCH_NORMS, strict=True)) | {nn.Linear: nn.BatchNorm1d}

def fuse_conv_bn(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A new module in which every batch norm that directly follows a layer has become part of that layer.

    The arithmetic is done in float64 and stored in the layer's own type; dilation, groups, stride, padding
    and its mode stay. A batch norm without running statistics, or whose input is also read elsewhere, stays
    too.
    """
    calls = single_calls(graph_module)
    new_graph = copy.deepcopy(graph_module.graph)
    fused: dict[str, nn.Module] = {}
    for old, new in zip(list(graph_module.graph.nodes), list(new_graph.nodes), strict=True):
        if _can_fuse(calls, old):
            source = old.args[0]
            fused[source.target] = fused_layer(calls[source], calls[old])
            new.replace_all_uses_with(new.args[0])
            new_graph.erase_node(new)
    return rebuild(graph_module, fused, new_graph)


def fused_layer(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """One conv or linear layer that computes norm(layer(x)) in evaluation mode."""
    weight = layer.weight.detach()
    scale_O = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale_O = scale_O * norm.weight.detach().double()
    bias_O = -scale_O * norm.running_mean.double()
    if norm.bias is not None:
        bias_O = bias_O + norm.bias.detach().double()
    if layer.bias is not None:
        bias_O = bias_O + scale_O * layer.bias.detach().double()
    scaled = weight.to(torch.float64, copy=True)  # a product of mixed types takes 30 times as long
    scaled *= scale_O.view(-1, *[1] * (weight.ndim - 1))
    return ops.with_tensors(layer, scaled.to(weight.dtype), bias_O.to(weight.dtype))


def _can_fuse(calls: dict[fx.Node, nn.Module], node: fx.Node) -> bool:
    norm = calls.get(node)
    if type(norm) not in ops.BATCH_NORMS or norm.running_mean is None:
        return False
    source = node.args[0]
    layer = calls.get(source)
    if layer is None or len(source.users) != 1 or not ops.is_conv_or_linear(layer):
        return False
    return type(norm) is _NORM_OF[type(layer)] and layer.weight.shape[0] == norm.num_features
