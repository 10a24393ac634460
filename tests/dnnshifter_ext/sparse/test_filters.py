import dataclasses

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from dnnshifter_ext.sparse.filters import SparseFilters
from tests.dnnshifter_ext.sparse.cases import quickly


def random_weight(shape, density, seed=0):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(shape) < density, generator.normal(size=shape), 0).astype(np.float32)


def bits(array):
    return (array + np.float32(0)).view(np.int32)  # -0 + 0 is 0


@quickly(60)
@given(st.sampled_from([(1, 1), (5, 7), (3, 300), (4, 3, 3, 3), (6, 1, 5, 2), (1, 9, 1, 1), (40, 2, 1, 7)]),
       st.sampled_from([0.3, 0.0, 0.02, 0.9, 1.0]), st.integers(0, 1 << 16))
def test_back_to_dense_bit_for_bit(shape, density, seed):
    weight = random_weight(shape, density, seed)
    weight[seed % len(weight)] *= seed % 3 != 0  # an empty filter, of zeros of both signs
    filters = SparseFilters.from_dense(weight)
    filters.check()
    assert filters.num_nonzero == np.count_nonzero(weight) and filters.density == (weight != 0).mean()
    assert (bits(filters.to_dense()) == bits(weight)).all() and filters.to_dense().shape == shape


def test_tiny_and_special_values_are_kept():
    weight = np.array([[1e-45, -1e-38, 0.0, 3.4e38, -0.0, 1 + 2 ** -23]], np.float32)
    filters = SparseFilters.from_dense(weight)
    assert filters.num_nonzero == 4 and (bits(filters.to_dense()) == bits(weight)).all()


def test_by_hand():
    filters = SparseFilters.from_dense(np.array([[[[0, 1.5]], [[0, -2]]], [[[0, 0]], [[0, 0]]], [[[3, 0]], [[0, 0]]]],
                                                np.float32))
    assert filters.shape == (3, 2, 1, 2)
    assert filters.pointers.tolist() == [0, 2, 2, 3]
    assert filters.positions.tolist() == [1, 3, 0]
    assert filters.values.tolist() == [1.5, -2, 3]


def test_bytes():
    weight = random_weight((64, 32, 3, 3), 0.1)
    assert SparseFilters.from_dense(weight).nbytes == 6 * np.count_nonzero(weight) + 4 * 65


@pytest.mark.parametrize('layout', ['transposed', 'sliced', 'channels last'])
def test_a_weight_that_is_not_contiguous(layout):
    weight = {'transposed': random_weight((7, 5), 0.5).T, 'sliced': random_weight((8, 6, 3, 3), 0.5)[::2, 1:],
              'channels last': random_weight((8, 3, 3, 6), 0.5).transpose(0, 3, 1, 2)}[layout]
    filters = SparseFilters.from_dense(weight)
    filters.check()
    assert (filters.to_dense() == weight).all()


def test_the_largest_filter_and_one_that_is_too_large():
    weight = np.zeros((2, 1 << 16), np.float32)
    weight[1, -1] = weight[0, -1] = 1
    filters = SparseFilters.from_dense(weight)
    filters.check()
    assert filters.positions.tolist() == [65535, 65535] and (filters.to_dense() == weight).all()
    with pytest.raises(ValueError, match='a filter of 65600 weights is too large to be sparse: at most 65536'):
        SparseFilters.from_dense(np.zeros((1, 41 * 1600), np.float32))


def int32(*values):
    return np.array(values, np.int32)


GOOD = SparseFilters.from_dense(np.array([[0, 1, 2, 0], [0, 0, 0, 3], [0, 0, 0, 0]], np.float32))  # 0 2 3 3


@pytest.mark.parametrize('change', [
    {'pointers': int32(0, 2, 3, 4)}, {'pointers': int32(0, 2, 3, 2)}, {'pointers': int32(1, 2, 3, 3)},
    {'pointers': int32(0, 4, 3, 3)}, {'pointers': int32(0, -1, 3, 3)}, {'pointers': int32(0, 3, 2, 3)},
    {'pointers': int32(0, 2, 3)}, {'pointers': int32(0, 2, 3, 3, 3)}, {'pointers': int32()},
    {'pointers': GOOD.pointers.astype(np.int64)}, {'pointers': int32(0, 9, 2, 9, 3, 9, 3)[::2]},
    {'positions': np.array([1, 2, 4], np.uint16)}, {'positions': np.array([1, 2], np.uint16)},
    {'positions': np.array([1, 2, 3, 3], np.uint16)}, {'positions': GOOD.positions.astype(np.int32)},
    {'positions': np.array([1, 9, 2, 9, 3], np.uint16)[::2]}, {'positions': GOOD.positions[:, None]},
    {'values': GOOD.values.astype(np.float64)}, {'values': GOOD.values[:2]}, {'values': np.ones((3, 1), np.float32)},
    {'values': np.ones(6, np.float32)[::2]}, {'shape': (3, 3)}, {'shape': (2, 4)}, {'shape': (3, 1 << 17)},
], ids=str)
def test_what_leads_outside_is_refused(change):
    GOOD.check()
    with pytest.raises(ValueError, match='sparse') as caught:
        dataclasses.replace(GOOD, **change).check()
    assert '\n' not in str(caught.value)


def test_pointers_whose_differences_overflow_are_refused():
    pointers = int32(0, 2 ** 31 - 1, -2 ** 31, -1, 3)
    with np.errstate(all='ignore'):
        assert (np.diff(pointers) >= 0).all(), 'this is what makes them dangerous'
    with pytest.raises(ValueError, match='lead outside'):
        SparseFilters((4, 4), pointers, GOOD.positions, GOOD.values).check()
