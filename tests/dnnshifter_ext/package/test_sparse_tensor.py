"""Tensors by their non-zeros: the same bits as the dense ones."""

from hypothesis import given
import numpy as np
import pytest

from dnnshifter_ext.package.sparse_tensor import SparseTensor, position_dtype
from tests.dnnshifter_ext.package.arrays import assert_same_bits, sparse_floats


def test_by_hand():
    dense = np.array([[0.0, 2.5, -0.0], [-0.0, np.nan, -0.0], [0.0, -1.0, 0.0]], np.float32)
    sparse = SparseTensor.from_dense(dense)
    assert sparse.shape == (3, 3) and sparse.size == 9
    assert sparse.positions.tolist() == [1, 4, 7] and sparse.positions.dtype == np.int32
    np.testing.assert_array_equal(sparse.values, np.float32([2.5, np.nan, -1.0]))
    assert sparse.zero_flips.tolist() == [2, 6]
    assert_same_bits(sparse.to_dense(), dense)


@given(sparse_floats())
def test_round_trip(dense):
    sparse = SparseTensor.from_dense(dense)
    assert_same_bits(sparse.to_dense(), dense)
    assert (np.diff(sparse.positions) > 0).all() and (np.diff(sparse.zero_flips) > 0).all()
    assert not (sparse.values == 0).any()
    assert len(sparse.values) == len(sparse.positions) == np.count_nonzero(dense)


def test_not_contiguous():
    dense = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    assert_same_bits(SparseTensor.from_dense(dense).to_dense(), dense)


def test_positions_beyond_int32():
    assert position_dtype(2**31 - 1) == np.int32 and position_dtype(2**31) == np.int64


def test_only_float32():
    with pytest.raises(TypeError, match='float32, not float64'):
        SparseTensor.from_dense(np.zeros(3))
