"""Modules 2 and 3, the view: what each channel of each value in the graph is, and which channels go together.

Every tensor of the graph has one dimension of *channels* (of features, after a flatten). A `Value` says of each of its
channels whether it is constant - the same number at every position, for every input - and to which *strand* it
belongs: channels joined by an operation that takes them only together (an addition, a batch norm, a depthwise
convolution) are one strand, which is removed as a whole or stays. Convolutions and linear layers begin new strands.

The operations are understood one by one, by the rules in `rules.py`; what no rule understands is a *barrier*: the
channels that reach it, and those that leave it, stay.
"""

# C = channels of a value

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
import torch
from torch import fx

from dnnshifter_ext import rules
from dnnshifter_ext.layers import LayerFacts, facts_of
from dnnshifter_ext.recognise import find_rules


@dataclass(frozen=True)
class Flow:
    """What is known of the channels of every value: its rule, what `forward` found, what is read, the strands (C,).

    varies: which channels are read and not constant; needs: which the node itself reads, source by source.
    """

    rules: dict[fx.Node, rules.Rule]
    values: dict[fx.Node, rules.Value]
    read: dict[fx.Node, np.ndarray]
    varies: dict[fx.Node, np.ndarray]
    needs: dict[fx.Node, list[np.ndarray]]
    strands: dict[fx.Node, np.ndarray]
    num_strands: int


def analyse(graph_module: fx.GraphModule, shapes: dict[str, torch.Size],
            facts: dict[str, LayerFacts] | None = None) -> Flow:
    """Constant channels from the inputs to the outputs, then unread ones from the outputs back, to a fixed point.

    Both are one pass: what is constant does not depend on what is read, and the graph has no loops.
    `shapes` holds the shape of every tensor for some input, by the node's name (see `graph.trace_shapes`); `facts`
    those of the layers (see `layers.facts_of`), where somebody else needs them too.
    """
    facts = facts_of(graph_module) if facts is None else facts
    found = find_rules(graph_module, {node: shapes[node.name] for node in graph_module.graph.nodes
                                      if node.name in shapes}, facts)
    values: dict[fx.Node, rules.Value] = {}
    with torch.no_grad():
        for node, rule in found.items():
            values[node] = rule.forward(*(values[source] for source in rule.sources))
    return Flow(found, values, *_read_backwards(found, values), *_strands(found))


def joined_anew(flow: Flow) -> Flow:
    """The same for rules that join other channels now. What is constant and what is read does not depend on that."""
    strands, num_strands = _strands(flow.rules)
    return replace(flow, strands=strands, num_strands=num_strands)


def collapsed_at(flow: Flow) -> list[str]:
    """Where the last of the input is lost, if no output of the model depends on it; else nothing.

    Layers by their path, other operations by their node's name, in the order of the graph.
    """
    [output] = [node for node in flow.rules if node.op == 'output']
    dependent = _dependent_on_input(flow)
    if output in dependent:
        return []
    behind, lost = {output}, []
    for node, rule in reversed(flow.rules.items()):
        if node in behind:
            behind.update(set(rule.sources) - dependent)
            if not dependent.isdisjoint(rule.sources):
                lost.append(node.target if node.op == 'call_module' else node.name)
    return lost[::-1]


def _dependent_on_input(flow: Flow) -> set[fx.Node]:
    """Values with a channel that the input can change. (Zero padding beside a constant varies, but not with it.)"""
    dependent: set[fx.Node] = set()
    for node, rule in flow.rules.items():
        value, sources = flow.values[node], [flow.values[source] for source in rule.sources]
        used = rule.backward(np.ones(len(value), dtype=bool), ~value.constant, *sources)
        if node.op == 'placeholder' or any(
                source in dependent and (used_C & ~other.constant).any()
                for source, other, used_C in zip(rule.sources, sources, used)):
            dependent.add(node)
    return dependent


def _read_backwards(found: dict[fx.Node, rules.Rule], values: dict[fx.Node, rules.Value]) -> tuple[dict, dict, dict]:
    """Node -> does anything read this channel? (C,); node -> and does it vary? (C,); node -> what it reads."""
    read = {node: np.full(len(values[node]), rule.is_pinned) for node, rule in found.items()}
    varies: dict[fx.Node, np.ndarray] = {}
    needs: dict[fx.Node, list[np.ndarray]] = {}
    for node, rule in reversed(found.items()):
        varies[node] = read[node] & ~values[node].constant
        needs[node] = rule.backward(read[node], varies[node], *(values[source] for source in rule.sources))
        for source, read_C in zip(rule.sources, needs[node]):
            read[source] |= read_C
    return read, varies, needs


def _strands(found: dict[fx.Node, rules.Rule]) -> tuple[dict[fx.Node, np.ndarray], int]:
    """(node -> strand of each channel, number of strands): the connected components of the ids that were joined."""
    ids, ids_of = rules.Ids(), {}
    for node, rule in found.items():
        ids_of[node] = rule.join(ids, *(ids_of[source] for source in rule.sources))
    first, second = ids.joined()
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(ids.count, ids.count))
    num_strands, strand_of_id = connected_components(graph, directed=False)
    return {node: strand_of_id[ids_C] for node, ids_C in ids_of.items()}, num_strands
