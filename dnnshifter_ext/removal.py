"""Module 3, the decision: what goes, for all layers at once, before anything is touched (paper, Algorithm 1).

Two additions to the paper's rule: channels nobody reads go too, and the constant that a removed channel emits
is not lost. What becomes of a channel, in this order:

    nobody reads it                                            -> removed
    constant zero after its activation                         -> removed
    constant, the reader's zero padding does not show          -> removed, folded into the reader's bias
    constant, the padding shows, and there are others like it  -> removed, merged into one carrier channel
    otherwise                                                  -> kept

A carrier is the channel with the largest constant; the reader's weights for the others are added to those for
it, in proportion, so that their sum meets the padding exactly as they did, at every resolution. A layer that
would lose all its channels keeps one (empty) channel.
"""

# O = output channels, I = input columns, C = the channels between a producer and its reader

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from dnnshifter_ext.links import find_barriers, find_links
from dnnshifter_ext.plan import (
    CONSTANT_ZERO,
    FOLDED,
    MERGED,
    UNREAD,
    Constants,
    LayerPlan,
    RemovalPlan,
    Removed,
    indices,
)
from dnnshifter_ext.sparsity import LayerSparsity, analyse


@dataclass(frozen=True)
class _Fate:
    """What becomes of the outputs of a linked layer: masks over its channels, (C,)."""

    keep_C: torch.Tensor
    folded_C: torch.Tensor
    merged_C: torch.Tensor
    carrier: int | None


def plan_removal(graph_module: fx.GraphModule) -> RemovalPlan:
    """The removal plan of every ungrouped conv and linear layer that is called once.

    Batch norms should have been fused: they are barriers. Nothing is changed.
    """
    links = find_links(graph_module)
    sparsity = analyse(graph_module, links)
    barriers = {barrier.layer: barrier.reason for barrier in find_barriers(graph_module)}
    fates = {link.producer: _fate(sparsity[link.producer]) for link in links}
    link_from = {link.producer: link for link in links}
    link_to = {link.reader: link for link in links}
    plans = []
    for name, state in sparsity.items():
        module = graph_module.get_submodule(name)
        num_outputs, num_inputs = module.weight.shape[:2]
        keep_O = torch.ones(num_outputs, dtype=torch.bool)
        keep_I = torch.ones(num_inputs, dtype=torch.bool)
        removed: tuple[Removed, ...] = ()
        folded, merged, carrier = Constants(), Constants(), None
        if name in link_from:
            keep_O = fates[name].keep_C
            removed = _removed(state, fates[name], link_from[name].reader)
        if name in link_to:
            link = link_to[name]
            before, width = fates[link.producer], link.features_per_channel
            values_I = sparsity[link.producer].value_O.repeat_interleave(width)
            keep_I = before.keep_C.repeat_interleave(width)
            folded = Constants.where(before.folded_C.repeat_interleave(width), values_I)
            if before.carrier is not None:
                merged, carrier = Constants.where(before.merged_C, values_I), before.carrier
        # Without a bias and without an input less nothing is gained, and a bias would be more to store.
        may_empty = module.bias is not None or not keep_I.all()
        empty_O = keep_O & (state.constant_O | ~state.read_O) & may_empty
        plans.append(LayerPlan(
            layer=name, num_outputs=num_outputs, num_inputs=num_inputs,
            keep_outputs=indices(keep_O), keep_inputs=indices(keep_I), removed=removed,
            emptied=Constants.where(empty_O, state.bias_O), folded=folded, merged=merged, carrier=carrier,
            barrier=barriers.get(name, '')))
    return RemovalPlan(tuple(plans))


def _fate(state: LayerSparsity) -> _Fate:
    cut = state.cut_O
    folded = state.read_O & state.constant_O & (state.value_O != 0) & ~cut
    merged, carrier = torch.zeros_like(cut), None
    keep = (state.read_O & ~state.constant_O) | cut
    if cut.sum() > 1:  # one channel for two or more; the largest value, so that no ratio exceeds 1
        merged, carrier = cut, int(torch.where(cut, state.value_O.abs(), -1.0).argmax())
        keep = keep & ~merged
        keep[carrier] = True
    if not keep.any():  # an explicit empty channel; no output of the reader varies, so nothing was folded
        keep[0] = True
    return _Fate(keep, folded, merged, carrier)


def _removed(state: LayerSparsity, fate: _Fate, reader: str) -> tuple[Removed, ...]:
    zero = state.read_O & state.constant_O & (state.value_O == 0)
    groups = (
        (UNREAD, ~state.read_O),
        (CONSTANT_ZERO, zero),
        (FOLDED.format(reader=reader), fate.folded_C),
        (MERGED.format(carrier=fate.carrier), fate.merged_C),
    )
    gone = ~fate.keep_C
    return tuple(Removed(reason, indices(mask & gone)) for reason, mask in groups if (mask & gone).any())
