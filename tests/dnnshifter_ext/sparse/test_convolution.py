import dataclasses
import math

from hypothesis import given
import numpy as np
import pytest
import torch

from dnnshifter_ext.sparse import convolution
from dnnshifter_ext.sparse.convolution import Geometry, SparseConvolution
from dnnshifter_ext.sparse.filters import SparseFilters
from dnnshifter_ext.sparse.layers import from_dense
from tests.dnnshifter_ext.sparse.cases import (
    Case,
    assert_close,
    cases,
    expected_of,
    is_too_small_for_its_pool,
    quickly,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def sparse_of(case):
    """The case's layer on numpy arrays."""
    layer = case.layer()
    low, high = case.clamp
    return SparseConvolution(
        SparseFilters.from_dense(layer.weight.numpy()),
        np.zeros(layer.out_channels, np.float32) if layer.bias is None else layer.bias.numpy(),
        from_dense(layer, pool=case.pool).geometry(), -math.inf if low is None else low,
        math.inf if high is None else high)


def assert_right(case):
    x = case.images()
    if is_too_small_for_its_pool(case):
        with pytest.raises(ValueError, match='too few for a pool of 2x2'):
            sparse_of(case)(x.numpy(), case.num_threads)
        return
    before = x.clone()
    actual = torch.from_numpy(sparse_of(case)(x.numpy(), case.num_threads))
    assert_close(actual, expected_of(case.layer(), x, case.clamp, case.pool))
    assert torch.equal(x, before)


def test_equals_torch(kernels):
    quickly(100 if kernels == 'compiled' else 25)(given(cases())(assert_right))()


# Tiles are a few rows and columns of 4 to 16 images, or bands of rows of up to 16 vectors of 4 to 16 pixels.
@pytest.mark.parametrize('batch', [1, 3, 16, 19])
def test_outputs_of_all_sizes(needs_compiler, batch):
    for side in (*range(1, 10), 15, 16, 17, 31, 33, 65):
        for pool in (1, 2):
            assert_right(Case(3, 4, kernel=(3, 3), padding=(1, 1), density=0.4, pool=pool, image=(min(side, 9), side),
                              batch=batch))


@pytest.mark.parametrize('num_weights', [0, 1, 2, 3, 4, 5, 7])
def test_any_number_of_weights_in_a_filter(needs_compiler, num_weights):
    """Kernels take up to four at a time."""
    weight = np.zeros((2, 8, 1, 1), np.float32)
    weight[0, :num_weights] = weight[1, 8 - num_weights:] = np.arange(1, num_weights + 1).reshape(-1, 1, 1)
    x = np.random.default_rng(0).normal(size=(17, 8, 5, 16)).astype(np.float32)
    sparse = SparseConvolution(SparseFilters.from_dense(weight), np.ones(2, np.float32), Geometry(8, 2))
    for images in (x, x[:1], x[:, :, :3, :1], x[:1, :, :3, :1]):
        expected = np.einsum('oi,nihw->nohw', weight[:, :, 0, 0].astype(np.float64), images) + 1
        assert np.abs(sparse(images) - expected).max() < 1e-4


def test_a_band_of_many_channels_is_cut_into_several(needs_compiler):
    """What a band reads is kept in the cache: at most 2^17 floats."""
    assert_right(Case(40, 5, kernel=(3, 3), padding=(1, 1), density=0.1, image=(70, 70)))
    assert_right(Case(40, 5, kernel=(3, 3), stride=(2, 2), padding=(1, 1), density=0.1, image=(97, 97), num_threads=3))


def test_the_clamp_keeps_what_lies_within():
    case = Case(2, 3, kernel=(3, 3), batch=16)
    free = sparse_of(case)(case.images().numpy())
    assert free.min() < -0.1 and free.max() > 0.2
    clamped = sparse_of(dataclasses.replace(case, clamp=(-0.1, 0.2)))(case.images().numpy())
    assert (clamped == free.clip(np.float32(-0.1), np.float32(0.2))).all()


def test_the_same_bits_each_time_and_with_any_number_of_threads(needs_compiler):
    case = Case(6, 9, groups=2, kernel=(3, 3), padding=(1, 1), density=0.3, image=(33, 21), batch=33)
    sparse, x = sparse_of(case), case.images().numpy()
    for images in (x, x[:1]):
        outputs = [sparse(images, num_threads) for num_threads in (1, 2, 3, 1, 3)]
        assert all((output == outputs[0]).all() for output in outputs)


def test_more_shapes_than_plans_are_kept(needs_compiler, monkeypatch):
    monkeypatch.setattr(convolution, 'MAX_PLANS', 3)
    case = Case(2, 3, kernel=(3, 3), density=0.5)
    sparse = sparse_of(case)
    for side in (*range(3, 12), 3, 4):
        x = dataclasses.replace(case, image=(side, 7)).images()
        assert_close(torch.from_numpy(sparse(x.numpy(), 1)), expected_of(case.layer(), x, case.clamp))
    assert len(sparse._plans) <= 3


def test_no_images(kernels):
    assert sparse_of(Case(2, 3, kernel=(3, 3)))(np.empty((0, 2, 8, 9), np.float32)).shape == (0, 3, 6, 7)


NUMBERS = np.random.default_rng(0).normal(size=(20, 4, 6, 6)).astype(np.float32)


@pytest.mark.parametrize('x, message', [
    (NUMBERS.astype(np.float64), r'takes float32 arrays \(N, C, H, W\), not float64 \(20, 4, 6, 6\)'),
    (NUMBERS.astype('>f4'), 'takes float32'), (NUMBERS[0], r'not float32 \(4, 6, 6\)'), (NUMBERS.tolist(), 'not list'),
    (torch.from_numpy(NUMBERS), 'not Tensor'), (NUMBERS[:, :3], '3 channels for a layer of 4'),
    (NUMBERS[:, :, :2], 'an image of 2x6 is too small for a kernel of 3x3 with dilation 1x1; give a larger one'),
], ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_bad_inputs(kernels, x, message):
    with pytest.raises(ValueError, match=message) as caught:
        sparse_of(Case(4, 5, kernel=(3, 3)))(x)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('batch', [1, 16, 20])
def test_inputs_that_are_not_finite(kernels, bad, batch):
    sparse = sparse_of(Case(4, 5, kernel=(3, 3), density=0.1))
    large = np.full((batch, 4, 6, 37), 3e38, np.float32)
    sparse(large * 0.1)
    for place in ((0, 0, 0, 0), (batch - 1, 3, 5, 36), (batch // 2, 1, 3, 17)):
        x = np.zeros_like(large)
        x[place] = bad
        with pytest.raises(ValueError, match='NaN or infinite values; check what'):
            sparse(x)


@pytest.mark.parametrize('change', [
    {'stride': (0, 1)}, {'dilation': (1, 0)}, {'kernel': (0, 3)}, {'groups': 0}, {'groups': 3}, {'padding': (-1, 0)},
    {'padding_end': (0, -1)}, {'in_channels': 0}, {'out_channels': -4}, {'stride': (1.5, 1)}, {'stride': ('1', 1)},
    {'dilation': (1, 1 << 62)}, {'padding': (1 << 40, 0)}, {'out_channels': 5, 'groups': 2},
], ids=str)
def test_what_is_no_convolution_is_refused(change):
    with pytest.raises(ValueError, match='is not a convolution'):
        Geometry(**{'in_channels': 4, 'out_channels': 4, 'kernel': (3, 3)} | change)


@pytest.mark.parametrize('geometry', [
    Geometry(8, 4, (3, 3)), Geometry(4, 5, (3, 3)), Geometry(4, 4, (3, 5)), Geometry(4, 4),
    Geometry(4, 4, (3, 3), groups=2),
], ids=str)
def test_weights_of_another_layer_are_refused(geometry):
    filters = SparseFilters.from_dense(np.ones((4, 4, 3, 3), np.float32))
    SparseConvolution(filters, np.zeros(4, np.float32), Geometry(4, 4, (3, 3)))
    with pytest.raises(ValueError, match='do not belong to|a bias of'):
        SparseConvolution(filters, np.zeros(geometry.out_channels, np.float32), geometry)


@pytest.mark.parametrize('bias', [np.zeros(3, np.float32), np.zeros(4), np.zeros((4, 1), np.float32),
                                  np.zeros(8, np.float32)[::2]], ids=lambda bias: f'{bias.dtype}{bias.shape}')
def test_a_bias_that_does_not_fit_is_refused(bias):
    with pytest.raises(ValueError, match='a bias of'):
        SparseConvolution(SparseFilters.from_dense(np.ones((4, 2), np.float32)), bias, Geometry(2, 4))


def test_an_image_too_large_for_the_kernels_is_refused(needs_compiler):
    """Distances in what is packed are int32. No memory is touched: the plan alone is refused."""
    channels = 1 << 16
    sparse = SparseConvolution(
        SparseFilters.from_dense(np.ones((channels, 1, 1, 2), np.float32)), np.zeros(channels, np.float32),
        Geometry(channels, channels, (1, 2), dilation=(1, 1 << 15), groups=channels))
    with pytest.raises(ValueError, match='too large for the sparse kernels'):
        sparse.run((1, 1, (1 << 15) + 1), 0, 0, 1)
