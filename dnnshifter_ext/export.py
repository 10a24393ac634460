"""A model as one file: its structure as JSON text, and its tensors. Reading it takes torch and nothing else.

The file is written by torch.save and read with weights_only=True, so that nothing in it is ever unpickled as
code. The structure names modules, functions and methods out of the allow-lists in `ops`; a name that is not
there, or text that is no plain identifier, is refused before any code is generated from the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import io
import json
import os
import pathlib
import re
import zipfile

import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.graph import assemble, capture
from dnnshifter_ext.sparse.hybrid import InBlocks
from dnnshifter_ext.sparse.layers import SparseLayer

FORMAT = 'dnnshifter-model'
VERSION = 1

_OPS = ('placeholder', 'get_attr', 'call_module', 'call_function', 'call_method', 'output')
_MODULE_TYPES = {kind.__name__: kind for kind in ops.MODULE_ARGUMENTS}
_DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.uint8, torch.bool)}
_IDENTIFIER = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_RESERVED = frozenset((*dir(fx.GraphModule), *dir(nn.Module())))
_PATH_PART = re.compile(r'[A-Za-z0-9_-]+')


def save(model: nn.Module, path: str | os.PathLike, input_shape: Sequence[int] | None = None) -> None:
    """Writes the model to `path`: first under a temporary name beside it, so that a reader sees old or new.

    input_shape: of one input, for who reads the file; by default what a loaded model was saved with, if anything.
    Raises ValueError for a model that torch.fx cannot trace or that has an operation outside the allow-lists, and
    OSError, with the old file intact, when the new one cannot be written.
    """
    path = pathlib.Path(path)
    content = to_bytes(model, input_shape)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error  # not the temporary name
    finally:
        with contextlib.suppress(OSError):  # gone, in the good case
            temporary.unlink()


def load(path: str | os.PathLike) -> fx.GraphModule | InBlocks:
    """The model in the file, on the CPU and in evaluation mode. Its meta['input_shape'] is of one input, or None.

    With sparse layers it is ready to answer: the kernels are there, compiled now if they never were.

    Raises ValueError, in one line with the path, for a file that is truncated, damaged, of another format, or
    that names an unknown operation; FileNotFoundError if there is none.
    """
    content = pathlib.Path(path).read_bytes()
    try:
        _check_archive(content)
        data = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the archive reader or the unpickler
        raise ValueError(f'{path}: not a model file, or damaged ({_first_line(error)})') from error
    try:
        return from_data(data)
    except ValueError as error:
        raise ValueError(f'{path}: {_first_line(error)}') from error


def to_bytes(model: nn.Module, input_shape: Sequence[int] | None = None) -> bytes:
    """The content of the file that `save` writes. Raises ValueError as that does."""
    buffer = io.BytesIO()  # torch.save hides the reason if it cannot write to a file
    torch.save(to_data(model, input_shape), buffer)
    return buffer.getvalue()


def to_data(model: nn.Module, input_shape: Sequence[int] | None = None) -> dict:
    """The model as {'format', 'version', 'structure': JSON text, 'tensors': {name: tensor}}."""
    in_blocks = isinstance(model, InBlocks)
    inner = model.model if in_blocks else model
    graph_module = inner if isinstance(inner, fx.GraphModule) else capture(inner)
    modules: dict[str, dict] = {}
    attributes: dict[str, str] = {}
    tensors: dict[str, torch.Tensor] = {}
    nodes = []
    for node in graph_module.graph.nodes:
        target = node.target
        if node.op in ('call_module', 'get_attr'):
            _check_path(target)
        if node.op == 'call_module' and target not in modules:
            module = graph_module.get_submodule(target)
            try:
                modules[target] = {'type': type(module).__name__, 'arguments': _encode(ops.arguments(module))}
            except ValueError as error:
                raise ValueError(f"cannot store layer '{target}': {error}") from error
            tensors |= {f'{target}.{name}': _compact(tensor) for name, tensor in module.state_dict().items()}
        elif node.op == 'get_attr':
            parent, _, name = target.rpartition('.')
            value = getattr(graph_module.get_submodule(parent), name)
            attributes[target] = 'parameter' if isinstance(value, nn.Parameter) else 'buffer'
            tensors[target] = _compact(value.detach())
        elif node.op == 'call_function':
            name = ops.name_of(target)
            if name is None or (target is getattr and node.args[1:] != ('shape',)):
                raise ValueError(f"cannot store '{node.name}': "
                                 f"function '{getattr(target, '__name__', target)}' is not supported")
            target = name
        elif node.op == 'placeholder' and not _IDENTIFIER.fullmatch(target):
            raise ValueError(f"cannot store the argument '{target}': only plain arguments are supported")
        elif node.op == 'call_method' and target not in ops.METHODS:
            raise ValueError(f"cannot store '{node.name}': method '{target}' is not supported")
        nodes.append({'op': node.op, 'name': node.name, 'target': target,
                      'args': _encode(tuple(node.args)), 'kwargs': _encode(dict(node.kwargs))})
    if input_shape is None:
        input_shape = graph_module.meta.get('input_shape')
    structure = {'nodes': nodes, 'modules': modules, 'attributes': attributes, 'in_blocks': in_blocks,
                 'input_shape': None if input_shape is None else _input_shape(list(input_shape))}
    return {'format': FORMAT, 'version': VERSION, 'structure': json.dumps(structure), 'tensors': tensors}


def from_data(data: object) -> fx.GraphModule | InBlocks:
    """The inverse of `to_data`; ValueError for anything that `to_data` did not make."""
    if not isinstance(data, dict) or data.get('format') != FORMAT:
        raise ValueError(f"not a model file: its format is not '{FORMAT}'")
    if data.get('version') != VERSION:
        raise ValueError(f"format version {data.get('version')!r} is not supported, only {VERSION}")
    try:
        structure, tensors = json.loads(data['structure']), data['tensors']
        modules, attributes = structure['modules'].items(), structure['attributes'].items()
        parts = {path: _build_module(path, entry, tensors) for path, entry in modules}
        parts |= {path: _build_attribute(path, kind, tensors) for path, kind in attributes}
        graph = _build_graph(structure['nodes'], parts)
        model = assemble(parts, graph, 'GraphModule')
        model.meta['input_shape'] = _input_shape(structure.get('input_shape'))
        return InBlocks(model).eval() if structure.get('in_blocks') else model
    except ValueError:
        raise
    except Exception as error:  # a structure of any other shape than ours is refused, whatever it trips over
        raise ValueError(f'the structure is damaged ({_first_line(error)})') from error


def _input_shape(sizes: list[int] | None) -> tuple[int, ...] | None:
    if sizes is None:
        return None
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f'{sizes!r} is not the shape of an input')
    return tuple(sizes)


def _build_module(path: str, entry: dict, tensors: dict) -> nn.Module:
    _check_path(path)
    if entry['type'] not in _MODULE_TYPES:
        raise ValueError(f"layer '{path}': module type '{entry['type']}' is not supported")
    kind = _MODULE_TYPES[entry['type']]
    values = _decode(entry['arguments'], {})
    if set(values) != set(ops.MODULE_ARGUMENTS[kind]):
        raise ValueError(f"layer '{path}': wrong arguments for {entry['type']}: {sorted(values)}")
    module = ops.construct(kind, values)
    names = list(module.state_dict())
    state = {name: tensors.get(f'{path}.{name}') for name in names}
    for name, expected in module.state_dict().items():
        if not isinstance(state[name], torch.Tensor) or state[name].shape != expected.shape:
            raise ValueError(
                f"layer '{path}': tensor '{name}' is missing or not of shape {tuple(expected.shape)}")
    module.load_state_dict(state, assign=True)
    if isinstance(module, SparseLayer):
        try:
            module.prepare()  # nothing in a file may make a kernel read past the end
        except ValueError as error:
            raise ValueError(f"layer '{path}': {error}") from error
    return module


def _build_attribute(path: str, kind: str, tensors: dict) -> torch.Tensor:
    _check_path(path)
    if not isinstance(tensors.get(path), torch.Tensor):
        raise ValueError(f"tensor '{path}' is missing")
    return nn.Parameter(tensors[path], requires_grad=False) if kind == 'parameter' else tensors[path]


def _build_graph(entries: list[dict], parts: dict[str, nn.Module | torch.Tensor]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in entries:
        op, name, target = entry['op'], entry['name'], entry['target']
        if op not in _OPS or not _IDENTIFIER.fullmatch(name):
            raise ValueError(f'the structure is damaged: {op!r} {name!r}')
        args, kwargs = _decode(entry['args'], nodes), _decode(entry['kwargs'], nodes)
        if not isinstance(args, tuple) or not all(_IDENTIFIER.fullmatch(key) for key in kwargs):
            raise ValueError(f"the arguments of '{name}' are damaged")
        nodes[name] = graph.create_node(op, _target(op, name, target, args, parts), args, kwargs, name)
    graph.lint()
    return graph


def _target(
    op: str, name: str, target: str, args: tuple, parts: dict[str, nn.Module | torch.Tensor],
) -> str | Callable:
    """What the node refers to, if it is allowed."""
    if op in ('call_module', 'get_attr'):
        if target not in parts or isinstance(parts[target], nn.Module) != (op == 'call_module'):
            raise ValueError(f"'{name}' refers to '{target}', which is not in the file")
    elif op == 'call_function':
        function = ops.function_named(target)
        if function is None or (function is getattr and args[1:] != ('shape',)):
            raise ValueError(f"function '{target}' is not supported")
        return function
    elif op == 'call_method':
        if target not in ops.METHODS:
            raise ValueError(f"method '{target}' is not supported")
    elif not _IDENTIFIER.fullmatch(target):
        raise ValueError(f"'{target}' is not a name")
    return target


def _check_archive(content: bytes) -> None:
    """Refuses an archive with compressed members or a wrong checksum, which torch.load does not look at."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError('a member of the archive is compressed')
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"wrong checksum of '{damaged}'")


def _check_path(path: str) -> None:
    """Refuses a name that could not have come out of a module: it ends up in generated code."""
    parts = path.split('.')
    if not all(_PATH_PART.fullmatch(part) for part in parts) or any(
            part in _RESERVED for part in parts):
        raise ValueError(f'{path!r} is not the name of a layer or tensor')


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy if it is a part of something larger, all of which torch.save would write."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _encode(value: object) -> object:
    """Plain data for JSON; tuples, slices, types and references to nodes become one-entry dicts."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, fx.Node):
        return {'node': value.name}
    if isinstance(value, slice):
        return {'slice': [_encode(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {'ellipsis': None}
    if isinstance(value, torch.dtype):
        return {'dtype': str(value).removeprefix('torch.')}
    if isinstance(value, tuple):
        return {'tuple': [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {'dict': {key: _encode(item) for key, item in value.items()}}
    raise ValueError(f"an argument of type '{type(value).__name__}' is not supported")


def _decode(value: object, nodes: dict[str, fx.Node]) -> object:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == 'node':
        return nodes[content]
    if kind == 'slice':
        return slice(*(_decode(part, nodes) for part in content))
    if kind == 'ellipsis':
        return Ellipsis
    if kind == 'dtype':
        return _DTYPES[content]
    if kind == 'tuple':
        return tuple(_decode(item, nodes) for item in content)
    if kind == 'dict':
        return {key: _decode(item, nodes) for key, item in content.items()}
    raise ValueError(f"unknown kind of argument '{kind}'")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
