"""Module 2, what a model is whatever its weights are: which of its channels go together.

Every tensor of the graph has one dimension of *channels* (of features, after a flatten). Channels joined by an
operation that takes them only together (an addition, a batch norm, a depthwise convolution) are one *strand*, which is
removed as a whole or stays. Convolutions and linear layers begin new strands.

The operations are understood one by one, by the rules in `rules.py`; what no rule understands is a *barrier*: the
channels that reach it, and those that leave it, stay.
"""

# C = channels of a value

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
import torch
from torch import fx

from dnnshifter_ext import rules
from dnnshifter_ext.facts import Facts
from dnnshifter_ext.recognise import find_rules


@dataclass(frozen=True)
class Structure:
    """The rule of every operation, in the order of the graph, and the strand of every channel (C,) of its value.

    shapes: of every tensor, by its node's name, for some input. facts: about the weights; none has been read yet.
    """

    shapes: dict[str, torch.Size]
    rules: dict[fx.Node, rules.Rule]
    facts: Facts
    strands: dict[fx.Node, np.ndarray]
    num_strands: int


def structure_of(graph_module: fx.GraphModule, shapes: dict[str, torch.Size]) -> Structure:
    """That of a captured model; shapes: see `graph.trace_shapes`."""
    facts = Facts(graph_module)
    found = find_rules(graph_module, {node: shapes[node.name] for node in graph_module.graph.nodes
                                      if node.name in shapes}, facts)
    return Structure(shapes, found, facts, *strands_of(found))


def strands_of(
    found: dict[fx.Node, rules.Rule], branches: dict[fx.Node, int] | None = None,
) -> tuple[dict[fx.Node, np.ndarray], int]:
    """(node -> strand of each channel, number of strands): the connected components of the channels that are joined.

    branches: addition -> the operand (0 or 1) that is not joined with the other one.
    """
    ids, ids_of, branches = rules.Ids(), {}, branches or {}
    for node, rule in found.items():
        sources = [ids_of[source] for source in rule.sources]
        ids_of[node] = sources[1 - branches[node]] if node in branches else rule.join(ids, *sources)
    first, second = ids.joined()
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(ids.count, ids.count))
    num_strands, strand_of_id = connected_components(graph, directed=False)
    return mapped(ids_of, lambda ids_C: strand_of_id[ids_C]), num_strands


def mapped(
    arrays: dict[fx.Node, np.ndarray], function: Callable[[np.ndarray], np.ndarray],
) -> dict[fx.Node, np.ndarray]:
    """`function` of each array, once where many nodes have the same: a batch norm's channels are those of its layer."""
    results = {id(array): function(array) for array in distinct(arrays)}
    return {node: results[id(array)] for node, array in arrays.items()}


def distinct(arrays: dict[fx.Node, np.ndarray]) -> list[np.ndarray]:
    """Each array once, in the order of the graph."""
    return list({id(array): array for array in arrays.values()}.values())
