"""Module 3, the adds and their readers: where an index map lets a layer be narrower than the value it belongs to.

Channels that meet in an addition go together or not at all, unless

    a branch is *scattered*: its few channels are added to the right ones of the other operand (an index_add), and its
    constants, as one number per channel, with them; or
    a reader *gathers* the channels it reads out of a wider value (an index_select) before it reads them.

Both make weights superfluous and cost an operation, instead of an addition in one case. Which is faster is estimated
for one input. The three numbers were chosen on a sparse ResNet-50 on one CPU core in eager mode: the index maps they
admit changed nothing at batch size 1 and made it 1.8 times as fast at 128.
"""

# C = channels of the addition, I = inputs of a layer, S = strands

from __future__ import annotations

import math

import numpy as np
from torch import fx

from dnnshifter_ext import rules
from dnnshifter_ext.flow import Flow

NS_PER_MULTIPLY_ADD = 0.1
NS_PER_MOVED_NUMBER = 0.6
NS_PER_CALL = 500


def find_branches(flow: Flow, keep_S: np.ndarray) -> dict[fx.Node, int]:
    """Addition -> which of its operands is its branch, where scattering that is faster. keep_S: what stays without."""
    found = {}
    for node, rule in flow.rules.items():
        if isinstance(rule, rules.Combine) and rule.may_scatter:
            gains = [_gain_ns(flow, keep_S, node, source) for source in rule.sources]
            best = int(np.argmax(gains))
            if gains[best] > 0:
                found[node] = best
    return found


def gathers(flow: Flow, layer: rules.Layer, num_outputs: int, num_inputs: int, num_read: int) -> bool:
    """Whether the layer is faster when it gathers the `num_read` of its `num_inputs` inputs that it reads."""
    if layer.facts.groups > 1 or layer.axis != 1:
        return False
    saved = (num_inputs - num_read) * num_outputs * layer.facts.num_taps
    return (saved * _positions(flow, layer.node) * NS_PER_MULTIPLY_ADD
            > num_read * _positions(flow, layer.sources[0]) * NS_PER_MOVED_NUMBER + NS_PER_CALL)


def _gain_ns(flow: Flow, keep_S: np.ndarray, add: fx.Node, branch: fx.Node) -> float:
    layer = _producer(flow, branch)
    if layer is None:
        return 0.0
    keep_C = keep_S[flow.strands[add]]
    num_varying = max(int((keep_C & flow.read[add] & ~flow.values[branch].constant).sum()), 1)
    num_inputs = max(int(keep_S[flow.strands[layer.sources[0]]].sum()), 1)
    saved = (int(keep_C.sum()) - num_varying) * num_inputs * layer.facts.num_taps
    return (saved * _positions(flow, layer.node) * NS_PER_MULTIPLY_ADD
            - num_varying * _positions(flow, add) * NS_PER_MOVED_NUMBER - NS_PER_CALL)


def _producer(flow: Flow, node: fx.Node) -> rules.Layer | None:
    """The layer whose outputs these are, if nobody else reads them."""
    while len(node.users) == 1:
        rule = flow.rules[node]
        if isinstance(rule, rules.Layer):
            return rule if rule.facts.groups == 1 else None
        if not isinstance(rule, (rules.Same, rules.Pointwise, rules.PerChannel)):
            return None
        [node] = rule.sources
    return None


def _positions(flow: Flow, node: fx.Node) -> int:
    return math.prod(flow.shapes[node.name][2:])

