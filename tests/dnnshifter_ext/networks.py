"""Networks as plain descriptions, which can be drawn, printed, and pasted: Network(...).build() is the sparse model.

A step knows how many channels it leaves (`channels`) and makes its module (`build`), from the dimensions of the image
and the channels it gets. Steps in a tuple follow each other; `Sum`, `Cat`, `Split` and `Twice` hold such tuples.
"""

# n = length of the shortest side of an image

from __future__ import annotations

from collections.abc import Callable
import copy
from dataclasses import dataclass, fields
import operator

import torch
from torch import nn
from torch.nn import functional as F

from tests.dnnshifter_ext.sparsity import Sparsity, make_sparse

IMAGE_CHANNELS = 3
# Length, height x width, depth x height x width: at the example's resolution, and at one the converter has not seen.
RESOLUTIONS = {1: ((19,), (24,)), 2: ((13, 11), (16, 21)), 3: ((7, 6, 8), (9, 8, 11))}

# Of norms that measure the values themselves: where those are all the same, a small one magnifies rounding errors.
EPS = 0.1


class Apply(nn.Module):
    """A function of one tensor, which torch.fx traces through."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def of(dims: int, kind: str) -> type[nn.Module]:
    """nn.Conv2d for (2, 'Conv')."""
    return getattr(nn, f'{kind}{dims}d')


# Name -> the module, from the dimensions of the image and the channels. All leave shape and number of channels.
ACTIVATIONS: dict[str, Callable[[int, int], nn.Module]] = {
    'relu': lambda dims, channels: nn.ReLU(),
    'relu, in place': lambda dims, channels: nn.ReLU(inplace=True),
    'F.relu': lambda dims, channels: Apply(F.relu),
    'F.relu, in place': lambda dims, channels: Apply(lambda x: F.relu(x, inplace=True)),
    'x.relu_()': lambda dims, channels: Apply(lambda x: x.relu_()),
    'relu6': lambda dims, channels: nn.ReLU6(),
    'leaky relu': lambda dims, channels: nn.LeakyReLU(0.1),
    'prelu': lambda dims, channels: nn.PReLU(),
    'prelu of each channel': lambda dims, channels: nn.PReLU(channels),
    'silu, in place': lambda dims, channels: nn.SiLU(inplace=True),
    'hardswish': lambda dims, channels: nn.Hardswish(),
    'gelu': lambda dims, channels: nn.GELU(),
    'elu': lambda dims, channels: nn.ELU(),
    'sigmoid': lambda dims, channels: nn.Sigmoid(),  # f(0) != 0, as of the next
    'softplus': lambda dims, channels: nn.Softplus(),
    'hardsigmoid': lambda dims, channels: Apply(F.hardsigmoid),
    'cos': lambda dims, channels: Apply(torch.cos),
    '2 - x / 3': lambda dims, channels: Apply(lambda x: 2 - x / 3),
    'x.mul_(-1)': lambda dims, channels: Apply(lambda x: x.mul_(-1)),
    'x * x': lambda dims, channels: Apply(lambda x: x * x),
    'dropout': lambda dims, channels: nn.Dropout(0.5),
}
# The same for pools of images with sides of at least 3.
POOLS: dict[str, Callable[[int, int], nn.Module]] = {
    'max pool': lambda dims, channels: of(dims, 'MaxPool')(3, 1, 1),
    'average pool': lambda dims, channels: of(dims, 'AvgPool')(3, 1, 1),
    'average pool of the image alone': lambda dims, channels: of(dims, 'AvgPool')(3, 1, 1, count_include_pad=False),
}
# The same for what mixes the channels: the converter must leave all of them.
BARRIERS: dict[str, Callable[[int, int], nn.Module]] = {
    'softmax': lambda dims, channels: nn.Softmax(dim=1),
    'layer norm': lambda dims, channels: nn.GroupNorm(1, channels, EPS),
    'local response norm': lambda dims, channels: nn.LocalResponseNorm(3),
    'x - max': lambda dims, channels: Apply(lambda x: x - x.max(1, keepdim=True)[0]),
    'cumsum': lambda dims, channels: Apply(lambda x: x.cumsum(1)),
    'flip': lambda dims, channels: Apply(lambda x: x.flip(1)),
    'transposed convolution': lambda dims, channels: of(dims, 'ConvTranspose')(channels, channels, 3, padding=1),
}


@dataclass(frozen=True)
class Resizing:
    """A module, from the dimensions of the image; the side it leaves of a side n, and the shortest n it accepts."""

    make: Callable[[int], nn.Module]
    side: Callable[[int], int]
    shortest: int = 1


RESIZINGS = {
    'max pool': Resizing(lambda dims: of(dims, 'MaxPool')(2), lambda n: n // 2, 2),
    'average pool, ceil': Resizing(lambda dims: of(dims, 'AvgPool')(3, 2, 1, ceil_mode=True), lambda n: n // 2 + 1, 3),
    'adaptive max pool': Resizing(lambda dims: of(dims, 'AdaptiveMaxPool')(5), lambda n: 5),
    'zero pad': Resizing(lambda dims: of(dims, 'ZeroPad')(1), lambda n: n + 2),
    'pad with 0.5': Resizing(lambda dims: Apply(lambda x: F.pad(x, (1, 0) * dims, value=0.5)), lambda n: n + 1),
    'reflection pad': Resizing(lambda dims: of(dims, 'ReflectionPad')(1), lambda n: n + 2, 2),
    'nearest': Resizing(lambda dims: Apply(lambda x: F.interpolate(x, size=(9, 7, 8)[:dims])), lambda n: 7),
    'linear': Resizing(lambda dims: nn.Upsample((9, 7, 8)[:dims], mode=('linear', 'bilinear', 'trilinear')[dims - 1]),
                       lambda n: 7),
    'slice': Resizing(lambda dims: Apply(lambda x: x[..., 1:]), lambda n: n - 1, 2),
}


class Description:
    """Prints as it would be typed, without what is as usual; hypothesis prints it so, too."""

    def __repr__(self) -> str:
        given = (f'{field.name}={getattr(self, field.name)!r}' for field in fields(self)
                 if getattr(self, field.name) != field.default)
        return f'{type(self).__name__}({", ".join(given)})'

    def _repr_pretty_(self, printer, cycle) -> None:
        printer.text(repr(self))


class Step(Description):
    """A part of a network. Most leave the number of channels."""

    def channels(self, channels: int) -> int:
        return channels

    def build(self, dims: int, channels: int) -> nn.Module:
        raise NotImplementedError


Steps = tuple[Step, ...]


@dataclass(frozen=True, repr=False)
class Act(Step):
    """One of ACTIVATIONS, POOLS or BARRIERS."""

    name: str

    def build(self, dims: int, channels: int) -> nn.Module:
        return (ACTIVATIONS | POOLS | BARRIERS)[self.name](dims, channels)


@dataclass(frozen=True, repr=False)
class Resize(Step):
    """One of RESIZINGS."""

    name: str

    def build(self, dims: int, channels: int) -> nn.Module:
        return RESIZINGS[self.name].make(dims)


@dataclass(frozen=True, repr=False)
class Conv(Step):
    outputs: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: int | str = 0
    padding_mode: str = 'zeros'
    bias: bool = True

    def channels(self, channels: int) -> int:
        return self.outputs

    def side(self, n: int) -> int:
        if self.padding == 'same':
            return n
        padding = 0 if self.padding == 'valid' else self.padding
        return (n + 2 * padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def build(self, dims: int, channels: int) -> nn.Module:
        return of(dims, 'Conv')(channels, self.outputs, self.kernel, self.stride, self.padding, self.dilation,
                                self.groups, self.bias, self.padding_mode)


@dataclass(frozen=True, repr=False)
class Norm(Step):
    """A batch norm; without `running` it takes the statistics of the batch, in evaluation mode too."""

    affine: bool = True
    running: bool = True

    def build(self, dims: int, channels: int) -> nn.Module:
        return of(dims, 'BatchNorm')(channels, 1e-5 if self.running else EPS, affine=self.affine,
                                     track_running_stats=self.running)


@dataclass(frozen=True, repr=False)
class Last(Step):
    """Linear layers on channels that are the last dimension for a moment, as in ConvNeXt; `hidden` is between two."""

    outputs: int
    hidden: int = 0
    norm: bool = False

    def channels(self, channels: int) -> int:
        return self.outputs

    def build(self, dims: int, channels: int) -> nn.Module:
        forth, back = (0, *range(2, dims + 2), 1), (0, dims + 1, *range(1, dims + 1))
        layers = [nn.LayerNorm(channels, EPS)] if self.norm else []
        if self.hidden:
            layers += [nn.Linear(channels, self.hidden), nn.GELU()]
        return nn.Sequential(Apply(lambda x: x.permute(forth)), *layers,
                             nn.Linear(self.hidden or channels, self.outputs), Apply(lambda x: torch.permute(x, back)))


@dataclass(frozen=True, repr=False)
class Learned(Step):
    """A parameter with one number per channel: x * p or x + p."""

    arithmetic: str
    batched: bool = False

    def build(self, dims: int, channels: int) -> nn.Module:
        return _Learned(ARITHMETIC[self.arithmetic], (1,) * self.batched + (channels,) + (1,) * dims)


class _Learned(nn.Module):
    def __init__(self, function: Callable, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.function, self.numbers = function, nn.Parameter(torch.empty(shape))

    def forward(self, x):
        return self.function(x, self.numbers)


# Not +=, which torch.fx takes for +: where another reader sees the sum, what it traces is not the model.
ARITHMETIC: dict[str, Callable] = {
    '+': operator.add, '-': operator.sub, 'x.add_(y)': lambda x, y: x.add_(y),
    'torch.add': torch.add, '*': operator.mul, 'torch.mul': torch.mul,
    'x + 2 y': lambda x, y: torch.add(x, y, alpha=2), 'torch.maximum': torch.maximum,
}


@dataclass(frozen=True, repr=False)
class Sum(Step):
    """All bodies on the same input, and their results combined; () is the identity: a skip connection."""

    bodies: tuple[Steps, ...]
    arithmetic: str = '+'

    def channels(self, channels: int) -> int:
        return channels_after(self.bodies[0], channels)

    def build(self, dims: int, channels: int) -> nn.Module:
        return _Branches(dims, channels, self.bodies, self._combined)

    def _combined(self, values: list) -> object:
        total, *rest = values
        for value in rest:
            total = ARITHMETIC[self.arithmetic](total, value)
        return total


@dataclass(frozen=True, repr=False)
class Cat(Step):
    """All bodies on the same input, and their results side by side."""

    bodies: tuple[Steps, ...]

    def channels(self, channels: int) -> int:
        return sum(channels_after(body, channels) for body in self.bodies)

    def build(self, dims: int, channels: int) -> nn.Module:
        return _Branches(dims, channels, self.bodies, lambda values: torch.cat(values, 1))


class _Branches(nn.Module):
    def __init__(self, dims: int, channels: int, bodies: tuple[Steps, ...], join: Callable) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(sequence(dims, channels, body) for body in bodies)
        self.join = join

    def forward(self, x):
        return self.join([body(x) for body in self.bodies])


# Name -> (x, size of the first part) -> the two parts. The sizes of chunk and split are those of two halves.
SPLITS: dict[str, Callable] = {
    'x.chunk': lambda x, first: x.chunk(2, dim=1),
    'torch.split': lambda x, first: torch.split(x, first, dim=1),
    'x.split, sizes': lambda x, first, rest: x.split([first, rest], 1),
    'slices': lambda x, first: (x[:, :first], x[:, first:]),
}


@dataclass(frozen=True, repr=False)
class Split(Step):
    """The channels in two parts, each with its own body, and the results side by side."""

    how: str
    first: int
    bodies: tuple[Steps, Steps]

    def channels(self, channels: int) -> int:
        return channels_after(self.bodies[0], self.first) + channels_after(self.bodies[1], channels - self.first)

    def build(self, dims: int, channels: int) -> nn.Module:
        return _Split(dims, channels, self)


class _Split(nn.Module):
    def __init__(self, dims: int, channels: int, split: Split) -> None:
        super().__init__()
        rest = channels - split.first
        self.sizes = (split.first, rest) if split.how == 'x.split, sizes' else (split.first,)
        self.how = SPLITS[split.how]
        self.bodies = nn.ModuleList(sequence(dims, size, body)
                                    for size, body in zip((split.first, rest), split.bodies, strict=True))

    def forward(self, x):
        first, second = self.how(x, *self.sizes)
        return torch.cat((self.bodies[0](first), self.bodies[1](second)), dim=1)


@dataclass(frozen=True, repr=False)
class Shuffle(Step):
    groups: int
    contiguous: bool = True

    def build(self, dims: int, channels: int) -> nn.Module:
        def shuffle(x):
            batch, image = x.size(0), [x.size(dim) for dim in range(2, dims + 2)]
            x = x.view(batch, self.groups, x.size(1) // self.groups, *image) if self.contiguous else \
                x.reshape(batch, self.groups, channels // self.groups, *image)
            x = torch.transpose(x, 1, 2)
            return x.contiguous().view(batch, -1, *image) if self.contiguous else x.reshape(batch, channels, *image)
        return Apply(shuffle)


@dataclass(frozen=True, repr=False)
class Gate(Step):
    """x times what a small network makes of x: for each channel (squeeze and excitation), or for each position."""

    per_channel: bool
    reduced: int = 2
    gate_first: bool = False

    def build(self, dims: int, channels: int) -> nn.Module:
        return _Gate(dims, channels, self)


class _Gate(nn.Module):
    def __init__(self, dims: int, channels: int, gate: Gate) -> None:
        super().__init__()
        self.down = of(dims, 'Conv')(channels, gate.reduced, 1)
        self.up = of(dims, 'Conv')(gate.reduced, channels if gate.per_channel else 1, 1)
        self.image = tuple(range(2, dims + 2)) if gate.per_channel else ()
        self.gate_first = gate.gate_first

    def forward(self, x):
        squeezed = x.mean(self.image, keepdim=True) if self.image else x
        gate = torch.sigmoid(self.up(F.relu(self.down(squeezed))))
        return gate * x if self.gate_first else x * gate


@dataclass(frozen=True, repr=False)
class Twice(Step):
    """The same body twice. shared: the 'module', under one name or two ('alias'), or just its 'tensors'."""

    body: Steps
    shared: str = 'module'
    chained: bool = True

    def build(self, dims: int, channels: int) -> nn.Module:
        return _Twice(dims, channels, self)


class _Twice(nn.Module):
    def __init__(self, dims: int, channels: int, twice: Twice) -> None:
        super().__init__()
        self.first = sequence(dims, channels, twice.body)
        self.second = copy.deepcopy(self.first, dict(_tensors_by_id(self.first))) if twice.shared == 'tensors' \
            else self.first
        self.first_name_only, self.chained = twice.shared == 'module', twice.chained

    def forward(self, x):
        second = self.first if self.first_name_only else self.second
        return second(self.first(x)) if self.chained else self.first(x) + second(x / 2)


def _tensors_by_id(module: nn.Module):
    """What `deepcopy` takes for already copied."""
    return ((id(tensor), tensor) for tensor in (*module.parameters(), *module.buffers()))


# Name -> the module that flattens, from the number of features it leaves.
FLATTENINGS: dict[str, Callable[[int], nn.Module]] = {
    'torch.flatten': lambda features: Apply(lambda x: torch.flatten(x, 1)),
    'nn.Flatten': lambda features: nn.Flatten(),
    'x.view': lambda features: Apply(lambda x: x.contiguous().view(x.size(0), -1)),
    'x.reshape(-1, features)': lambda features: Apply(lambda x: x.reshape(-1, features)),
}


@dataclass(frozen=True, repr=False)
class Head(Description):
    """An output of the network, made of the value after step number `after`.

    kind: 'features' (pooled to `side`, flattened, linear layers), 'map' (a 1x1 convolution) or 'raw' (the value).
    """

    after: int
    kind: str = 'features'
    side: int = 1
    flattening: str = 'torch.flatten'
    hidden: int = 0
    norm: bool = False
    activation: str = 'relu'

    def build(self, dims: int, channels: int) -> nn.Module:
        if self.kind == 'raw':
            return nn.Identity()
        if self.kind == 'map':
            return of(dims, 'Conv')(channels, 4, 1)
        features = channels * self.side ** dims
        layers = [of(dims, 'AdaptiveAvgPool')(self.side), FLATTENINGS[self.flattening](features)]
        if self.hidden:
            layers += [nn.Linear(features, self.hidden), *[nn.BatchNorm1d(self.hidden)] * self.norm,
                       ACTIVATIONS[self.activation](0, self.hidden)]
        return nn.Sequential(*layers, nn.Linear(self.hidden or features, 4))


@dataclass(frozen=True, repr=False)
class Network(Description):
    """A network on images of `dims` dimensions and 3 channels; its outputs, if several, come as `container`."""

    dims: int
    steps: Steps
    heads: tuple[Head, ...]
    container: str
    sparsity: Sparsity

    def build(self) -> nn.Module:
        """The sparse model, in float64 and evaluation mode."""
        return make_sparse(_Network(self), self.sparsity)

    def images(self) -> list[torch.Tensor]:
        """Three images at each of the two resolutions."""
        generator = torch.Generator().manual_seed(self.sparsity.seed)
        return [torch.randn(3, IMAGE_CHANNELS, *sides, generator=generator, dtype=torch.float64)
                for sides in RESOLUTIONS[self.dims]]


CONTAINERS: dict[str, Callable] = {
    'tuple': tuple, 'list': list, 'dict': lambda outputs: {f'output {i}': y for i, y in enumerate(outputs)},
}


class _Network(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.steps = sequence(network.dims, IMAGE_CHANNELS, network.steps)
        self.heads = nn.ModuleList(
            head.build(network.dims, channels_after(network.steps[:head.after], IMAGE_CHANNELS))
            for head in network.heads)
        self.after = [head.after for head in network.heads]
        self.container = CONTAINERS[network.container]

    def forward(self, x):
        values = [x]
        for step in self.steps:
            values.append(step(values[-1]))
        outputs = [head(values[after]) for head, after in zip(self.heads, self.after)]
        return outputs[0] if len(outputs) == 1 else self.container(outputs)


def sequence(dims: int, channels: int, steps: Steps) -> nn.Sequential:
    modules = []
    for step in steps:
        modules.append(step.build(dims, channels))
        channels = step.channels(channels)
    return nn.Sequential(*modules)


def channels_after(steps: Steps, channels: int) -> int:
    for step in steps:
        channels = step.channels(channels)
    return channels
