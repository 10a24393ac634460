"""Modules 2 and 3, the view: which channels are constant, and which are read.

A `Value` says of each channel of a tensor (see `structure`) whether it is constant: the same number at every position,
for every input.
"""

# C = channels of a value

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from dnnshifter_ext import rules
from dnnshifter_ext.structure import Structure, strands_of


@dataclass(frozen=True)
class Flow:
    """What is known of the channels of every value: its rule, what `forward` found, what is read, the strands (C,).

    shapes: of the values, by their node's name. varies: which channels are read and not constant; needs: which the
    node itself reads, source by source. branches: addition -> the operand (0 or 1) whose channels are not joined with
    the other one's, because they are scattered into those.
    """

    rules: dict[fx.Node, rules.Rule]
    shapes: dict[str, torch.Size]
    values: dict[fx.Node, rules.Value]
    read: dict[fx.Node, np.ndarray]
    varies: dict[fx.Node, np.ndarray]
    needs: dict[fx.Node, list[np.ndarray]]
    strands: dict[fx.Node, np.ndarray]
    num_strands: int
    branches: dict[fx.Node, int]


def analyse(structure: Structure) -> Flow:
    """Constant channels from the inputs to the outputs, then unread ones from the outputs back, to a fixed point.

    Both are one pass: what is constant does not depend on what is read, and the graph has no loops.
    """
    structure.facts.begin()
    values: dict[fx.Node, rules.Value] = {}
    with torch.no_grad():
        for node, rule in structure.rules.items():
            values[node] = rule.forward(*(values[source] for source in rule.sources))
    return Flow(structure.rules, structure.shapes, values, *_read_backwards(structure.rules, values),
                structure.strands, structure.num_strands, branches={})


def with_branches(flow: Flow, branches: dict[fx.Node, int]) -> Flow:
    """The same with these branches. What is constant and what is read does not depend on them."""
    strands, num_strands = strands_of(flow.rules, branches)
    return replace(flow, strands=strands, num_strands=num_strands, branches=branches)


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
    read = {node: (np.ones if rule.is_pinned else np.zeros)(len(values[node]), dtype=bool)
            for node, rule in found.items()}
    varies: dict[fx.Node, np.ndarray] = {}
    needs: dict[fx.Node, list[np.ndarray]] = {}
    for node, rule in reversed(found.items()):
        varies[node] = read[node] & ~values[node].constant
        needs[node] = rule.backward(read[node], varies[node], *(values[source] for source in rule.sources))
        for source, read_C in zip(rule.sources, needs[node]):
            read[source] |= read_C
    return read, varies, needs
