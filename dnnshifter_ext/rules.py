"""How each operation treats channels: one rule per kind of operation.

A rule knows the nodes it reads (`sources`), the dimension of its channels (`axis`), and answers three questions:
    forward:  which channels of its value are constant?
    backward: given the channels of its value that are read, and those of them that vary, which of each source are?
    join:     which channels go together with which?
Whatever has no rule of its own is a Barrier, which is always right: it reads everything, and its channels stay.
"""

# C = channels of a value, O / I = output and input channels of a layer, G = groups, K = taps of a kernel

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import operator

import numpy as np
import torch
from torch import fx, nn

from dnnshifter_ext.facts import Facts
from dnnshifter_ext.fuse import numbers
from dnnshifter_ext.layers import LayerFacts


class Ids:
    """Numbers for channels, and which of them go together."""

    def __init__(self) -> None:
        self.count = 0
        self._joined: list[tuple[np.ndarray, np.ndarray]] = []

    def new(self, num: int) -> np.ndarray:
        first, self.count = self.count, self.count + num
        return np.arange(first, self.count)

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        self._joined.append((first, second))

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._joined:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return tuple(np.concatenate(part) for part in zip(*self._joined))


@dataclass(frozen=True, slots=True)
class Value:
    """The channels of a tensor: whether each is constant, and its constant.

    constants are float64, and 0 where the channel varies.
    """

    constant: np.ndarray
    constants: np.ndarray

    def __len__(self) -> int:
        return len(self.constant)

    def at(self, index: np.ndarray) -> Value:
        """The channels `index` of this value, in that order."""
        return Value(self.constant[index], self.constants[index])


def where(constant: np.ndarray, constants: np.ndarray) -> Value:
    """Channels of which only some are constant; of the others, the constants mean nothing."""
    return Value(constant, np.where(constant, constants, 0.0))


class Rule:
    """A node whose channels are dimension `axis`. `is_pinned`: they are read by something outside, and stay."""

    is_pinned = False

    def __init__(self, node: fx.Node, *sources: fx.Node, axis: int) -> None:
        self.node, self.sources, self.axis = node, sources, axis

    def forward(self, *values: Value) -> Value:
        """The node's value, given those of its sources; by default the source's: a constant stays what it is."""
        return values[0]

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        """The channels of each source that are read, given the node's that are read; by default the same."""
        return [read for _ in values]

    def join(self, ids: Ids, *sources: np.ndarray) -> np.ndarray:
        """The ids of its channels, given those of its sources' channels; by default the source's."""
        return sources[0]


class Same(Rule):
    """Pools, dropout, resizing, moving dimensions."""


class Barrier(Rule):
    """Anything not understood. Its own channels (`num`) stay, and so do all it reads."""

    is_pinned = True

    def __init__(self, node: fx.Node, *sources: fx.Node, reason: str, num: int, axis: int) -> None:
        super().__init__(node, *sources, axis=axis)
        self.reason, self._num = reason, num

    def forward(self, *values: Value) -> Value:
        return Value(np.zeros(self._num, dtype=bool), np.zeros(self._num))

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        return [np.ones(len(value), dtype=bool) for value in values]

    def join(self, ids: Ids, *sources: np.ndarray) -> np.ndarray:
        return ids.new(self._num)


class Layer(Rule):
    """A convolution or linear layer: begins new strands; one with groups takes whole groups together."""

    def __init__(self, node: fx.Node, source: fx.Node, facts: LayerFacts, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self.facts = facts

    def forward(self, value: Value) -> Value:
        return where(*self.facts.constants(value.constant, value.constants))

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        return [self.facts.reads(varies)]  # a constant output will be held by the bias

    def join(self, ids: Ids, source: np.ndarray) -> np.ndarray:
        own = ids.new(self.facts.num_outputs)
        if self.facts.groups > 1:
            members_GC = np.concatenate([part.reshape(self.facts.groups, -1) for part in (own, source)], axis=1)
            ids.join(members_GC[:, :1].repeat(members_GC.shape[1] - 1), members_GC[:, 1:].ravel())
        return own


class Pointwise(Rule):
    """An activation, or arithmetic with a number: `function` of every element."""

    def __init__(self, node: fx.Node, source: fx.Node, function: Callable, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self._function = function

    def forward(self, value: Value) -> Value:
        if not value.constant.any():
            return value
        # A copy, because an in-place activation must not reach the source.
        result = self._function(torch.from_numpy(value.constants.copy())).numpy()
        return where(value.constant & np.isfinite(result), result)


class Border(Rule):
    """Padding with a number: only channels that are that number everywhere stay constant."""

    def __init__(self, node: fx.Node, source: fx.Node, fill: float, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self._fill = fill

    def forward(self, value: Value) -> Value:
        return where(value.constant & (value.constants == self._fill), value.constants)


class PerChannel(Rule):
    """A batch norm or a PReLU: a function with parameters of its own for every channel."""


class Norm(PerChannel):
    """A batch norm; `facts` knows its scale and its shift."""

    def __init__(self, node: fx.Node, source: fx.Node, facts: Facts, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self._facts = facts

    def forward(self, value: Value) -> Value:
        scale_C, shift_C = self._facts.norms[self.node.target]
        constant = value.constant | (scale_C == 0)
        return where(constant, value.constants * scale_C + shift_C) if constant.any() else value

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        return [read & (self._facts.norms[self.node.target][0] != 0)]


class Slope(PerChannel):
    """A PReLU."""

    def __init__(self, node: fx.Node, source: fx.Node, module: nn.PReLU, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self._module = module

    def forward(self, value: Value) -> Value:
        x_C = value.constants
        return where(value.constant, np.where(x_C >= 0, x_C, x_C * numbers(self._module.weight)))


class Parameter(Rule):
    """A tensor of the model that enters arithmetic, with one number per channel."""

    def __init__(self, node: fx.Node, tensor: torch.Tensor, axis: int) -> None:
        super().__init__(node, axis=axis)
        self._tensor = tensor

    def forward(self) -> Value:
        return Value(np.ones(self._tensor.numel(), dtype=bool), numbers(self._tensor).reshape(-1))

    def join(self, ids: Ids) -> np.ndarray:
        return ids.new(self._tensor.numel())


class Combine(Rule):
    """Arithmetic on two tensors. Their channels go together, except for a single channel spread over all `num`."""

    def __init__(self, node: fx.Node, first: fx.Node, second: fx.Node, function: Callable, num: int, axis: int,
                 may_scatter: bool) -> None:
        super().__init__(node, first, second, axis=axis)
        self._function, self._num, self.may_scatter = function, num, may_scatter

    def forward(self, *values: Value) -> Value:
        first, second = (value if len(value) == self._num else value.at(np.zeros(self._num, dtype=int))
                         for value in values)
        with np.errstate(all='ignore'):  # where a channel varies, its number means nothing
            constants = self._function(first.constants, second.constants)
        constant = first.constant & second.constant
        if self._function is operator.mul:
            for value in (first, second):
                constant = constant | (value.constant & (value.constants == 0))
        return where(constant & np.isfinite(constants), constants)

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        # Zero times what varies is constant, and nobody needs what varies for it.
        return [varies | (read & value.constant) if len(value) == self._num else varies.any(keepdims=True)
                for value in values]

    def join(self, ids: Ids, *sources: np.ndarray) -> np.ndarray:
        whole = [source for source in sources if len(source) == self._num]
        if len(whole) == 2:
            ids.join(*whole)
        return whole[0]


class Concat(Rule):
    def forward(self, *values: Value) -> Value:
        return Value(np.concatenate([value.constant for value in values]),
                     np.concatenate([value.constants for value in values]))

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        return np.split(read, np.cumsum([len(value) for value in values[:-1]]))

    def join(self, ids: Ids, *sources: np.ndarray) -> np.ndarray:
        return np.concatenate(sources)


class Choose(Rule):
    """Channels `index` of the source, in that order."""

    def __init__(self, node: fx.Node, source: fx.Node, index: np.ndarray, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self.index = index

    def forward(self, value: Value) -> Value:
        return value.at(self.index)

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        read_of_source = np.zeros(len(value), dtype=bool)
        read_of_source[self.index[read]] = True
        return [read_of_source]

    def join(self, ids: Ids, source: np.ndarray) -> np.ndarray:
        return source[self.index]


class Part(Choose):
    """Part number `position` of a split into `sizes`."""

    def __init__(self, node: fx.Node, source: fx.Node, sizes: list[int], position: int, axis: int) -> None:
        start = sum(sizes[:position])
        super().__init__(node, source, np.arange(start, start + sizes[position]), axis)
        self.sizes = sizes


class Shuffle(Choose):
    """A channel shuffle, which several nodes spell out together."""


class Reshape(Rule):
    """Dimensions first..last of `merged` become one (None: the shape stays); the channels are not among them."""

    def __init__(self, node: fx.Node, source: fx.Node, axis: int, merged: tuple[int, int] | None) -> None:
        super().__init__(node, source, axis=axis)
        self.merged = merged


class Flatten(Reshape):
    """Dimensions of sizes `shape` become one, the channels' at `position` among them: each becomes several."""

    def __init__(self, node: fx.Node, source: fx.Node, merged: tuple[int, int], shape: tuple[int, ...],
                 position: int) -> None:
        super().__init__(node, source, axis=merged[0], merged=merged)
        self._shape, self._position = shape, position
        view = [1] * len(shape)
        view[position] = -1
        self._index = np.broadcast_to(np.arange(shape[position]).reshape(view), shape).reshape(-1)

    def forward(self, value: Value) -> Value:
        return value.at(self._index)

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        others = tuple(dim for dim in range(len(self._shape)) if dim != self._position)
        return [read.reshape(self._shape).any(axis=others)]

    def join(self, ids: Ids, source: np.ndarray) -> np.ndarray:
        return source[self._index]
