"""How each operation treats channels: one rule per kind of operation.

A rule knows the nodes it reads (`sources`), the dimension of its channels (`axis`), and answers two questions:
    forward:  which channels of its value are constant, and which go together with which?
    backward: given the channels of its value that are read, and those of them that vary, which of each source are?
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

from dnnshifter_ext.fuse import numbers, scale_and_shift
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


@dataclass(frozen=True)
class Value:
    """The channels of a tensor: per channel an id, whether it is constant, and its constant.

    constants are float64, and 0 where the channel varies.
    """

    ids: np.ndarray
    constant: np.ndarray
    constants: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, index: np.ndarray) -> Value:
        """The channels `index` of this value, in that order."""
        return Value(self.ids[index], self.constant[index], self.constants[index])

    def mapped(self, constants: np.ndarray, constant: np.ndarray | None = None) -> Value:
        """The same channels with other constants."""
        constant = self.constant if constant is None else constant
        return Value(self.ids, constant, np.where(constant, constants, 0.0))


def varying(ids: np.ndarray) -> Value:
    return Value(ids, np.zeros(len(ids), dtype=bool), np.zeros(len(ids)))


class Rule:
    """A node whose channels are dimension `axis`. `is_pinned`: they are read by something outside, and stay."""

    is_pinned = False

    def __init__(self, node: fx.Node, *sources: fx.Node, axis: int) -> None:
        self.node, self.sources, self.axis = node, sources, axis

    def forward(self, ids: Ids, *values: Value) -> Value:
        """The node's value, given those of its sources; by default the source's: a constant stays what it is."""
        return values[0]

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        """The channels of each source that are read, given the node's that are read; by default the same."""
        return [read for _ in values]


class Same(Rule):
    """Pools, dropout, resizing, moving dimensions."""


class Barrier(Rule):
    """Anything not understood. Its own channels (`num`) stay, and so do all it reads."""

    is_pinned = True

    def __init__(self, node: fx.Node, *sources: fx.Node, reason: str, num: int, axis: int) -> None:
        super().__init__(node, *sources, axis=axis)
        self.reason, self._num = reason, num

    def forward(self, ids: Ids, *values: Value) -> Value:
        return varying(ids.new(self._num))

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        return [np.ones(len(value), dtype=bool) for value in values]


class Layer(Rule):
    """A convolution or linear layer: begins new strands; one with groups takes whole groups together."""

    def __init__(self, node: fx.Node, source: fx.Node, module: nn.Module, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self.facts = LayerFacts(module)

    def forward(self, ids: Ids, value: Value) -> Value:
        own = ids.new(self.facts.num_outputs)
        if self.facts.groups > 1:
            members_GC = np.concatenate([part.reshape(self.facts.groups, -1) for part in (own, value.ids)], axis=1)
            ids.join(members_GC[:, :1].repeat(members_GC.shape[1] - 1), members_GC[:, 1:].ravel())
        return Value(own, *self.facts.constants(value.constant, value.constants))

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        return [self.facts.reads(varies)]  # a constant output will be held by the bias


class Pointwise(Rule):
    """An activation, or arithmetic with a number: `function` of every element."""

    def __init__(self, node: fx.Node, source: fx.Node, function: Callable, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self._function = function

    def forward(self, ids: Ids, value: Value) -> Value:
        if not value.constant.any():
            return value
        # A copy, because an in-place activation must not reach the source.
        result = self._function(torch.from_numpy(value.constants.copy())).numpy()
        return value.mapped(result, value.constant & np.isfinite(result))


class Border(Rule):
    """Padding with a number: only channels that are that number everywhere stay constant."""

    def __init__(self, node: fx.Node, source: fx.Node, fill: float, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self._fill = fill

    def forward(self, ids: Ids, value: Value) -> Value:
        return value.mapped(value.constants, value.constant & (value.constants == self._fill))


class PerChannel(Rule):
    """A batch norm that was not fused, or a PReLU: a function with parameters of its own for every channel."""

    def __init__(self, node: fx.Node, source: fx.Node, module: nn.Module, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self.module = module

    def forward(self, ids: Ids, value: Value) -> Value:
        ignores = self._ignores_input(len(value))
        constant = value.constant | ignores
        if not constant.any():
            return value
        return value.mapped(_per_channel(self.module, np.where(ignores, 0.0, value.constants)), constant)

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        return [read & ~self._ignores_input(len(value))]

    def _ignores_input(self, num: int) -> np.ndarray:
        """Channels that a batch norm multiplies by zero."""
        if isinstance(self.module, nn.PReLU) or not self.module.affine:
            return np.zeros(num, dtype=bool)
        return numbers(self.module.weight) == 0


def _per_channel(module: nn.Module, x_C: np.ndarray) -> np.ndarray:
    """What the module makes of one number per channel, in float64."""
    if isinstance(module, nn.PReLU):
        return np.where(x_C >= 0, x_C, x_C * numbers(module.weight))
    scale_C, shift_C = scale_and_shift(module)
    return x_C * scale_C + shift_C


class Parameter(Rule):
    """A tensor of the model that enters arithmetic, with one number per channel."""

    def __init__(self, node: fx.Node, tensor: torch.Tensor, axis: int) -> None:
        super().__init__(node, axis=axis)
        self._numbers = numbers(tensor).reshape(-1)

    def forward(self, ids: Ids) -> Value:
        num = len(self._numbers)
        return Value(ids.new(num), np.ones(num, dtype=bool), self._numbers)


class Combine(Rule):
    """Arithmetic on two tensors. Their channels go together, except for a single channel spread over all `num`.

    branch: the operand (0 or 1) whose channels do not, because they are scattered into those of the other one.
    """

    branch: int | None = None

    def __init__(self, node: fx.Node, first: fx.Node, second: fx.Node, function: Callable, num: int, axis: int,
                 may_scatter: bool) -> None:
        super().__init__(node, first, second, axis=axis)
        self._function, self._num, self.may_scatter = function, num, may_scatter

    def forward(self, ids: Ids, *values: Value) -> Value:
        first, second = (value if len(value) == self._num else value.at(np.zeros(self._num, dtype=int))
                         for value in values)
        whole = [value for i, value in enumerate(values) if len(value) == self._num and i != self.branch]
        if len(whole) == 2:
            ids.join(first.ids, second.ids)
        with np.errstate(all='ignore'):  # where a channel varies, its number means nothing
            constants = self._function(first.constants, second.constants)
        constant = first.constant & second.constant
        if self._function is operator.mul:
            for value in (first, second):
                constant = constant | (value.constant & (value.constants == 0))
        constant = constant & np.isfinite(constants)
        return Value(whole[0].ids, constant, np.where(constant, constants, 0.0))

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        # Zero times what varies is constant, and nobody needs what varies for it.
        return [varies | (read & value.constant) if len(value) == self._num else varies.any(keepdims=True)
                for value in values]


class Concat(Rule):
    def forward(self, ids: Ids, *values: Value) -> Value:
        return Value(*(np.concatenate([getattr(value, name) for value in values])
                       for name in ('ids', 'constant', 'constants')))

    def backward(self, read: np.ndarray, varies: np.ndarray, *values: Value) -> list[np.ndarray]:
        return np.split(read, np.cumsum([len(value) for value in values[:-1]]))


class Choose(Rule):
    """Channels `index` of the source, in that order."""

    def __init__(self, node: fx.Node, source: fx.Node, index: np.ndarray, axis: int) -> None:
        super().__init__(node, source, axis=axis)
        self.index = index

    def forward(self, ids: Ids, value: Value) -> Value:
        return value.at(self.index)

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        read_of_source = np.zeros(len(value), dtype=bool)
        read_of_source[self.index[read]] = True
        return [read_of_source]


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

    def forward(self, ids: Ids, value: Value) -> Value:
        view = [1] * len(self._shape)
        view[self._position] = -1
        return value.at(np.broadcast_to(np.arange(len(value)).reshape(view), self._shape).reshape(-1))

    def backward(self, read: np.ndarray, varies: np.ndarray, value: Value) -> list[np.ndarray]:
        others = tuple(dim for dim in range(len(self._shape)) if dim != self._position)
        return [read.reshape(self._shape).any(axis=others)]
