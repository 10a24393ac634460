"""The package as bytes: a preamble, a header (JSON, compressed), blocks one after the other, and a checksum of it all.

Where a block lies is not said but follows from the sizes of those before it, so that offsets cannot lie. Everything the
header declares is checked before any block is inflated, each block's checksum before it is; PackageError otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import functools
import hashlib
import json
import re
import struct

import numpy as np

from dnnshifter_ext.package import deflate, layouts
from dnnshifter_ext.package.errors import PackageError
from dnnshifter_ext.package.layouts import Sparse, Stream, Tensor
from dnnshifter_ext.package.sparse_tensor import SparseTensor

MAGIC = b'\x89DNNS\r\n\x1a'
VERSION = 1
MAX_HEADER_BYTES = 2**22
MAX_STRUCTURE_BYTES = 2**26
MAX_DIMENSIONS = 32
MAX_VARIANT_BYTES = 2**32  # of dense tensors, unless `read` is told otherwise

_PREAMBLE = struct.Struct('<8sIIIQ')  # magic, version, bytes of the header packed and inflated, bytes of the file
_DIGEST_BYTES = hashlib.sha256().digest_size
_VARIANT_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}')


@dataclass(frozen=True)
class Variant:
    """A model to be packed: its structure as JSON text (see `export.to_data`), its tensors, what is known of it.

    name: letters, digits, '_', '.', '-', to be used as the name of a file. profile: plain data, as JSON has it.
    """

    name: str
    structure: str
    tensors: Mapping[str, np.ndarray]
    profile: dict


@dataclass(frozen=True)
class Block:
    """Streams, compressed one by one. sizes: per stream the bytes it takes, and what it inflates to."""

    start: int
    sizes: tuple[tuple[int, int], ...]
    crc32: int

    @property
    def packed_bytes(self) -> int:
        return sum(packed for packed, _ in self.sizes)


@dataclass(frozen=True)
class PackedVariant:
    """One model of a package. Nothing of it is inflated until it is asked for, and nothing is kept."""

    name: str
    profile: dict
    tensors: dict[str, Tensor]
    _content: memoryview = field(repr=False)
    _structure: Block = field(repr=False)
    _blocks: dict[str, Block] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Of all tensors when they are dense."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def packed_bytes(self) -> int:
        """Of the variant's blocks in the file; those it shares with others, and those it shares with itself, count."""
        return self._structure.packed_bytes + sum(block.packed_bytes for block in self._blocks.values())

    def structure(self) -> str:
        """The JSON text. PackageError, as for all that follow, when it is damaged."""
        [stream] = _inflate(self._content, self._structure)
        try:
            return stream.decode()
        except UnicodeDecodeError as error:
            raise PackageError(f"the structure of '{self.name}' is not text") from error

    def dense(self, name: str) -> np.ndarray:
        """A new array with the tensor's bits. KeyError for a name that is not in `tensors`."""
        return layouts.decode_dense(self.tensors[name], _inflate(self._content, self._blocks[name]))

    def sparse(self, name: str) -> SparseTensor:
        """A tensor of float32 by its non-zeros; where `tensors[name].is_sparse`, it is never dense in between."""
        if self.tensors[name].dtype != 'float32':
            raise TypeError(f"'{name}' is of {self.tensors[name].dtype}: only float32 has a sparse form")
        return layouts.decode_sparse(self.tensors[name], _inflate(self._content, self._blocks[name]))


@dataclass(frozen=True)
class Package:
    """All variants, the smallest first. `content` is the whole file, and the only memory held."""

    content: memoryview = field(repr=False)
    variants: tuple[PackedVariant, ...]

    def __getitem__(self, name: str) -> PackedVariant:
        """The variant of that name; KeyError if there is none."""
        return self._by_name[name]

    def verify(self) -> None:
        """Inflates everything, one tensor at a time; PackageError when anything is not as declared."""
        for variant in self.variants:
            variant.structure()
            for name in variant.tensors:
                variant.dense(name)

    @functools.cached_property
    def _by_name(self) -> dict[str, PackedVariant]:
        return {variant.name: variant for variant in self.variants}


def _inflate(content: memoryview, block: Block) -> list[bytes]:
    """The block's streams."""
    packed = content[block.start:block.start + block.packed_bytes]
    if deflate.crc32(packed) != block.crc32:
        raise PackageError(f'the block at byte {block.start} is damaged: its checksum is wrong')
    streams, start = [], 0
    for packed_bytes, num_bytes in block.sizes:
        streams.append(deflate.inflate(packed[start:start + packed_bytes], num_bytes))
        start += packed_bytes
    return streams


# ---- writing

def write(variants: Sequence[Variant]) -> bytes:
    """The package of these variants, sorted by the bytes of their dense tensors, then by those they take here.

    Tensors with the same bits, dtype and shape are stored once, and so are structures. Raises PackageError for a
    variant that cannot be packed: twice the same name, a dtype that is not supported, a profile that is not plain data,
    or more than `read` takes by default.
    """
    tensors = _Unique()
    structures = _Unique()
    entries: dict[str, dict] = {}
    for variant in variants:
        _check_variant_name(variant.name, entries)
        try:
            indices = {name: tensors.add(_key(array), functools.partial(layouts.encode, array))
                       for name, array in variant.tensors.items()}
            json.dumps(variant.profile, allow_nan=False)
        except (PackageError, TypeError, ValueError, RecursionError) as error:
            raise PackageError(f"variant '{variant.name}' cannot be packed: {error}") from error
        text = variant.structure.encode()
        structure = structures.add(text, lambda text=text: (None, [Stream.of(text)]))
        entries[variant.name] = {
            'name': variant.name, 'profile': variant.profile, 'structure': structure, 'tensors': indices}
    header = _pack_json({
        'variants': sorted(entries.values(), key=functools.partial(_order, tensors.parts)),
        'structures': [_describe_block(streams) for _, streams in structures.parts],
        'tensors': [_describe_tensor(tensor) | _describe_block(streams) for tensor, streams in tensors.parts]})
    blocks = [stream.packed for _, streams in (*structures.parts, *tensors.parts) for stream in streams]
    content = _seal(header, blocks)
    read(content)  # nothing is written that is beyond the limits of reading
    return content


class _Unique:
    """Parts in the order in which they came, each kind of content once."""

    def __init__(self):
        self.parts: list[tuple[Tensor | None, list[Stream]]] = []
        self._index: dict[object, int] = {}

    def add(self, key: object, make: Callable[[], tuple[Tensor | None, list[Stream]]]) -> int:
        """The index of the content that `key` stands for; `make` is called for a new one only."""
        if key not in self._index:
            self._index[key] = len(self.parts)
            self.parts.append(make())
        return self._index[key]


def _key(array: np.ndarray) -> tuple:
    return array.dtype.name, array.shape, hashlib.sha256(np.ascontiguousarray(array)).digest()


def _order(parts: list[tuple[Tensor, list[Stream]]], entry: dict) -> tuple[int, int]:
    used = [parts[index] for index in entry['tensors'].values()]
    return (sum(tensor.num_bytes for tensor, _ in used),
            sum(len(stream.packed) for _, streams in used for stream in streams))


def _describe_tensor(tensor: Tensor) -> dict:
    layout = vars(tensor.layout) if tensor.is_sparse else tensor.layout
    return {'dtype': tensor.dtype, 'shape': list(tensor.shape), 'layout': layout}


def _describe_block(streams: Sequence[Stream]) -> dict:
    return {'streams': [[len(stream.packed), stream.num_bytes] for stream in streams],
            'crc32': deflate.crc32(b''.join(stream.packed for stream in streams))}


def _pack_json(header: dict) -> Stream:
    return Stream.of(json.dumps(header, allow_nan=False, separators=(',', ':')).encode())


def _seal(header: Stream, blocks: Sequence[bytes]) -> bytes:
    """The file: what is in it, its size, and its checksum."""
    num_bytes = _PREAMBLE.size + len(header.packed) + sum(map(len, blocks)) + _DIGEST_BYTES
    preamble = _PREAMBLE.pack(MAGIC, VERSION, len(header.packed), header.num_bytes, num_bytes)
    content = b''.join([preamble, header.packed, *blocks])
    return content + hashlib.sha256(content).digest()


# ---- reading

def read(content: bytes | memoryview, *, max_variant_bytes: int = MAX_VARIANT_BYTES) -> Package:
    """The package in `content`, which it keeps. Checks all checksums and declarations; inflates the header only.

    max_variant_bytes: what the dense tensors of one variant may take. Raises PackageError.
    """
    content = memoryview(content).cast('B')
    header_end, header_bytes = _check_frame(content)
    header = deflate.inflate(content[_PREAMBLE.size:header_end], header_bytes)
    try:
        header = json.loads(header, object_pairs_hook=_without_duplicates)
        return _Reader(content, header_end, header, max_variant_bytes).package()
    except PackageError:
        raise
    except Exception as error:  # JSON of any other shape than ours is refused, whatever it trips over
        raise PackageError(f'the header is damaged ({type(error).__name__})') from error


def _check_frame(content: memoryview) -> tuple[int, int]:
    """(where the header ends, its bytes when inflated)"""
    if content[:len(MAGIC)] != MAGIC:
        raise PackageError('not a portfolio package')
    if len(content) < _PREAMBLE.size + _DIGEST_BYTES:
        raise PackageError('the file is cut short')
    _, version, header_packed, header_bytes, num_bytes = _PREAMBLE.unpack_from(content)
    if version != VERSION:
        raise PackageError(f'version {version} of the format is not supported, only {VERSION}')
    if num_bytes != len(content):
        raise PackageError(f'{num_bytes} bytes were written, and {len(content)} are here: '
                           + ('the file is cut short' if len(content) < num_bytes else 'something was added'))
    header_end = _PREAMBLE.size + header_packed
    if header_end + _DIGEST_BYTES > num_bytes or header_bytes > MAX_HEADER_BYTES:
        raise PackageError(f'a header of {header_packed} bytes, {header_bytes} inflated, is too large')
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise PackageError('the file is damaged: its checksum is wrong')
    return header_end, header_bytes


class _Reader:
    """The header, checked piece by piece."""

    def __init__(self, content: memoryview, start: int, header: dict, max_variant_bytes: int):
        self._content = content
        self._start = start  # of the next block
        self._end = len(content) - _DIGEST_BYTES
        self._header = _fields(header, 'variants', 'structures', 'tensors')
        self._max_variant_bytes = max_variant_bytes

    def package(self) -> Package:
        variants, structures, tensors = self._header
        structures = [self._structure(entry) for entry in _list(structures)]
        tensors = [self._tensor(entry) for entry in _list(tensors)]
        if self._start != self._end:
            raise PackageError(f'{self._end - self._start} bytes are in no block')
        packed: dict[str, PackedVariant] = {}
        for entry in _list(variants):
            name, profile, structure, indices = _fields(entry, 'name', 'profile', 'structure', 'tensors')
            _check_variant_name(name, packed)
            used = {key: tensors[_number(index, len(tensors))] for key, index in _dict(indices).items()}
            packed[name] = PackedVariant(
                name, _dict(profile), {key: tensor for key, (tensor, _) in used.items()}, self._content,
                structures[_number(structure, len(structures))], {key: block for key, (_, block) in used.items()})
            if packed[name].num_bytes > self._max_variant_bytes:
                raise PackageError(f"variant '{name}' would take {packed[name].num_bytes} bytes, "
                                   f'{self._max_variant_bytes} at most are allowed')
        return Package(self._content, tuple(packed.values()))

    def _structure(self, entry: dict) -> Block:
        streams, crc32 = _fields(entry, 'streams', 'crc32')
        block = self._block(streams, crc32)
        if len(block.sizes) != 1 or block.sizes[0][1] > MAX_STRUCTURE_BYTES:
            raise PackageError(f'streams of {[size for _, size in block.sizes]} bytes are no structure')
        return block

    def _tensor(self, entry: dict) -> tuple[Tensor, Block]:
        dtype, shape, layout, streams, crc32 = _fields(entry, 'dtype', 'shape', 'layout', 'streams', 'crc32')
        if dtype not in layouts.DTYPES:
            raise PackageError(f'tensors of {dtype!r:.40} are not supported')
        if isinstance(layout, dict):
            num_values, gaps, lowest, middle_bits = _fields(layout, *Sparse.__dataclass_fields__)
            if type(gaps) is not bool or type(lowest) is not int or abs(lowest) >= 2**31:
                raise PackageError('a layout is damaged')
            layout = Sparse(_number(num_values), gaps, lowest, _number(middle_bits))
        elif layout not in ('plain', 'planes'):
            raise PackageError(f'the layout {layout!r:.40} is not supported')
        if len(_list(shape)) > MAX_DIMENSIONS:
            raise PackageError(f'a tensor has {len(shape)} dimensions, {MAX_DIMENSIONS} at most are allowed')
        tensor = Tensor(dtype, tuple(map(_number, shape)), layout)
        if tensor.num_bytes > self._max_variant_bytes:
            raise PackageError(f'a tensor would take more than the {self._max_variant_bytes} bytes that are allowed')
        block = self._block(streams, crc32)
        layouts.check(tensor, [num_bytes for _, num_bytes in block.sizes])
        return tensor, block

    def _block(self, streams: list, crc32: int) -> Block:
        """The next one."""
        sizes = []
        for pair in _list(streams):
            packed_bytes, num_bytes = map(_number, _list(pair))
            if num_bytes > deflate.MAX_RATIO * packed_bytes:
                raise PackageError(f'{packed_bytes} bytes cannot inflate to {num_bytes}')
            sizes.append((packed_bytes, num_bytes))
        block = Block(self._start, tuple(sizes), _number(crc32, 2**32))
        self._start += block.packed_bytes
        if self._start > self._end:
            raise PackageError('a block lies outside of the file')
        return block


def _check_variant_name(name: object, others: Container[str]) -> None:
    if not isinstance(name, str) or not _VARIANT_NAME.fullmatch(name):
        raise PackageError(f'{name!r:.120} is no name of a variant')
    if name in others:
        raise PackageError(f"there are two variants '{name}'")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PackageError('the header has the same name twice')
    return found


def _fields(entry: object, *names: str) -> Iterator:
    if set(_dict(entry)) != set(names):
        raise PackageError(f'the header is damaged: {", ".join(names)} were expected')
    return (entry[name] for name in names)


def _dict(value: object) -> dict:
    if not isinstance(value, dict):
        raise PackageError('the header is damaged: an object was expected')
    return value


def _list(value: object) -> list:
    if not isinstance(value, list):
        raise PackageError('the header is damaged: a list was expected')
    return value


def _number(value: object, end: int = 2**63) -> int:
    """The value, if it is a whole number from 0 to below `end`."""
    if type(value) is not int or not 0 <= value < end:
        raise PackageError(f'the header is damaged: {value!r:.40} is not a number below {end}')
    return value
