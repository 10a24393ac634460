"""One tensor as streams, and back: bit for bit, small, and never beyond what is declared."""

import dataclasses
import tracemalloc

from hypothesis import given
import numpy as np
import pytest

from dnnshifter_ext.package import layouts
from dnnshifter_ext.package.deflate import deflate, inflate
from dnnshifter_ext.package.errors import PackageError
from dnnshifter_ext.package.layouts import Sparse, Tensor
from dnnshifter_ext.package.sparse_tensor import SparseTensor
from tests.dnnshifter_ext.package.arrays import any_arrays, assert_same_bits, pruned, sparse_floats


def inflated(tensor, streams):
    layouts.check(tensor, [stream.num_bytes for stream in streams])
    return [inflate(stream.packed, stream.num_bytes) for stream in streams]


def size(streams):
    return sum(len(stream.packed) for stream in streams)


def assert_round_trip(array):
    tensor, streams = layouts.encode(array)
    contents = inflated(tensor, streams)
    decoded = layouts.decode_dense(tensor, contents)
    assert_same_bits(decoded, array)
    assert decoded.flags.writeable and decoded.flags.c_contiguous
    if tensor.dtype == 'float32':
        sparse, expected = layouts.decode_sparse(tensor, contents), SparseTensor.from_dense(array)
        assert sparse.shape == expected.shape
        for name in ('positions', 'values', 'zero_flips'):
            assert_same_bits(getattr(sparse, name), getattr(expected, name))
    return tensor, streams


@given(any_arrays())
def test_every_dtype_comes_back_bit_for_bit(array):
    assert_round_trip(array)


@given(sparse_floats(shapes=(3, 40)))
def test_any_bits_among_zeros_come_back(array):
    assert_round_trip(array)


@pytest.mark.parametrize('values', [
    [1, 0x7fffffff], [0xffffffff, 1], [0x7f800000], [0x3f800000] * 50, list(range(1, 300)),
    [2**23 * k for k in range(255)], [0x007fffff, 0x7f800000, 0x80000001]], ids=lambda values: f'{len(values)} values')
def test_extreme_ranges_of_values(values):
    array = np.zeros((3, 400), np.uint32)
    array[1, :len(values)] = values
    array[2, ::7] = 0x3f800001
    tensor, _ = assert_round_trip(array.view(np.float32))
    assert tensor.is_sparse and tensor.layout.middle_bits <= layouts.MAX_MIDDLE_BITS


@pytest.mark.parametrize('gap', [0, 1, 253, 254, 255, 256, 509, 510, 511, 765, 99_000])
def test_gaps_of_every_length(gap):
    array = np.zeros((2, 200_000), np.float32)
    array[0, [3, 4 + gap, 5 + 2 * gap]] = 1, -2, 3
    tensor, _ = assert_round_trip(array)
    assert tensor.layout.gaps


def test_negative_zeros_cost_little():
    weights = pruned((64, 32, 3, 3), 0.05)
    signed = np.where((weights == 0) & (np.arange(64) % 2 == 0)[:, None, None, None], np.float32(-0.0), weights)
    (_, plain), (tensor, with_signs) = assert_round_trip(weights), assert_round_trip(signed)
    assert np.signbit(signed[0]).sum() > np.signbit(weights[0]).sum() and tensor.is_sparse
    assert size(with_signs) < size(plain) + 200  # whole channels: their batch norm's factor was negative
    at_random = (weights == 0) & (np.random.RandomState(0).rand(*weights.shape) < 0.5)
    _, with_noise = assert_round_trip(np.where(at_random, np.float32(-0.0), weights))
    assert size(with_noise) < size(plain) + 1.1 * (weights == 0).sum() / 8  # a bit each, if they have no pattern


@pytest.mark.parametrize('density', [0.002, 0.03, 0.1, 0.3, 0.7])
def test_a_pruned_layer_takes_little_more_than_its_entropy(density):
    """Positions: that of independent places. Values: 23 bits of a mantissa, a sign, and what exponents there are."""
    array = pruned((128, 128, 3, 3), density)
    tensor, streams = assert_round_trip(array)
    num = np.count_nonzero(array)
    share = num / array.size
    positions = -array.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share)) / 8
    assert tensor.is_sparse and len(streams[0].packed) < 1.04 * positions + 50
    assert size(streams) - len(streams[0].packed) < num * 25.9 / 8 + 700
    assert num * 23 / 8 < size(streams)  # if not, the bound is wrong


def test_rows_with_scales_of_their_own_cost_little():
    rows = pruned((128, 1152), 0.1)
    same = rows / np.abs(rows).max(axis=1, keepdims=True)
    assert size(layouts.encode(rows)[1]) < 1.02 * size(layouts.encode(same.astype(np.float32))[1])


def test_the_layout_is_the_one_that_takes_least():
    random = np.random.RandomState(0)
    assert layouts.encode(random.randint(0, 2**60, 40).repeat(50))[0].layout == 'plain'
    assert layouts.encode(np.arange(5000))[0].layout == 'planes'
    dense = random.randn(64, 64).astype(np.float32)
    assert size(layouts.encode(dense)[1]) < 0.9 * dense.nbytes
    assert not layouts.encode(pruned((200, 100), 0.6))[0].layout.gaps
    bits = random.randint(0, 2**62, 1000)
    assert size(layouts.encode(bits)[1]) < bits.nbytes + 100  # noise is stored


def test_the_sparse_form_is_never_dense_in_between():
    array = np.zeros((1000, 9000), np.float32)
    array[::10, 17] = np.arange(1, 101)
    tensor, streams = layouts.encode(array)
    contents = inflated(tensor, streams)
    tracemalloc.start()
    sparse = layouts.decode_sparse(tensor, contents)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sparse.values) == 100 and peak_bytes < 1_500_000  # dense: 36,000,000; its gaps: 36,000


def test_a_dtype_that_is_not_supported():
    with pytest.raises(PackageError, match='complex64 cannot be packed'):
        layouts.encode(np.zeros(2, np.complex64))


# ---- streams that lie

def refused(tensor, contents, match):
    """Either by its sizes or by its contents."""
    with pytest.raises(PackageError, match=match):
        layouts.check(tensor, [len(content) for content in contents])
        layouts.decode_sparse(tensor, contents)


def sparse_parts(num=3, gaps=True):
    """A layout of three values among 2 x 500, and its streams."""
    positions = bytes([4, 255, 1, 0]) if gaps else bytes([0b10010, 0b1] + [0] * 123)
    return (Tensor('float32', (2, 500), Sparse(num, gaps, 8128, 1)),
            [positions, b'', bytes([0, 1, 2]), bytes([0b101, 0b100]), bytes(2 * num), b''])


def test_the_parts_by_themselves_are_fine():
    for gaps, positions in ((True, [4, 261, 262]), (False, [1, 4, 8])):
        tensor, contents = sparse_parts(gaps=gaps)
        layouts.check(tensor, list(map(len, contents)))
        sparse = layouts.decode_sparse(tensor, contents)
        assert sparse.positions.tolist() == positions
        assert sparse.values.tolist() == [1.0078125, 1.015625, -1.0390625]


@pytest.mark.parametrize('index, content, match', [
    (0, bytes([4, 255, 1, 0, 0]), '3 non-zeros were declared, and 4'), (0, bytes([254] * 3), None),
    (0, bytes([4, 255, 255, 0]), '3 non-zeros were declared, and 2'), (0, bytes([255, 255, 255, 0, 232, 0]), None),
    (0, bytes([255, 255, 255, 0, 233, 0]), 'gaps'), (0, b'', 'streams'), (0, bytes(7), 'streams'),
    (1, bytes(1), 'streams'), (1, bytes(2), None), (2, bytes(4), 'streams'), (3, bytes(1), 'streams'),
    (4, bytes(5), 'streams'), (5, bytes([255, 255, 255, 234]), None), (5, bytes([255, 255, 255, 235]), 'gaps'),
    (5, bytes(1004), 'streams'),
])
def test_streams_that_do_not_fit(index, content, match):
    tensor, contents = sparse_parts()
    contents[index] = content
    if match is None:
        layouts.check(tensor, list(map(len, contents)))
        layouts.decode_sparse(tensor, contents)
    else:
        refused(tensor, contents, match)


@pytest.mark.parametrize('bitmap', [[0b10010, 0b11], [0b10010, 0]])
def test_bitmaps_that_do_not_fit(bitmap):
    tensor, contents = sparse_parts(gaps=False)
    contents[0] = bytes(bitmap + [0] * 123)
    refused(tensor, contents, '3 non-zeros were declared')
    contents[0] = bytes(124)
    refused(tensor, contents, 'streams')


def test_a_bitmap_with_a_value_behind_its_end():
    contents = [bytes([0b00100000]), b'', bytes(1), bytes(1), bytes(2), b'']
    layouts.decode_sparse(Tensor('float32', (2, 3), Sparse(1, False, 16256, 0)), contents)
    refused(Tensor('float32', (1, 5), Sparse(1, False, 16256, 0)), contents, 'bitmap')


@pytest.mark.parametrize('changes', [
    dict(dtype='float64'), dict(shape=(2, 2)), dict(shape=()), dict(layout='plain'), dict(layout='planes'),
    dict(layout=Sparse(3, True, 8128, 8)), dict(layout=Sparse(4, True, 8128, 1)),
    dict(layout=Sparse(3, False, 8128, 1))], ids=str)
def test_declarations_that_do_not_fit(changes):
    tensor, contents = sparse_parts()
    refused(dataclasses.replace(tensor, **changes), contents, 'streams')


def test_truth_values_are_0_or_1():
    with pytest.raises(PackageError, match='truth value'):
        layouts.decode_dense(Tensor('bool', (2,), 'plain'), [bytes([1, 2])])


# ---- deflate

def test_inflating_is_capped_and_exact():
    packed = deflate(bytes(100_000))
    assert inflate(packed, 100_000) == bytes(100_000)
    for declared, content in ((99_999, packed), (100_001, packed), (0, packed), (10, b''), (100_000, packed[:-1]),
                              (100_000, packed + b'x'), (0, b'x'), (100, b'\xff' * 50)):
        with pytest.raises(PackageError, match='block'):
            inflate(content, declared)


def test_a_bomb_allocates_no_more_than_is_declared():
    bomb = deflate(bytes(5_000_000))
    tracemalloc.start()
    with pytest.raises(PackageError):
        inflate(bomb, 1000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 300_000


def test_either_library_reads_the_other(monkeypatch):
    from dnnshifter_ext.package import deflate as module
    contents = [b'', b'x', bytes(1000), np.random.RandomState(0).bytes(70_000), b'abcab' * 5000]
    packed = list(map(deflate, contents))
    assert all(len(a) <= len(b) + 5 * (1 + len(b) // 65535) for a, b in zip(packed, contents))
    for library in {module._inflater, module.zlib}:
        monkeypatch.setattr(module, '_inflater', library)
        assert [inflate(a, len(b)) for a, b in zip(packed, contents)] == contents
