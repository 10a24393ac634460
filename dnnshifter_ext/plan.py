"""Module 3, the data: which channels of which layer go, why, and what takes over their constants.

A plan is frozen data that can be printed, saved as JSON, compared, and applied later. It names layers and
indices only and needs no graph, so that any analysis may write one (see `removal` for ours).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

UNREAD = 'unread'
CONSTANT_ZERO = 'constant zero'
FOLDED = "constant folded into bias of '{reader}'"
MERGED = "constant merged into carrier channel {carrier} of '{reader}'"
SHIFTED = "constant added in '{add}'"
ZERO_FILTER = 'all-zero filter (its constant is dropped)'


@dataclass(frozen=True)
class Constants:
    """Channels (or input columns) and the constant each of them holds, position by position."""

    channels: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    @classmethod
    def where(cls, mask_C: np.ndarray, values_C: np.ndarray) -> Constants:
        """The channels at which `mask_C` is true, with their values."""
        channels = mask_C.nonzero()[0]
        return cls(tuple(channels.tolist()), tuple(values_C[channels].tolist()))


@dataclass(frozen=True)
class Removed:
    """Output channels that go, and the one reason for all of them."""

    reason: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one conv or linear layer. All indices count in the layer as it is before the removal.

    keep_outputs, keep_inputs: ascending; everything else goes. (The inputs are those of its source that stay, unless
    the layer gathers.)
    removed: the outputs that go, grouped by reason.
    emptied: kept outputs that are constant: their weights become zero and their bias this value.
    folded: input columns that go and whose constants enter the bias.
    merged: input columns (constants) whose weights are added up, scaled, in the kept column `carrier`.
    barrier: why all the outputs stay, or ''.
    """

    layer: str
    num_outputs: int
    num_inputs: int
    keep_outputs: tuple[int, ...]
    keep_inputs: tuple[int, ...]
    removed: tuple[Removed, ...] = ()
    emptied: Constants = Constants()
    folded: Constants = Constants()
    merged: Constants = Constants()
    carrier: int | None = None
    barrier: str = ''

    @property
    def num_removed(self) -> int:
        """Number of output channels that go."""
        return self.num_outputs - len(self.keep_outputs)


@dataclass(frozen=True)
class NodePlan:
    """What happens to another node of the graph that spells out channels.

    action: 'select' keeps the given channels of its parameters, 'split' gives the sizes of its parts, 'shuffle' takes
    the given channels of its input in that order, 'flatten' merges the dimensions from the first number to the second
    (none: it disappears), 'gather' takes the given channels of its input before it reads them, 'scatter' adds the
    operand of the first number (0 or 1), whose channels have as many dimensions behind them as the second number says,
    to the channels of its other operand that the rest give, and `values`, one per channel, to all of them.
    """

    node: str
    action: str
    numbers: tuple[int, ...]
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class RemovalPlan:
    """The plans of all layers, in the order of the graph, and of what is between them."""

    layers: tuple[LayerPlan, ...]
    nodes: tuple[NodePlan, ...] = ()

    @property
    def num_removed(self) -> int:
        """Number of output channels that go, in all layers together."""
        return sum(layer.num_removed for layer in self.layers)

    def to_dict(self) -> dict:
        """The plan as dicts, lists, strings and numbers, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> RemovalPlan:
        """The plan `to_dict` was called on, also after a round trip through JSON."""
        return cls(tuple(_layer_from_dict(layer) for layer in data['layers']),
                   tuple(NodePlan(node['node'], node['action'], tuple(node['numbers']), tuple(node['values']))
                         for node in data['nodes']))


def indices(mask_C: np.ndarray) -> tuple[int, ...]:
    """The positions at which a mask is true, ascending."""
    return tuple(mask_C.nonzero()[0].tolist())


def _layer_from_dict(data: dict) -> LayerPlan:
    def constants(part: dict) -> Constants:
        return Constants(tuple(part['channels']), tuple(part['values']))

    return LayerPlan(**data | {
        'keep_outputs': tuple(data['keep_outputs']),
        'keep_inputs': tuple(data['keep_inputs']),
        'removed': tuple(Removed(part['reason'], tuple(part['channels'])) for part in data['removed']),
        'emptied': constants(data['emptied']),
        'folded': constants(data['folded']),
        'merged': constants(data['merged']),
    })
