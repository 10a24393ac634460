"""Module 3, the decision: what goes, for all layers at once, before anything is touched (paper, Algorithm 1).

Two additions to the paper's rule: channels nobody reads go too, and the constant that a removed channel emits is not
lost. A strand (channels that go together, see `flow`) is removed when each of its channels, wherever it is read, is

    unread                                               -> it is just removed,
    constant zero                                        -> it is just removed,
    constant, and the reader's zero padding hides none   -> it is folded into the reader's bias, or
    constant, and the reader's zero padding shows        -> it is merged into one carrier channel of that reader.

A carrier is a constant channel that stays, the largest or one that stays anyway; the reader's weights for the others
are added to those for it, in proportion, so that their sum meets the padding as they did, at every resolution. A value
that would lose all its channels keeps one, explicitly constant.
"""

# O = output channels, I = input channels, C = channels of any value, S = strands

from __future__ import annotations

import torch
from torch import fx

from dnnshifter_ext import plan as plans
from dnnshifter_ext import rules
from dnnshifter_ext.flow import Flow, analyse
from dnnshifter_ext.plan import Constants, LayerPlan, NodePlan, RemovalPlan, Removed, indices
from dnnshifter_ext.recognise import is_split


def plan_removal(graph_module: fx.GraphModule, shapes: dict[str, torch.Size], *, mode: str = 'exact',
                 round_to: int = 1) -> RemovalPlan:
    """The removal plan of a model; nothing is changed. Batch norms are best fused before.

    shapes: that of every tensor in the graph for some input (see `graph.trace_shapes`).
    mode: 'exact', or 'paper' for the rule as printed: all-zero filters of plain chains go, with their constants.
    round_to: keep channels that could go until each layer has a multiple of this many (where it shares no strand).
    """
    if mode not in ('exact', 'paper'):
        raise ValueError(f"no such mode: '{mode}'. Known: exact, paper")
    if round_to < 1:
        raise ValueError(f'round_to must be at least 1, not {round_to}')
    flow = analyse(graph_module, shapes)
    keep_S = _keep_exactly(flow) if mode == 'exact' else _keep_as_printed(flow)
    _round_up(flow, keep_S, round_to)
    _keep_one_of_each(flow, keep_S)
    return RemovalPlan(_layer_plans(flow, keep_S, exact=mode == 'exact'), _node_plans(flow, keep_S))


def layers(flow: Flow) -> list[rules.Layer]:
    return [rule for rule in flow.rules.values() if isinstance(rule, rules.Layer)]


def _keep_exactly(flow: Flow) -> torch.Tensor:
    keep_S = torch.zeros(flow.num_strands, dtype=torch.bool)
    for node, rule in flow.rules.items():
        keep_S[flow.strands[node][flow.read[node] & ~flow.values[node].constant]] = True
        if isinstance(rule, rules.Barrier):
            for source in rule.sources:
                keep_S[flow.strands[source]] = True
    for layer in layers(flow):
        cut_I = _cut(flow, layer)
        if not cut_I.any():
            continue
        value, strands_I = flow.values[layer.sources[0]], flow.strands[layer.sources[0]]
        if layer.facts.groups > 1:
            keep_S[strands_I[cut_I]] = True
        elif not keep_S[strands_I[cut_I]].any():
            keep_S[strands_I[_largest(value, cut_I)]] = True
    return keep_S


def _keep_as_printed(flow: Flow) -> torch.Tensor:
    """All but the all-zero filters of layers whose outputs no addition, split or other branch shares."""
    keep_S = torch.ones(flow.num_strands, dtype=torch.bool)
    shared_S = torch.zeros(flow.num_strands, dtype=torch.bool)
    for rule in flow.rules.values():
        if isinstance(rule, (rules.Barrier, rules.Combine, rules.Concat, rules.Choose)):
            for source in rule.sources:
                shared_S[flow.strands[source]] = True
        elif isinstance(rule, rules.Layer) and rule.facts.groups > 1:
            shared_S[flow.strands[rule.node]] = True
    for layer in layers(flow):
        zero_O = ~layer.facts.reads_any_O
        keep_S[flow.strands[layer.node][zero_O]] = False
    return keep_S | shared_S


def _round_up(flow: Flow, keep_S: torch.Tensor, round_to: int) -> None:
    for layer in layers(flow):
        strands_O = flow.strands[layer.node]
        spare = strands_O[~keep_S[strands_O]]
        keep_S[spare[:-int(keep_S[strands_O].sum()) % round_to]] = True


def _keep_one_of_each(flow: Flow, keep_S: torch.Tensor) -> None:
    """No value is left without channels. (Keeping a strand can only add channels elsewhere, so one pass is enough.)"""
    for strands_C in flow.strands.values():
        if len(strands_C) and not keep_S[strands_C].any():
            keep_S[strands_C[0]] = True


def _cut(flow: Flow, layer: rules.Layer) -> torch.Tensor:
    return layer.facts.cut(flow.read[layer.node] & ~flow.values[layer.node].constant)


def _largest(value: rules.Value, among: torch.Tensor) -> int:
    return int(torch.where(among, value.constants.abs(), -1.0).argmax())


def _layer_plans(flow: Flow, keep_S: torch.Tensor, exact: bool) -> tuple[LayerPlan, ...]:
    # Why a strand went, as an index into `reasons`; what takes it over is known at its readers.
    reasons, reason_S = [plans.CONSTANT_ZERO], torch.zeros(flow.num_strands, dtype=torch.long)
    drafts = []
    for layer in layers(flow):
        value, strands_I = flow.values[layer.sources[0]], flow.strands[layer.sources[0]]
        keep_I = keep_S[strands_I]
        folded, merged, carrier = Constants(), Constants(), None
        if exact and layer.facts.groups == 1 and not keep_I.all():
            cut_I = _cut(flow, layer)
            read_I = layer.facts.reads(flow.read[layer.node] & ~flow.values[layer.node].constant)
            gone_I = ~keep_I & value.constant & (value.constants != 0) & read_I
            folded_I, merged_I = gone_I & ~cut_I, gone_I & cut_I
            folded = Constants.where(folded_I, value.constants)
            if merged_I.any():
                carrier = _largest(value, cut_I & keep_I)
                merged_I[carrier] = True
                merged = Constants.where(merged_I, value.constants)
            for text, mask_I in ((plans.FOLDED.format(reader=layer.node.target), folded_I),
                                 (plans.MERGED.format(carrier=carrier, reader=layer.node.target), merged_I)):
                reason_S[strands_I[mask_I & ~keep_I]] = len(reasons)
                reasons.append(text)
        drafts.append((layer, keep_I, folded, merged, carrier))

    barriers = _barriers(flow)
    return tuple(_layer_plan(flow, keep_S, draft, reasons, reason_S, barriers, exact) for draft in drafts)


def _layer_plan(flow: Flow, keep_S: torch.Tensor, draft: tuple, reasons: list[str], reason_S: torch.Tensor,
                barriers: tuple[list[str], torch.Tensor], exact: bool) -> LayerPlan:
    layer, keep_I, folded, merged, carrier = draft
    node, facts = layer.node, layer.facts
    value, read_O, strands_O = flow.values[node], flow.read[node], flow.strands[node]
    keep_O = keep_S[strands_O]
    columns = keep_I if facts.groups == 1 else torch.ones(facts.num_inputs // facts.groups, dtype=torch.bool)
    # Without a bias and without an input less nothing is gained, and a bias would be more to store.
    may_empty = facts.module.bias is not None or not keep_I.all()
    empty_O = keep_O & (value.constant | ~read_O) & may_empty if exact else torch.zeros_like(keep_O)

    removed = []
    if exact:
        removed.append((plans.UNREAD, ~keep_O & ~read_O))
        removed += [(reasons[i], ~keep_O & read_O & (reason_S[strands_O] == i))
                    for i in reason_S[strands_O[~keep_O]].unique().tolist()]
    else:
        removed.append((plans.ZERO_FILTER, ~keep_O))
    pinned_by_O = barriers[1][strands_O]
    return LayerPlan(
        layer=node.target, num_outputs=facts.num_outputs, num_inputs=len(columns),
        keep_outputs=indices(keep_O), keep_inputs=indices(columns),
        removed=tuple(Removed(reason, indices(mask)) for reason, mask in removed if mask.any()),
        emptied=Constants.where(empty_O, value.constants), folded=folded, merged=merged, carrier=carrier,
        barrier=barriers[0][int(pinned_by_O.max())] if (pinned_by_O >= 0).all() else '')


def _barriers(flow: Flow) -> tuple[list[str], torch.Tensor]:
    """(reasons, strand -> index of the reason why it is pinned, or -1)."""
    reasons, pinned_S = [], torch.full((flow.num_strands,), -1)
    for rule in flow.rules.values():
        if isinstance(rule, rules.Barrier) and rule.sources:
            for source in rule.sources:
                pinned_S[flow.strands[source]] = len(reasons)
            reasons.append(rule.reason)
    return reasons, pinned_S


def _node_plans(flow: Flow, keep_S: torch.Tensor) -> tuple[NodePlan, ...]:
    """What has to change besides the layers: whatever spells out channels."""
    found = []
    for node, rule in flow.rules.items():
        source = rule.sources[0] if rule.sources else None
        if source is not None and keep_S[flow.strands[source]].all() and not isinstance(rule, rules.Parameter):
            continue
        keep_C = keep_S[flow.strands[node]]
        if isinstance(rule, rules.Parameter):
            if not keep_C.all():
                found.append(NodePlan(node.name, 'select', indices(keep_C)))
        elif isinstance(rule, rules.PerChannel):
            found.append(NodePlan(node.name, 'select', indices(keep_C)))
        elif isinstance(rule, rules.Shuffle):
            position_C = torch.cumsum(keep_S[flow.strands[source]], 0) - 1
            found.append(NodePlan(node.name, 'shuffle', tuple(position_C[rule.index[keep_C]].tolist())))
        elif isinstance(rule, rules.Reshape) and node.target in ('view', 'reshape', torch.reshape):
            found.append(NodePlan(node.name, 'flatten', rule.merged or ()))
    for split, sizes in _splits(flow, keep_S).items():
        found.append(NodePlan(split.name, 'split', sizes))
    return tuple(found)


def _splits(flow: Flow, keep_S: torch.Tensor) -> dict[fx.Node, tuple[int, ...]]:
    """Split node -> sizes of all its parts, where channels go."""
    found = {}
    for rule in flow.rules.values():
        split = rule.node.args[0] if isinstance(rule, rules.Part) else None
        if split is not None and split not in found and is_split(split):
            keep_C = keep_S[flow.strands[rule.sources[0]]]
            if not keep_C.all():
                found[split] = tuple(int(part.sum()) for part in keep_C.split(rule.sizes))
    return found
