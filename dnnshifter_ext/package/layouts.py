"""One tensor as streams of bytes that DEFLATE can do something with, and back, bit for bit.

Layouts: 'plain' is the elements as they are; 'planes' all first bytes, then all second bytes, ..., the last ones (of
a float, most of its exponent) in a stream of their own; 'sparse', for float32, positions and values of the non-zeros.

What a trained weight costs: its sign and low mantissa bits are noise, which no coder shortens; its exponent and first
mantissa bits are not evenly distributed, all the less when seen from the usual magnitude in their row (fused batch
norms give each output channel a scale of its own). So a value's bits are taken as an integer, its row's is subtracted,
and the top 8 bits of the rest are a stream of their own, for Huffman codes; what is below them is stored. Positions are
gaps, whose distribution Huffman codes fit, or a bitmap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

from dnnshifter_ext.package import deflate
from dnnshifter_ext.package.errors import PackageError
from dnnshifter_ext.package.sparse_tensor import SparseTensor, position_dtype

DTYPES = {name: np.dtype(name).newbyteorder('<') for name in (
    'float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8', 'bool')}

_SIGN = np.uint32(1 << 31)
_FAR = 255          # a byte of the gaps that only says: this many elements further
_ROW_STEP_BITS = 20  # a row's usual magnitude is rounded down to this many bits: an eighth of a power of two
_LOW_BITS = 16
MAX_MIDDLE_BITS = 7  # with 16 below and 8 above, the 31 of a magnitude


@dataclass(frozen=True)
class Sparse:
    """How the non-zeros of a tensor are laid out. docs/portfolio_format.md says what each stream holds.

    gaps: positions are gaps, else a bitmap. lowest: was subtracted from the top bits of all values; it can be negative.
    middle_bits: how many there are between the top ones and the lowest 16.
    """

    num_values: int
    gaps: bool
    lowest: int
    middle_bits: int


@dataclass(frozen=True)
class Tensor:
    """What the package says of a tensor: dtype by its name in DTYPES; layout: 'plain', 'planes', or a Sparse."""

    dtype: str
    shape: tuple[int, ...]
    layout: str | Sparse

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Of the dense tensor."""
        return self.size * DTYPES[self.dtype].itemsize

    @property
    def is_sparse(self) -> bool:
        """Whether it is stored by its non-zeros."""
        return isinstance(self.layout, Sparse)

    @property
    def num_rows(self) -> int:
        """Rows, in the sense of the sparse layout: output channels; none in a vector."""
        return self.shape[0] if len(self.shape) > 1 else 0


@dataclass(frozen=True)
class Stream:
    """One stream, compressed; num_bytes: what it inflates to."""

    packed: bytes
    num_bytes: int

    @classmethod
    def of(cls, content: bytes) -> Stream:
        return cls(deflate.deflate(content), len(content))


def encode(array: np.ndarray) -> tuple[Tensor, list[Stream]]:
    """The array in the layout that takes least. Raises PackageError for a dtype that is not in DTYPES."""
    name = array.dtype.name
    if name not in DTYPES:
        raise PackageError(f'tensors of {name} cannot be packed, only of {", ".join(DTYPES)}')
    array = np.asarray(array, DTYPES[name], order='C')
    candidates = []
    is_matrix = name == 'float32' and array.ndim > 1 and array.size > 0
    if is_matrix:
        sparse = SparseTensor.from_dense(array)
        candidates.append(_encode_sparse(sparse))
    if not is_matrix or 2 * len(sparse.positions) >= array.size:  # else the sparse one is the smallest
        candidates += [('plain', [Stream.of(array.tobytes())])]
        if array.itemsize > 1:
            planes = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T
            candidates += [('planes', [Stream.of(planes[:-1].tobytes()), Stream.of(planes[-1].tobytes())])]
    layout, streams = min(candidates, key=lambda candidate: sum(len(stream.packed) for stream in candidate[1]))
    return Tensor(name, array.shape, layout), streams


def check(tensor: Tensor, sizes: Sequence[int]) -> None:
    """Raises PackageError unless streams that inflate to `sizes` bytes can be this tensor. Before any is inflated."""
    size = tensor.size
    if tensor.layout == 'plain':
        fits = list(sizes) == [tensor.num_bytes]
    elif tensor.layout == 'planes':
        fits = list(sizes) == [tensor.num_bytes - size, size]
    else:
        num, middle_bits = tensor.layout.num_values, tensor.layout.middle_bits
        fits = (tensor.dtype == 'float32' and len(sizes) == 6 and num <= size and middle_bits <= MAX_MIDDLE_BITS
                and (num <= sizes[0] <= num + size // _FAR if tensor.layout.gaps else sizes[0] == _bitmap_bytes(size))
                and sizes[1] in (0, tensor.num_rows) and sizes[2] == num
                and sizes[3] == (middle_bits + 1) * _bitmap_bytes(num) and sizes[4] == 2 * num
                and sizes[5] <= size + size // _FAR)
    if not fits:
        raise PackageError(f'streams of {list(sizes)} bytes are no tensor of {tensor.dtype}, shape {tensor.shape}')


def decode_dense(tensor: Tensor, streams: Sequence[bytes]) -> np.ndarray:
    """A new array. `check` has passed."""
    if tensor.is_sparse:
        return decode_sparse(tensor, streams).to_dense()
    dtype = DTYPES[tensor.dtype]
    if tensor.layout == 'plain':
        raw = np.frombuffer(bytearray(streams[0]), np.uint8)
    else:
        planes = np.frombuffer(b''.join(streams), np.uint8).reshape(dtype.itemsize, tensor.size)
        raw = np.ascontiguousarray(planes.T)
    if tensor.dtype == 'bool' and (raw > 1).any():
        raise PackageError('a truth value is neither 0 nor 1')
    return raw.reshape(-1).view(dtype).astype(dtype.newbyteorder('='), copy=False).reshape(tensor.shape)


def decode_sparse(tensor: Tensor, streams: Sequence[bytes]) -> SparseTensor:
    """The non-zeros of a tensor of float32. One that is stored sparse is never made dense. `check` has passed."""
    if not tensor.is_sparse:
        return SparseTensor.from_dense(decode_dense(tensor, streams))
    positions, *values, flips = (np.frombuffer(stream, np.uint8) for stream in streams)
    positions = (_from_gaps if tensor.layout.gaps else _from_bitmap)(positions, tensor.size)
    if len(positions) != tensor.layout.num_values:
        raise PackageError(f'{tensor.layout.num_values} non-zeros were declared, and {len(positions)} are here')
    return SparseTensor(tensor.shape, positions, _decode_values(tensor, positions, *values),
                        _from_gaps(flips, tensor.size).astype(np.int64))


# ---- the sparse layout

def _encode_sparse(sparse: SparseTensor) -> tuple[Sparse, list[Stream]]:
    gaps = Stream.of(_to_gaps(sparse.positions))
    bitmap = Stream.of(_to_bitmap(sparse.positions, sparse.size))
    has_gaps = len(gaps.packed) < len(bitmap.packed)
    lowest, middle_bits, *values = _encode_values(sparse)
    flips = _to_gaps(sparse.zero_flips)
    return (Sparse(len(sparse.positions), has_gaps, lowest, middle_bits),
            [gaps if has_gaps else bitmap, *map(Stream.of, (*values, flips))])


def _to_gaps(positions: np.ndarray) -> bytes:
    """Per position how many lie between it and the last one, in bytes: 255 (FAR) as often as needed, then the rest."""
    num_far, rest = np.divmod(np.diff(positions, prepend=-1) - 1, _FAR)
    gaps = np.full(len(positions) + num_far.sum(), _FAR, np.uint8)
    gaps[np.arange(len(positions)) + np.cumsum(num_far)] = rest
    return gaps.tobytes()


def _from_gaps(gaps: np.ndarray, size: int) -> np.ndarray:
    ends = gaps != _FAR
    steps = gaps + ends.view(np.uint8)  # over the position too; 255 at most
    if steps.sum(dtype=np.int64) > size:
        raise PackageError(f'gaps lead out of a tensor of {size} elements')
    positions = np.cumsum(steps, dtype=position_dtype(size))[ends]
    positions -= 1
    return positions


def _to_bitmap(positions: np.ndarray, size: int) -> bytes:
    is_value = np.zeros(size, bool)
    is_value[positions] = True
    return np.packbits(is_value, bitorder='little').tobytes()


def _from_bitmap(bitmap: np.ndarray, size: int) -> np.ndarray:
    positions = np.flatnonzero(_unpack(bitmap, 8 * len(bitmap)).view(bool)).astype(position_dtype(size))
    if len(positions) and positions[-1] >= size:
        raise PackageError(f'a bitmap leads out of a tensor of {size} elements')
    return positions


def _encode_values(sparse: SparseTensor) -> tuple[int, int, bytes, bytes, bytes, bytes]:
    """(lowest, middle_bits, rows, top, middle, low), the first three chosen so that all take least."""
    bits = sparse.values.view(np.uint32)
    magnitudes = (bits & ~_SIGN).astype(np.int64)
    num_rows = sparse.shape[0] if len(sparse.shape) > 1 else 0
    choices = [(np.zeros(0, np.uint8), magnitudes)]
    if num_rows and len(bits):
        counts = _num_in_rows(sparse.positions, num_rows, sparse.size)
        rows = _usual_magnitudes(magnitudes, counts)
        choices.append((rows, magnitudes - np.repeat(rows.astype(np.int64) << _ROW_STEP_BITS, counts)))
    best = None
    for rows, rest in choices:
        smallest, largest = (int(rest.min()), int(rest.max())) if len(rest) else (0, 0)
        # Fewer bits in the top stream need a shorter table of codes, which is as good for few values.
        for top_bits in (8, 7, 6):
            low_bits = max(_LOW_BITS, (largest - smallest).bit_length() - top_bits)
            low_bits += (largest >> low_bits) - (smallest >> low_bits) > 255
            lowest = smallest >> low_bits
            top = ((rest >> low_bits) - lowest).astype(np.uint8).tobytes()
            cost = deflate.huffman_size(top) + deflate.huffman_size(rows.tobytes()) + len(bits) * low_bits / 8
            if low_bits <= _LOW_BITS + MAX_MIDDLE_BITS and (best is None or cost < best[0]):
                best = cost, rows, rest, lowest, low_bits - _LOW_BITS, top
    _, rows, rest, lowest, middle_bits, top = best
    middle = [rest >> (_LOW_BITS + index) & 1 for index in reversed(range(middle_bits))]
    middle = b''.join(np.packbits(bit.astype(bool), bitorder='little').tobytes() for bit in (*middle, bits >> 31))
    return lowest, middle_bits, rows.tobytes(), top, middle, (rest & 0xffff).astype('<u2').tobytes()


def _usual_magnitudes(magnitudes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(rows,) bytes: the median in each row above the lowest of these, in steps."""
    order = np.lexsort((magnitudes, np.repeat(np.arange(len(counts)), counts)))
    is_empty = counts == 0
    middle = np.cumsum(counts) - counts + counts // 2
    medians = magnitudes[order][np.where(is_empty, 0, middle)]
    lowest = medians[~is_empty].min()
    return np.where(is_empty, 0, np.minimum((medians - lowest) >> _ROW_STEP_BITS, 255)).astype(np.uint8)


def _decode_values(
    tensor: Tensor, positions: np.ndarray, rows: np.ndarray, top: np.ndarray, middle: np.ndarray, low: np.ndarray,
) -> np.ndarray:
    num, middle_bits = len(positions), tensor.layout.middle_bits
    *bitmaps, signs = middle.reshape(middle_bits + 1, -1)
    # The upper halves of all values. What is added to them has no bits below, so nothing is carried between halves.
    high = top.astype(np.uint16)
    high += np.uint16(tensor.layout.lowest & 0xffff)
    high <<= np.uint16(middle_bits)
    bits = np.zeros(num, np.uint8)
    for bitmap in bitmaps:
        bits += bits  # a shift, but vectorised
        bits |= _unpack(bitmap, num)
    high |= bits
    if len(rows) and num:
        counts = _num_in_rows(positions, len(rows), tensor.size)
        high += np.repeat(rows, counts).astype(np.uint16) << np.uint16(_ROW_STEP_BITS - _LOW_BITS)
    high |= _unpack(signs, num).astype(np.uint16) << np.uint16(15)
    values = np.empty((num, 2), '<u2')
    values[:, 0] = low.view('<u2')
    values[:, 1] = high
    return values.reshape(-1).view('<f4').astype(np.float32, copy=False)


def _unpack(bitmap: np.ndarray, num: int) -> np.ndarray:
    """(num,) bytes, 0 or 1."""
    return np.unpackbits(bitmap, count=num, bitorder='little')


def _num_in_rows(positions: np.ndarray, num_rows: int, size: int) -> np.ndarray:
    """(rows,) how many of the ascending positions lie in each row."""
    starts = np.arange(num_rows + 1) * (size // num_rows)
    return np.diff(np.searchsorted(positions, starts.astype(positions.dtype)))


def _bitmap_bytes(num: int) -> int:
    return -(-num // 8)
