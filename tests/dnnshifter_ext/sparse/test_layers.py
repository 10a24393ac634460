from concurrent.futures import ThreadPoolExecutor
import contextlib
import copy
import json
import warnings

from hypothesis import assume, given
from hypothesis import strategies as st
import pytest
import torch
from torch import nn

from dnnshifter_ext import export
from dnnshifter_ext.graph import capture
from dnnshifter_ext.sparse import library
from dnnshifter_ext.sparse.hybrid import InBlocks, candidates, to_hybrid
from dnnshifter_ext.sparse.layers import SparseConv2d, SparseLinear, from_dense
from tests.dnnshifter_ext.sparse.cases import (
    BATCHES,
    CLAMPS,
    Case,
    assert_close,
    cases,
    expected_of,
    fill,
    is_too_small_for_its_pool,
    quickly,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@contextlib.contextmanager
def threads(num):
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def test_convolutions_equal_torch(kernels):
    def check(case):
        layer, x = case.layer(), case.images()
        assume(not is_too_small_for_its_pool(case))
        sparse, before = from_dense(layer, case.clamp, case.pool), x.clone()
        with threads(case.num_threads):
            actual = sparse(x)
        assert_close(actual, expected_of(case.layer(), x, case.clamp, case.pool))
        assert torch.equal(x, before)
        assert sparse(x.to('meta')).shape == actual.shape
        if isinstance(layer.padding, tuple):
            dense = sparse.to_dense()
            assert repr(dense) == repr(layer).replace('bias=False', 'bias=True').replace(', bias=True', '')
            assert torch.equal(dense.weight, layer.weight)
            assert torch.equal(dense.bias, torch.zeros(layer.out_channels) if layer.bias is None else layer.bias)

    quickly(70 if kernels == 'compiled' else 20)(given(cases())(check))()


def linear(inputs, outputs, density=0.3, empty=0.0, bias=True, seed=0):
    layer = nn.Linear(inputs, outputs, bias).eval().requires_grad_(False)
    fill(layer, density, empty, torch.Generator().manual_seed(seed))
    return layer


def test_linear_equals_torch(kernels):
    one = st.sampled_from

    @quickly(50 if kernels == 'compiled' else 15)
    @given(one((7, 1, 2, 64, 300)), one((5, 1, 2, 16, 33, 130)), one((0.3, 0.0, 0.05, 1.0)), one((0.0, 0.5)),
           st.booleans(), one((*((n,) for n in BATCHES), (), (2, 3), (4, 1, 5))),
           one(('contiguous', 'transposed', 'sliced')), one(CLAMPS), one((1, 2, 3)), st.integers(0, 99))
    def check(inputs, outputs, density, empty, bias, leading, layout, clamp, num_threads, seed):
        layer = linear(inputs, outputs, density, empty, bias, seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(*leading, 2 * inputs, generator=generator)
        x = {'contiguous': x[..., :inputs].contiguous(), 'sliced': x[..., ::2],
             'transposed': x[..., :inputs].T.contiguous().T if x.dim() == 2 else x[..., inputs:]}[layout]
        sparse = from_dense(layer, clamp)
        assert torch.equal(sparse.to_dense().weight, layer.weight)
        with threads(num_threads):
            actual = sparse(x)
        assert sparse(x.to('meta')).shape == actual.shape
        assert_close(actual, expected_of(layer, x, clamp))

    check()


def test_weights_in_another_layout():
    case = Case(4, 8, kernel=(3, 3), density=0.4, batch=16)
    layer = case.layer().to(memory_format=torch.channels_last)
    assert not layer.weight.is_contiguous()
    assert_close(from_dense(layer)(case.images()), expected_of(case.layer(), case.images(), (None, None)))


def test_many_images_come_out_innermost_and_go_on_without_a_copy(needs_compiler):
    case = Case(4, 8, kernel=(3, 3), padding=(1, 1), density=0.4, batch=32)
    y = from_dense(case.layer())(case.images())
    assert y.permute(1, 2, 3, 0).is_contiguous() and torch.relu(y).permute(1, 2, 3, 0).is_contiguous()


def test_no_images(kernels):
    for layer, x in ((Case(3, 5, kernel=(3, 3), stride=(2, 1)).layer(), torch.empty(0, 3, 9, 8)),
                     (linear(4, 6), torch.empty(0, 4)), (linear(4, 6), torch.empty(2, 0, 4))):
        assert from_dense(layer)(x).shape == layer(x).shape


class OnAGpu(torch.Tensor):
    """As far as its device says."""

    device = torch.device('cuda', 0)


CONV = Case(4, 5, kernel=(3, 3), density=0.5)
IMAGES = torch.randn(17, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NAME = r'SparseConv2d\(4, 5, kernel_size=\(3, 3\), stride=\(1, 1\), num_nonzero=\d+\)'
BAD = [
    (IMAGES.double(), r'takes float32 \(N, C, H, W\), not torch.float64 \(17, 4, 8, 8\)'),
    (IMAGES.half(), 'takes float32'), (IMAGES.byte(), 'takes float32'),
    (IMAGES[0], r'takes float32 \(N, C, H, W\), not torch.float32 \(4, 8, 8\)'), (IMAGES[None], r'\(1, 17, 4, 8, 8\)'),
    (IMAGES[:, :3], 'takes 4 channels, not 3'), (IMAGES[:, :3, :1], 'takes 4 channels, not 3'),
    (IMAGES[:, :, :2], ': an image of 2x8 is too small for a kernel of 3x3 with dilation 1x1; give a larger one'),
    (IMAGES.clone().requires_grad_(), 'is for inference: it has no gradient; train the dense model instead'),
    (IMAGES.as_subclass(OnAGpu), "runs on the CPU, not on cuda:0; convert with execution='dense' for that"),
    (IMAGES * float('nan'), ': the inputs of a sparse layer have NaN or infinite values; check what'),
    (IMAGES[:1] / 0, ': the inputs of a sparse layer have NaN or infinite values'),
]


@pytest.mark.parametrize('x, message', BAD, ids=[message[:40] for _, message in BAD])
def test_bad_images_are_one_line_that_names_the_layer(kernels, x, message):
    with pytest.raises(ValueError, match=f'^{NAME}.*{message}') as caught:
        from_dense(CONV.layer())(x)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('x', [torch.zeros(3, 5), torch.zeros(3, 4, 1, 1), torch.zeros(3, 4).double(), torch.ones(())],
                         ids=lambda x: f'{x.dtype}{tuple(x.shape)}')
def test_bad_features(x):
    with pytest.raises(ValueError, match=r'^SparseLinear\(4, 6, num_nonzero=\d+\) takes float32 \(..., 4\), not torch'):
        from_dense(linear(4, 6))(x)


def test_gradients_are_refused_only_where_one_is_wanted():
    layer = from_dense(CONV.layer())
    with torch.no_grad():
        assert torch.equal(layer(IMAGES.clone().requires_grad_()), layer(IMAGES))
    assert not layer(IMAGES).requires_grad


@pytest.mark.parametrize('change', ['double', 'half', 'meta'])
def test_a_layer_that_was_moved(change):
    layer = from_dense(CONV.layer())
    layer(IMAGES)
    layer = layer.to('meta') if change == 'meta' else getattr(layer, change)()
    with pytest.raises(ValueError, match=f"^{NAME} runs in float32 on the CPU, not in .*execution='dense'"):
        layer(IMAGES)


@pytest.mark.parametrize('layer, message', [
    (nn.ConvTranspose2d(2, 2, 1), 'ConvTranspose2d has no sparse form'), (nn.Conv1d(2, 2, 1), 'Conv1d has no'),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode='reflect'), "padding_mode 'reflect' has no sparse form"),
    (nn.Linear(2, 2).double(), 'torch.float64 weights have no sparse form'),
    (nn.Linear(70000, 1), 'a filter of 70000 weights is too large to be sparse: at most 65536')],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_what_has_no_sparse_form(layer, message):
    with pytest.raises(ValueError, match=message):
        from_dense(layer)


def test_what_pads_its_sides_differently_has_no_dense_form():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        layer = from_dense(nn.Conv2d(2, 2, (2, 3), padding='same'))
    assert layer.padding == (0, 1, 1, 1)
    with pytest.raises(ValueError, match='pads its sides differently'):
        layer.to_dense()


def test_eight_threads_one_model():
    """Each with numbers of images of its own, from the first call on."""
    layers = [from_dense(CONV.layer()), from_dense(Case(5, 6, groups=1, kernel=(2, 2), stride=(2, 2)).layer()),
              nn.Flatten(), from_dense(linear(54, 7))]
    model = nn.Sequential(*layers)
    dense = nn.Sequential(*(layer if isinstance(layer, nn.Flatten) else layer.to_dense() for layer in layers)).double()
    batches = [torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in BATCHES * 4]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(model, batches))
    for x, answer in zip(batches, answers, strict=True):
        assert_close(answer, dense(x.double()))


def test_a_copy_has_its_own_weights():
    layer = from_dense(CONV.layer())
    before = layer(IMAGES)
    other = copy.deepcopy(layer)
    other.values.mul_(2)
    other.bias.zero_()
    assert torch.equal(layer(IMAGES), before)
    assert_close(other(IMAGES), 2 * (before - layer.bias.view(-1, 1, 1)).double())


@pytest.mark.parametrize('assign', [True, False])
def test_other_weights_loaded_after_the_first_call(kernels, assign):
    first, second = (from_dense(_with_nonzero(seed, 90)) for seed in (0, 1))
    first(IMAGES)
    first.load_state_dict({name: tensor.clone() for name, tensor in second.state_dict().items()}, assign=assign)
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_one_other_tensor_after_the_first_call():
    layer = from_dense(CONV.layer())
    before = layer(IMAGES)
    layer.bias = layer.bias + 1
    assert_close(layer(IMAGES), before.double() + 1)


def _with_nonzero(seed, num):
    """CONV with other weights, so many of them."""
    layer = Case(4, 5, kernel=(3, 3), seed=seed).layer()
    weight = layer.weight.view(-1)
    weight[torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))[num:]] = 0
    return layer


@pytest.mark.parametrize('assign', [True, False])
def test_loaded_weights_are_checked_again(assign):
    layer = from_dense(CONV.layer())
    layer(IMAGES)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state['positions'][-1] = 65535
    layer.load_state_dict(state, assign=assign)
    with pytest.raises(ValueError, match='lead outside'):
        layer(IMAGES)


def a_file():
    """What is stored of a small hybrid model."""
    model = capture(nn.Sequential(CONV.layer(), nn.ReLU(), nn.Flatten(), linear(180, 3)).eval())
    return export.to_data(to_hybrid(model, candidates(model)))


def test_a_file():
    data = a_file()
    loaded = export.from_data(data)
    assert isinstance(loaded, InBlocks)
    assert [type(layer) for layer in loaded.model.children()] == [SparseConv2d, nn.Flatten, SparseLinear]
    assert_close(loaded(IMAGES), nn.Sequential(CONV.layer(), nn.ReLU(), nn.Flatten(), linear(180, 3)).double()(
        IMAGES.double()))


def _set(name, index, value):
    def change(data):
        data['tensors'][f'0.{name}'][index] = value
    return change


def _cast(name, dtype):
    def change(data):
        data['tensors'][f'0.{name}'] = data['tensors'][f'0.{name}'].to(dtype)
    return change


def _every_other(name):
    def change(data):
        data['tensors'][f'0.{name}'] = data['tensors'][f'0.{name}'].repeat_interleave(2)[::2]
    return change


def _argument(name, value):
    def change(data):
        structure = json.loads(data['structure'])
        assert name in structure['modules']['0']['arguments']['dict']
        structure['modules']['0']['arguments']['dict'][name] = value
        data['structure'] = json.dumps(structure)
    return change


PAIR_OF_ZEROS = {'tuple': [0, 0]}


@pytest.mark.parametrize('change', [
    _set('positions', 0, 36), _set('positions', -1, 65535), _set('pointers', 0, -1), _set('pointers', -1, 1 << 20),
    _set('pointers', 2, 1 << 30), _set('pointers', 2, -(1 << 31)), _cast('positions', torch.int32),
    _cast('pointers', torch.int64), _cast('values', torch.float64), _cast('bias', torch.float64),
    _every_other('values'), _every_other('bias'), _every_other('pointers'), _argument('groups', 3),
    _argument('groups', 0), _argument('stride', PAIR_OF_ZEROS), _argument('dilation', PAIR_OF_ZEROS),
    _argument('padding', {'tuple': [-9, 0, 0, 0]}), _argument('kernel_size', {'tuple': [3, 2]}),
    _argument('in_channels', 3), _argument('out_channels', 6), _argument('num_nonzero', 5),
    _argument('dilation', {'tuple': [1 << 60, 1]}), _argument('stride', 1),
])
def test_a_file_that_was_tampered_with_is_refused(change):
    data = a_file()
    data['tensors'] = {name: tensor.clone() for name, tensor in data['tensors'].items()}
    change(data)
    with pytest.raises(ValueError, match='.') as caught:
        export.from_data(data)
    assert '\n' not in str(caught.value)


def test_loading_compiles(needs_compiler, monkeypatch):
    """Warm-up stays out of the first query."""
    calls = []
    data, load = a_file(), library.load
    monkeypatch.setattr(library, 'load', lambda: calls.append(1) or load())
    export.from_data(data)
    assert calls
