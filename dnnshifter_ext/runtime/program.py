"""The structure of a variant as a list of few, plain operations, with all shapes known. Needs no torch.

What runs a model without torch translates from these, and so need not know that a ReLU may be a module, a function or
a method. `Step.kind` is one of

    conv, linear          options: geometry (conv), low, high: what the outputs are clamped to
    clamp                 low, high
    max_pool, avg_pool    kernel, stride, padding: pairs
    reshape               shape: of one image
    mean                  axes, keepdim
    add, mul, cat (axis)
    gather, scatter_add   tensor: the channels' index; a scatter adds inputs[1] to these channels of inputs[0]
    constant              tensor: of one image's shape, or one that is broadcast to it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import json
import math

import numpy as np

from dnnshifter_ext.sparse.convolution import Geometry

Shape = tuple[int, ...]
_IN_PLACE = ('relu_', 'add_', 'mul_', 'index_add_', 'operator.iadd', 'operator.imul')


@dataclass(frozen=True)
class Step:
    """name: of the value it makes; inputs: of those it reads, 'input' being the batch; shape: of one image's value."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """steps: in order; input_shape, output_shape: of one image; output: the name of the value that is returned."""

    steps: tuple[Step, ...]
    input_shape: Shape
    output_shape: Shape
    output: str

    def last_uses(self) -> dict[str, list[str]]:
        """Name of a step -> the values that nobody reads after it."""
        last = {name: step.name for step in self.steps for name in (step.name, *step.inputs)}
        last.pop(self.output)
        found: dict[str, list[str]] = {step.name: [] for step in self.steps}
        for name, reader in last.items():
            found[reader].append(name)
        return found


@dataclass(frozen=True)
class _Reference:
    """To another node."""

    name: str


@dataclass(frozen=True)
class _Constant:
    """The tensor of this name."""

    tensor: str


_BATCH = object()  # the number of images, where a model asks for it


def program(structure: str, tensor_shapes: Mapping[str, Shape]) -> Program:
    """From the JSON text of `export.to_data` and the shapes of its tensors.

    Raises ValueError, in one line that names it, for an operation that is not supported, or when the shape of the
    inputs is not in the text.
    """
    try:
        data = json.loads(structure)
        if data['input_shape'] is None:
            raise ValueError('the structure does not say what its inputs look like')
        return _fold_clamps(_Translator(data, tensor_shapes).program())
    except ValueError:
        raise
    except Exception as error:  # a structure of any other shape than ours is refused, whatever it trips over
        raise ValueError(f'the structure is damaged ({type(error).__name__}: {error})') from error


class _Translator:
    """Node by node. `_values`: name of a node -> name of its value, a constant, a number, or a shape."""

    def __init__(self, data: dict, tensor_shapes: Mapping[str, Shape]) -> None:
        self._tensor_shapes = tensor_shapes
        self._modules = {path: (entry['type'], dict(_decode(entry['arguments'])))
                         for path, entry in data['modules'].items()}
        self._nodes = data['nodes']
        self._input_shape = tuple(data['input_shape'])
        self._values: dict[str, object] = {}
        self._shapes: dict[str, Shape] = {}
        self._steps: list[Step] = []

    def program(self) -> Program:
        for node in self._nodes:
            if node['op'] == 'output':
                [output] = self._resolve(_decode(node['args']))
                if not isinstance(output, str) or len(self._shapes[output]) != 1:
                    raise ValueError('the model returns something else than (N, outputs)')
                return Program(tuple(self._steps), self._input_shape, self._shapes[output], output)
            self._translate(node)
        raise ValueError('the structure has no output')

    def _translate(self, node: dict) -> None:
        op, name, target = node['op'], node['name'], node['target']
        arguments, options = _decode(node['args']), dict(_decode(node['kwargs']))
        if op == 'placeholder':
            if self._shapes:
                raise ValueError('the model takes more than one input')
            self._values[name], self._shapes['input'] = 'input', self._input_shape
            return
        if op == 'get_attr':
            self._values[name] = _Constant(target)
            return
        inputs = self._resolve(arguments)
        options = {key: self._resolve((value,))[0] for key, value in options.items()}
        if op == 'call_module':
            kind, options = self._modules[target][0], self._modules[target][1]
        else:
            kind = target
        translate = _TRANSLATIONS.get(kind)
        if translate is None:
            raise ValueError(f"'{name}' is a {kind}, which only the torch back end can run")
        try:
            value = translate(self, name, target, *inputs, **options)
        except (TypeError, KeyError, IndexError, AttributeError) as error:  # called in a way that has no translation
            raise ValueError(f"'{name}': this use of {kind} is not supported ({error})") from error
        self._values[name] = value
        if kind in _IN_PLACE or options.get('inplace') is True:
            changed = inputs[0]
            self._values = {key: value if old == changed else old for key, old in self._values.items()}

    def _resolve(self, arguments: tuple) -> tuple:
        """The arguments with values in the place of references to nodes."""
        return tuple(self._values[argument.name] if isinstance(argument, _Reference) else
                     type(argument)(self._resolve(tuple(argument))) if isinstance(argument, (tuple, list)) else argument
                     for argument in arguments)

    def _step(self, name: str, kind: str, inputs: tuple[str, ...], shape: Shape, options: dict | None = None) -> str:
        self._steps.append(Step(name, kind, inputs, tuple(shape), options or {}))
        self._shapes[name] = tuple(shape)
        return name

    # ---- one for each kind of operation: (name, target, arguments as torch has them) -> the value

    def conv(self, name: str, path: str, x: str, *, in_channels: int, out_channels: int, kernel_size: tuple,
             stride: tuple, padding: tuple | str, dilation: tuple, groups: int, bias: bool, padding_mode: str) -> str:
        if padding_mode != 'zeros':
            raise ValueError(f"'{name}' pads with '{padding_mode}', which only the torch back end can do")
        begin, end = _padding(padding, kernel_size, dilation)
        geometry = Geometry(in_channels, out_channels, tuple(kernel_size), tuple(stride), begin, end, tuple(dilation),
                            groups)
        _, height, width = self._shapes[x]
        return self._step(name, 'conv', (x,), (out_channels, *geometry.output_size(height, width)),
                          {'layer': path, 'geometry': geometry, 'bias': bias, 'low': -math.inf, 'high': math.inf})

    def linear(self, name: str, path: str, x: str, *, in_features: int, out_features: int, bias: bool) -> str:
        if self._shapes[x] != (in_features,):
            raise ValueError(f"'{name}' reads {self._shapes[x]}, not ({in_features},)")
        return self._step(name, 'linear', (x,), (out_features,), {
            'layer': path, 'geometry': Geometry(in_features, out_features), 'bias': bias,
            'low': -math.inf, 'high': math.inf})

    def clamp(self, name: str, target: str, x: str, low: float | None, high: float | None) -> str:
        return self._step(name, 'clamp', (x,), self._shapes[x], {
            'low': -math.inf if low is None else float(low), 'high': math.inf if high is None else float(high)})

    def max_pool(self, name: str, target: str, x: str, kernel_size: object, stride: object = None, padding: object = 0,
                 dilation: object = 1, ceil_mode: bool = False, return_indices: bool = False) -> str:
        if _pair(dilation) != (1, 1) or return_indices:
            raise ValueError(f"'{name}': a max pool with dilation or indices is not supported")
        return self._pool(name, 'max_pool', x, kernel_size, stride, padding, ceil_mode)

    def avg_pool(self, name: str, target: str, x: str, kernel_size: object, stride: object = None, padding: object = 0,
                 ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None) -> str:
        if divisor_override is not None or not (count_include_pad or _pair(padding) == (0, 0)):
            raise ValueError(f"'{name}': an average pool that does not divide by the kernel's size is not supported")
        return self._pool(name, 'avg_pool', x, kernel_size, stride, padding, ceil_mode)

    def adaptive_pool(self, kind: str, name: str, x: str, output_size: object) -> str:
        sizes = self._shapes[x][1:]
        wanted = tuple(size if part is None else part for part, size in zip(_pair(output_size), sizes, strict=True))
        if any(size % part for size, part in zip(sizes, wanted, strict=True)):
            raise ValueError(f"'{name}': a pool from {sizes} to {wanted} is not supported")
        kernel = tuple(size // part for size, part in zip(sizes, wanted, strict=True))
        return self._pool(name, kind, x, kernel, kernel, 0, False)

    def _pool(self, name: str, kind: str, x: str, kernel: object, stride: object, padding: object,
              ceil_mode: bool) -> str:
        kernel, padding = _pair(kernel), _pair(padding)
        stride = kernel if stride is None or stride == [] else _pair(stride)
        channels, *sizes = self._shapes[x]
        spare = [size + 2 * p - k for size, p, k in zip(sizes, padding, kernel, strict=True)]
        if min(spare) < 0 or (ceil_mode and any(rest % step for rest, step in zip(spare, stride, strict=True))):
            raise ValueError(f"'{name}': a pool of {kernel} that does not fit {tuple(sizes)} is not supported")
        shape = (channels, *(rest // step + 1 for rest, step in zip(spare, stride, strict=True)))
        return self._step(name, kind, (x,), shape, {'kernel': kernel, 'stride': stride, 'padding': padding})

    def flatten(self, name: str, target: str, x: str, start_dim: int = 0, end_dim: int = -1) -> str:
        shape = self._shapes[x]
        start, end = self._axis(x, start_dim), self._axis(x, end_dim)
        return self._reshape(name, x, (*shape[:start], math.prod(shape[start:end + 1]), *shape[end + 1:]))

    def reshape(self, name: str, target: str, x: str, *sizes: object) -> str:
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        first, *rest = sizes
        size = math.prod(self._shapes[x])
        if rest.count(-1) == 1 and first is _BATCH:
            rest[rest.index(-1)] = size // -math.prod(rest)
        if not (first is _BATCH or first == -1) or -1 in rest or math.prod(rest) != size:
            raise ValueError(f"'{name}' mixes images, which only the torch back end can do")
        return self._reshape(name, x, tuple(rest))

    def _reshape(self, name: str, x: str, shape: Shape) -> str:
        return x if shape == self._shapes[x] else self._step(name, 'reshape', (x,), shape, {'shape': shape})

    def size(self, name: str, target: str, x: str, dim: int | None = None) -> object:
        sizes = (_BATCH, *self._shapes[x])
        return sizes if dim is None else sizes[dim]

    def attribute(self, name: str, target: str, x: str, attribute: str) -> object:
        return self.size(name, target, x)

    def item(self, name: str, target: str, values: object, index: object) -> object:
        if isinstance(values, str):
            raise ValueError(f"'{name}' takes a part of a tensor, which only the torch back end can do")
        return values[index]

    def mean(self, name: str, target: str, x: str, dim: object, keepdim: bool = False) -> str:
        dims = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
        axes = tuple(sorted(self._axis(x, one) for one in dims))
        shape = [1 if axis in axes else size for axis, size in enumerate(self._shapes[x])]
        if not keepdim:
            shape = [size for axis, size in enumerate(shape) if axis not in axes]
        return self._step(name, 'mean', (x,), tuple(shape), {'axes': axes, 'keepdim': keepdim})

    def elementwise(self, kind: str, name: str, x: str, y: str | _Constant) -> str:
        if isinstance(y, _Constant):
            shape = self._tensor_shapes[y.tensor]
            if len(shape) == len(self._shapes[x]) + 1 and shape[0] == 1:
                shape = shape[1:]
            y = self._step(f'{name}_constant', 'constant', (), shape, {'tensor': y.tensor})
        return self._step(name, kind, (x, y), np.broadcast_shapes(self._shapes[x], self._shapes[y]))

    def cat(self, name: str, target: str, tensors: tuple, dim: int = 0) -> str:
        axis = self._axis(tensors[0], dim)
        shapes = [self._shapes[x] for x in tensors]
        shape = (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1:])
        return self._step(name, 'cat', tuple(tensors), shape, {'axis': axis})

    def gather(self, name: str, target: str, x: str, dim: int, index: _Constant) -> str:
        self._check_channels(name, x, dim)
        shape = (*self._tensor_shapes[index.tensor], *self._shapes[x][1:])
        return self._step(name, 'gather', (x,), shape, {'tensor': index.tensor})

    def scatter_add(self, name: str, target: str, x: str, dim: int, index: _Constant, source: str) -> str:
        self._check_channels(name, x, dim)
        return self._step(name, 'scatter_add', (x, source), self._shapes[x], {'tensor': index.tensor})

    def _check_channels(self, name: str, x: str, dim: int) -> None:
        if self._axis(x, dim) != 0:
            raise ValueError(f"'{name}' selects something else than channels, which only the torch back end can do")

    def _axis(self, x: str, dim: int) -> int:
        """Among the dimensions of one image. ValueError for that of the batch."""
        num = len(self._shapes[x]) + 1
        axis = dim + num if dim < 0 else dim
        if not 1 <= axis < num:
            raise ValueError(f'an operation over dimension {dim} mixes images, which only the torch back end can do')
        return axis - 1


def _clamping(low: float | None, high: float | None):
    """The translation of an activation that is a clamp; what else it is called with is whether to work in place."""
    return lambda self, name, target, x, inplace=False: self.clamp(name, target, x, low, high)


def _hardtanh(self: _Translator, name: str, target: str, x: str, min_val: float = -1.0, max_val: float = 1.0,
              inplace: bool = False) -> str:
    return self.clamp(name, target, x, min_val, max_val)


def _clamp(self: _Translator, name: str, target: str, x: str, min: float | None = None,  # noqa: A002
           max: float | None = None) -> str:  # noqa: A002
    return self.clamp(name, target, x, min, max)


def _nothing(self: _Translator, name: str, target: str, x: str, *args: object, **options: object) -> str:
    return x


def _elementwise(kind: str):
    return lambda self, name, target, x, y: (
        self.elementwise(kind, name, y, x) if isinstance(x, _Constant) else self.elementwise(kind, name, x, y))


def _adaptive(kind: str):
    return lambda self, name, target, x, output_size: self.adaptive_pool(kind, name, x, output_size)


# Type of a module, or name of a function or method -> how it is translated.
_TRANSLATIONS = {
    'Conv2d': _Translator.conv,
    'Linear': _Translator.linear,
    **dict.fromkeys(('ReLU', 'functional.relu', 'torch.relu', 'relu', 'relu_'), _clamping(0.0, None)),
    **dict.fromkeys(('ReLU6', 'functional.relu6'), _clamping(0.0, 6.0)),
    **dict.fromkeys(('Hardtanh', 'functional.hardtanh'), _hardtanh),
    'torch.clamp': _clamp,
    **dict.fromkeys(('MaxPool2d', 'functional.max_pool2d'), _Translator.max_pool),
    **dict.fromkeys(('AvgPool2d', 'functional.avg_pool2d'), _Translator.avg_pool),
    **dict.fromkeys(('AdaptiveAvgPool2d', 'functional.adaptive_avg_pool2d'), _adaptive('avg_pool')),
    **dict.fromkeys(('AdaptiveMaxPool2d', 'functional.adaptive_max_pool2d'), _adaptive('max_pool')),
    **dict.fromkeys(('Identity', 'Dropout', 'Dropout1d', 'Dropout2d', 'Dropout3d', 'functional.dropout', 'contiguous'),
                    _nothing),
    **dict.fromkeys(('Flatten', 'torch.flatten', 'flatten'), _Translator.flatten),
    **dict.fromkeys(('torch.reshape', 'reshape', 'view'), _Translator.reshape),
    'size': _Translator.size,
    'getattr': _Translator.attribute,
    'operator.getitem': _Translator.item,
    **dict.fromkeys(('torch.mean', 'mean'), _Translator.mean),
    **dict.fromkeys(('operator.add', 'operator.iadd', 'torch.add', 'add', 'add_'), _elementwise('add')),
    **dict.fromkeys(('operator.mul', 'operator.imul', 'torch.mul', 'mul', 'mul_'), _elementwise('mul')),
    'torch.cat': _Translator.cat,
    'torch.index_select': _Translator.gather,
    **dict.fromkeys(('torch.index_add', 'index_add_'), _Translator.scatter_add),
}


def _fold_clamps(whole: Program) -> Program:
    """A clamp that alone reads a convolution or linear layer becomes part of it."""
    num_readers = Counter(name for step in whole.steps for name in step.inputs)
    num_readers[whole.output] += 1
    steps = {step.name: step for step in whole.steps}
    renamed: dict[str, str] = {}
    for step in whole.steps:
        step = replace(step, inputs=tuple(renamed.get(name, name) for name in step.inputs))
        steps[step.name] = step
        layer = steps.get(step.inputs[0]) if step.kind == 'clamp' else None
        if layer is not None and layer.options.get('low') == -math.inf and layer.options['high'] == math.inf and (
                layer.kind in ('conv', 'linear') and num_readers[layer.name] == 1):
            steps[layer.name] = replace(layer, options={
                **layer.options, 'low': step.options['low'], 'high': step.options['high']})
            num_readers[layer.name] = num_readers[step.name]
            renamed[step.name] = layer.name
            del steps[step.name]
    return replace(whole, steps=tuple(steps.values()), output=renamed.get(whole.output, whole.output))


def _padding(padding: object, kernel: tuple, dilation: tuple) -> tuple[tuple, tuple]:
    """(above and to the left, below and to the right)"""
    if not isinstance(padding, str):
        return _pair(padding), _pair(padding)
    total = [step * (size - 1) * (padding == 'same') for size, step in zip(kernel, dilation, strict=True)]
    return tuple(size // 2 for size in total), tuple(size - size // 2 for size in total)


def _pair(value: object) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _decode(value: object) -> object:
    """What `export` made into JSON. ValueError for what has no use here."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == 'node':
        return _Reference(content)
    if kind == 'tuple':
        return tuple(_decode(item) for item in content)
    if kind == 'dict':
        return {key: _decode(item) for key, item in content.items()}
    raise ValueError(f"an argument of kind '{kind}' is something that only the torch back end can do")
