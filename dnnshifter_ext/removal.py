"""Module 3, the decision: what goes, for all layers at once, before anything is touched (paper, Algorithm 1).

Two additions to the paper's rule: channels nobody reads go too, and the constant that a removed channel emits is not
lost. A strand (channels that go together, see `flow`) is removed when each of its channels, wherever it is read, is

    unread                                               -> it is just removed,
    constant zero                                        -> it is just removed,
    constant, and the reader's zero padding hides none   -> it is folded into the reader's bias, or
    constant, and the reader's zero padding shows        -> it is merged into one carrier channel of that reader.

A branch of an addition may go without the sum, where `index_maps` finds that faster; its constants are then added by
themselves.

A carrier is a constant channel that stays, the largest or one that stays anyway; the reader's weights for the others
are added to those for it, in proportion, so that their sum meets the padding as they did, at every resolution. A value
that would lose all its channels keeps one, explicitly constant.
"""

# O = output channels, I = input channels, C = channels of any value, S = strands

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import fx

from dnnshifter_ext import plan as plans
from dnnshifter_ext import rules
from dnnshifter_ext.flow import Flow, analyse, with_branches
from dnnshifter_ext.index_maps import find_branches, gathers
from dnnshifter_ext.plan import Constants, LayerPlan, NodePlan, RemovalPlan, Removed, indices
from dnnshifter_ext.recognise import is_split
from dnnshifter_ext.structure import Structure, distinct, mapped


def plan_removal(structure: Structure, *, mode: str = 'exact', round_to: int = 1) -> RemovalPlan:
    """The removal plan of a model; nothing is changed.

    mode: 'exact', or 'paper' for the rule as printed: all-zero filters of plain chains go, with their constants.
    round_to: keep channels that could go until each layer has a multiple of this many (where it shares no strand).
    """
    if mode not in ('exact', 'paper'):
        raise ValueError(f"no such mode: '{mode}'. Known: exact, paper")
    if round_to < 1:
        raise ValueError(f'round_to must be at least 1, not {round_to}')
    flow, exact = analyse(structure), mode == 'exact'
    cuts = {layer.node: _cut(flow, layer) for layer in layers(flow)} if exact else {}
    keep_S = _keep_exactly(flow, cuts) if exact else _keep_as_printed(flow)
    if exact and (branches := find_branches(flow, keep_S)):
        flow = with_branches(flow, branches)
        keep_S = _keep_exactly(flow, cuts)
    _round_up(flow, keep_S, round_to)
    _keep_one_of_each(flow, keep_S)
    _keep_what_is_scattered(flow, keep_S)
    keep = mapped(flow.strands, lambda strands_C: keep_S[strands_C])
    keeps = {layer.node: keep[layer.sources[0]] for layer in layers(flow)}
    if exact and round_to == 1:
        for layer in layers(flow):
            read_I = _worth_reading(flow, layer, keeps[layer.node], cuts[layer.node])
            sizes = (np.count_nonzero(mask) for mask in (keep[layer.node], keeps[layer.node], read_I))
            if gathers(flow, layer, *sizes):
                keeps[layer.node] = read_I
    return RemovalPlan(_layer_plans(flow, keep, keeps, cuts, exact), _node_plans(flow, keep, keeps))


def layers(flow: Flow) -> list[rules.Layer]:
    return [rule for rule in flow.rules.values() if isinstance(rule, rules.Layer)]


def _keep_exactly(flow: Flow, cuts: dict[fx.Node, np.ndarray]) -> np.ndarray:
    keep_S = np.zeros(flow.num_strands, dtype=bool)
    strands, varies = (np.concatenate([of[node] for node in flow.rules]) for of in (flow.strands, flow.varies))
    keep_S[strands[varies]] = True
    for rule in flow.rules.values():
        if isinstance(rule, rules.Barrier):
            for source in rule.sources:
                keep_S[flow.strands[source]] = True
    for layer in layers(flow):
        cut_I = cuts[layer.node]
        if not cut_I.any():
            continue
        value, strands_I = flow.values[layer.sources[0]], flow.strands[layer.sources[0]]
        if layer.facts.groups > 1:
            keep_S[strands_I[cut_I]] = True
        elif not keep_S[strands_I[cut_I]].any():
            keep_S[strands_I[_largest(value, cut_I)]] = True
    return keep_S


def _keep_as_printed(flow: Flow) -> np.ndarray:
    """All but the all-zero filters of layers whose outputs no addition, split or other branch shares."""
    keep_S = np.ones(flow.num_strands, dtype=bool)
    shared_S = np.zeros(flow.num_strands, dtype=bool)
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


def _round_up(flow: Flow, keep_S: np.ndarray, round_to: int) -> None:
    if round_to == 1:
        return
    for layer in layers(flow):
        strands_O = flow.strands[layer.node]
        spare = strands_O[~keep_S[strands_O]]
        keep_S[spare[:-int(keep_S[strands_O].sum()) % round_to]] = True


def _keep_one_of_each(flow: Flow, keep_S: np.ndarray) -> None:
    """No value is left without channels. (Keeping a strand can only add channels elsewhere, so one pass is enough.)"""
    for strands_C in distinct(flow.strands):
        if len(strands_C) and not keep_S[strands_C].any():
            keep_S[strands_C[0]] = True


def _keep_what_is_scattered(flow: Flow, keep_S: np.ndarray) -> None:
    """Whatever stays of a branch stays of the sum. (One branch may itself be a sum, hence the loop.)"""
    scattered = [(flow.strands[flow.rules[node].sources[operand]], flow.strands[node])
                 for node, operand in flow.branches.items()]
    while any(not keep_S[sum_C[keep_S[branch_C]]].all() for branch_C, sum_C in scattered):
        for branch_C, sum_C in scattered:
            keep_S[sum_C[keep_S[branch_C]]] = True


def _worth_reading(flow: Flow, layer: rules.Layer, keep_I: np.ndarray, cut_I: np.ndarray) -> np.ndarray:
    """Of the inputs that stay, those the layer needs: what varies and what zero padding shows, (I,), at least one."""
    read_I = keep_I & flow.needs[layer.node][0] & (~flow.values[layer.sources[0]].constant | cut_I)
    read_I[np.flatnonzero(keep_I)[0]] |= not read_I.any()
    return read_I


def _cut(flow: Flow, layer: rules.Layer) -> np.ndarray:
    """Constants that the layer's zero padding would show to be gone, (I,)."""
    return layer.facts.cut(flow.varies[layer.node], flow.values[layer.sources[0]].constants)


def _largest(value: rules.Value, among: np.ndarray) -> int:
    return int(np.where(among, np.abs(value.constants), -1.0).argmax())


def _layer_plans(flow: Flow, keep: dict[fx.Node, np.ndarray], keeps: dict[fx.Node, np.ndarray],
                 cuts: dict[fx.Node, np.ndarray], exact: bool) -> tuple[LayerPlan, ...]:
    """keep: the channels of every value that stay; keeps: the inputs that stay, layer by layer."""
    # Why a strand went, as an index into `reasons`; what takes it over is known at its readers.
    reasons, reason_S = [plans.CONSTANT_ZERO], np.zeros(flow.num_strands, dtype=int)
    for branch, add, gone_C in _shifted(flow, keep):
        reason_S[flow.strands[branch][gone_C]] = len(reasons)
        reasons.append(plans.SHIFTED.format(add=add.name))
    drafts = []
    for layer in layers(flow):
        source, keep_I = layer.sources[0], keeps[layer.node]
        value = flow.values[source]
        folded, merged, carrier = Constants(), Constants(), None
        if exact and layer.facts.groups == 1 and not keep_I.all():
            cut_I, [read_I] = cuts[layer.node], flow.needs[layer.node]
            gone_I = ~keep_I & (value.constants != 0) & read_I
            folded_I, merged_I = gone_I & ~cut_I, gone_I & cut_I
            folded = Constants.where(folded_I, value.constants)
            if merged_I.any():
                carrier = _largest(value, cut_I & keep_I)
                merged_I[carrier] = True
                merged = Constants.where(merged_I, value.constants)
            for text, mask_I in ((plans.FOLDED.format(reader=layer.node.target), folded_I),
                                 (plans.MERGED.format(carrier=carrier, reader=layer.node.target), merged_I)):
                if mask_I.any():
                    reason_S[flow.strands[source][mask_I & ~keep[source]]] = len(reasons)
                    reasons.append(text)
        drafts.append((layer, keep_I, folded, merged, carrier))

    barriers = _barriers(flow)
    return tuple(_layer_plan(flow, keep[draft[0].node], draft, reasons, reason_S, barriers, exact) for draft in drafts)


def _layer_plan(flow: Flow, keep_O: np.ndarray, draft: tuple, reasons: list[str], reason_S: np.ndarray,
                barriers: tuple[list[str], np.ndarray], exact: bool) -> LayerPlan:
    layer, keep_I, folded, merged, carrier = draft
    node, facts = layer.node, layer.facts
    value, read_O, strands_O = flow.values[node], flow.read[node], flow.strands[node]
    columns = keep_I if facts.groups == 1 else np.ones(facts.num_columns, dtype=bool)
    # Without a bias and without an input less nothing is gained, and a bias would be more to store.
    may_empty = exact and (facts.module.bias is not None or not keep_I.all())
    empty_O = keep_O & ~flow.varies[node] if may_empty else np.zeros_like(keep_O)

    gone_O, removed, barrier = ~keep_O, [], ''
    if keep_O.all():
        pinned_by_O = barriers[1][strands_O]
        barrier = barriers[0][int(pinned_by_O.max())] if (pinned_by_O >= 0).all() else ''
    elif exact:
        reason_O = reason_S[strands_O]
        explained_O = gone_O & read_O
        removed = [(plans.UNREAD, gone_O & ~read_O)]
        removed += [(reasons[i], explained_O & (reason_O == i))
                    for i in np.bincount(reason_O[explained_O]).nonzero()[0]]
    else:
        removed = [(plans.ZERO_FILTER, gone_O)]
    return LayerPlan(
        layer=node.target, num_outputs=facts.num_outputs, num_inputs=facts.num_columns,
        keep_outputs=indices(keep_O), keep_inputs=indices(columns),
        removed=tuple(Removed(reason, channels) for reason, mask in removed if (channels := indices(mask))),
        emptied=Constants.where(empty_O, value.constants), folded=folded, merged=merged, carrier=carrier,
        barrier=barrier)


def _barriers(flow: Flow) -> tuple[list[str], np.ndarray]:
    """(reasons, strand -> index of the reason why it is pinned, or -1)."""
    reasons, pinned_S = [], np.full(flow.num_strands, -1)
    for rule in flow.rules.values():
        if isinstance(rule, rules.Barrier) and rule.sources:
            for source in rule.sources:
                pinned_S[flow.strands[source]] = len(reasons)
            reasons.append(rule.reason)
    return reasons, pinned_S


def _shifted(flow: Flow, keep: dict[fx.Node, np.ndarray]) -> Iterator[tuple[fx.Node, fx.Node, np.ndarray]]:
    """(branch, addition, (C,)): constants of a scattered branch that go and that the sum lacks then."""
    for node, operand in flow.branches.items():
        branch = flow.rules[node].sources[operand]
        yield branch, node, keep[node] & ~keep[branch] & (flow.values[branch].constants != 0)


def _node_plans(flow: Flow, keep: dict[fx.Node, np.ndarray],
                keeps: dict[fx.Node, np.ndarray]) -> tuple[NodePlan, ...]:
    """What has to change besides the layers: whatever spells out channels."""
    found = []
    for branch, node, gone_C in _shifted(flow, keep):
        shift_C = np.where(gone_C, flow.values[branch].constants, 0.0)[keep[node]]
        positions = _positions(keep[node], keep[branch])
        found.append(NodePlan(node.name, 'scatter', (flow.branches[node], len(flow.shapes[node.name]) - 2, *positions),
                              tuple(shift_C.tolist())))
    for node, rule in flow.rules.items():
        keep_C, source = keep[node], rule.sources[0] if rule.sources else None
        if isinstance(rule, rules.Layer):
            if rule.facts.groups == 1 and (keep[source] != keeps[node]).any():
                found.append(NodePlan(node.name, 'gather', _positions(keep[source], keeps[node])))
        elif keep_C.all() if source is None else keep[source].all():
            continue
        elif isinstance(rule, (rules.Parameter, rules.PerChannel)):
            found.append(NodePlan(node.name, 'select', indices(keep_C)))
        elif isinstance(rule, rules.Shuffle):
            found.append(NodePlan(node.name, 'shuffle', _positions(keep[source], rule.index[keep_C])))
        elif isinstance(rule, rules.Reshape) and node.target in ('view', 'reshape', torch.reshape):
            found.append(NodePlan(node.name, 'flatten', rule.merged or ()))
    for split, sizes in _splits(flow, keep).items():
        found.append(NodePlan(split.name, 'split', sizes))
    return tuple(found)


def _positions(keep_C: np.ndarray, chosen: np.ndarray) -> tuple[int, ...]:
    """Where the chosen channels (a mask or indices) are among those that stay."""
    return tuple((np.cumsum(keep_C) - 1)[chosen].tolist())


def _splits(flow: Flow, keep: dict[fx.Node, np.ndarray]) -> dict[fx.Node, tuple[int, ...]]:
    """Split node -> sizes of all its parts, where channels go."""
    found = {}
    for rule in flow.rules.values():
        split = rule.node.args[0] if isinstance(rule, rules.Part) else None
        if split is not None and split not in found and is_split(split):
            keep_C = keep[rule.sources[0]]
            if not keep_C.all():
                found[split] = tuple(int(part.sum()) for part in np.split(keep_C, np.cumsum(rule.sizes)[:-1]))
    return found
