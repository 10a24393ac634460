"""The converters that are compared: ours, and two peers as their documentation uses them.

Each is a function (model, inputs) -> (converted model, Stages). A peer works in place, on a model that it may change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import importlib.util
import time

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

import dnnshifter_ext


@dataclass(frozen=True)
class Stages:
    """Milliseconds. capture: learning the structure of the model; fusing_ms is None where rebuilding includes it."""

    capture_ms: float
    fusing_ms: float | None
    analysis_ms: float
    rebuilding_ms: float

    @property
    def conversion_ms(self) -> float:
        """All but the capture."""
        return (self.fusing_ms or 0) + self.analysis_ms + self.rebuilding_ms


Converter = Callable[[nn.Module, torch.Tensor], tuple[nn.Module, Stages]]


class _Laps:
    def __init__(self) -> None:
        self._last_s = time.perf_counter()

    def lap_ms(self) -> float:
        """Milliseconds since the last call, or since the beginning."""
        last_s, self._last_s = self._last_s, time.perf_counter()
        return (self._last_s - last_s) * 1e3


def dnnshifter(model: nn.Module, inputs: torch.Tensor, mode: str = 'exact') -> tuple[nn.Module, Stages]:
    """Ours. What its proof takes is not part of the stages."""
    conversion = dnnshifter_ext.convert(model, inputs, mode=mode)
    return conversion.model, Stages(conversion.capture_time_ms, None, conversion.analysis_time_ms,
                                    conversion.rebuilding_time_ms)


def dnnshifter_paper(model: nn.Module, inputs: torch.Tensor) -> tuple[nn.Module, Stages]:
    """The published rule: all-zero filters go, with their constants."""
    return dnnshifter(model, inputs, 'paper')


def torch_simplify(model: nn.Module, inputs: torch.Tensor) -> tuple[nn.Module, Stages]:
    """The steps of `simplify.simplify`, one by one: it looks for constants with one image, and removes with another."""
    import simplify
    laps = _Laps()
    pairs = simplify.utils.get_bn_folding(model)
    pinned = simplify.utils.get_pinned(model)
    capture_ms = laps.lap_ms()
    simplify.fuse(model, pairs)
    fusing_ms = laps.lap_ms()
    simplify.propagate_bias(model, inputs[:1], pinned)
    analysis_ms = laps.lap_ms()
    simplify.remove_zeroed(model, inputs[:1], pinned)
    return model, Stages(capture_ms, fusing_ms, analysis_ms, laps.lap_ms())


def torch_pruning(
    model: nn.Module, inputs: torch.Tensor, fusion: Callable[[nn.Module, nn.Module], nn.Module] = fuse_conv_bn_eval,
) -> tuple[nn.Module, Stages]:
    """The dependency graph, told to remove the channels that are zero in all layers they are tied to.

    Batch norms are fused by torch first. The library has no notion of the constants that such channels emit.
    """
    import torch_pruning as tp
    laps = _Laps()
    pairs = conv_norm_pairs(model)
    capture_ms = laps.lap_ms()
    fuse(model, pairs, fusion)
    fusing_ms = laps.lap_ms()
    graph = tp.DependencyGraph().build_dependency(model, inputs[:1], verbose=False)
    capture_ms += laps.lap_ms()
    groups = _zero_groups(tp, graph, model)
    analysis_ms = laps.lap_ms()
    for group in groups:
        if graph.check_pruning_group(group):  # it would empty a layer otherwise
            group.prune()
    return model, Stages(capture_ms, fusing_ms, analysis_ms, laps.lap_ms())


def torch_pruning_fused_in_place(model: nn.Module, inputs: torch.Tensor) -> tuple[nn.Module, Stages]:
    """The same, with a faster fusion than the one that torch's documentation leads to."""
    return torch_pruning(model, inputs, fuse_in_place)


def _zero_groups(tp, graph, model: nn.Module) -> list:
    """The pruning groups of all channels but the model's outputs whose filters are zero in every layer of the group."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))][:-1]
    zeros = {layer: set((layer.weight.detach().flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist())
             for layer in layers}
    groups, seen = [], set()
    for layer in layers:
        if layer in seen or not zeros[layer]:
            continue
        prune = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
        group = graph.get_pruning_group(layer, prune, sorted(zeros[layer]))
        tied = [item for item in group.items
                if graph.is_out_channel_pruning_fn(item.dep.handler) and item.dep.target.module in zeros]
        seen.update(item.dep.target.module for item in tied)
        common = zeros[layer].difference(*(
            {root for index, root in zip(item.idxs, item.root_idxs) if index not in zeros[item.dep.target.module]}
            for item in tied))
        if common:
            groups.append(group if common == zeros[layer] else graph.get_pruning_group(layer, prune, sorted(common)))
    return groups


def conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """(path of a convolution, path of the batch norm that alone reads it)."""
    modules = dict(model.named_modules())
    return [(node.args[0].target, node.target) for node in fx.symbolic_trace(model).graph.nodes
            if node.op == 'call_module' and isinstance(modules[node.target], nn.BatchNorm2d)
            and node.args[0].op == 'call_module' and isinstance(modules[node.args[0].target], nn.Conv2d)
            and len(node.args[0].users) == 1]


def fuse(
    model: nn.Module, pairs: list[tuple[str, str]],
    fusion: Callable[[nn.Module, nn.Module], nn.Module] = fuse_conv_bn_eval,
) -> None:
    """Changes the model. fusion: (convolution, batch norm) -> the convolution that computes both."""
    for conv_path, norm_path in pairs:
        model.set_submodule(conv_path, fusion(model.get_submodule(conv_path), model.get_submodule(norm_path)))
        model.set_submodule(norm_path, nn.Identity())


def fuse_in_place(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """What `fuse_conv_bn_eval` does, without its copy of the convolution."""
    with torch.no_grad():
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return conv


@dataclass(frozen=True)
class Peer:
    """package: its name for pip; module: its name for Python."""

    package: str
    module: str
    convert: Converter

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


OURS: dict[str, Converter] = {'DNNShifter': dnnshifter, "DNNShifter, mode='paper'": dnnshifter_paper}
PEERS = {
    'torch-simplify': Peer('torch-simplify', 'simplify', torch_simplify),
    'torch-pruning': Peer('torch-pruning', 'torch_pruning', torch_pruning),
    'torch-pruning, fused in place': Peer('torch-pruning', 'torch_pruning', torch_pruning_fused_in_place),
}
# The times differ, the models do not.
TIMED_ONLY = ('torch-pruning, fused in place',)


def installed() -> dict[str, Converter]:
    """Name -> converter: ours, and the peers that are installed."""
    return OURS | {name: peer.convert for name, peer in PEERS.items() if peer.is_installed}
