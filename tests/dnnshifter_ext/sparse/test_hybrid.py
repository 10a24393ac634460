import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dnnshifter_ext import export, ops
from dnnshifter_ext.fuse import fuse_conv_bn
from dnnshifter_ext.graph import capture
from dnnshifter_ext.sparse import library
from dnnshifter_ext.sparse.choice import with_execution
from dnnshifter_ext.sparse.hybrid import InBlocks, candidates, to_dense, to_hybrid
from dnnshifter_ext.sparse.layers import SparseConv2d, SparseLayer, SparseLinear
from tests.dnnshifter_ext import architectures, nets
from tests.dnnshifter_ext.generated import for_networks
from tests.dnnshifter_ext.networks import IMAGE_CHANNELS, RESOLUTIONS
from tests.dnnshifter_ext.sparse.cases import TOLERANCE
from tests.dnnshifter_ext.sparsity import Sparsity, make_sparse

pytestmark = [pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
              pytest.mark.usefixtures('needs_compiler')]


def images(num, side=16, seed=0):
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(seed))


def sparse(model):
    return make_sparse(model, Sparsity(density=0.6, dead_filters=0.1)).float()


def hybrid_of(model):
    """(dense, hybrid with all layers sparse that can be), batch norms fused."""
    dense = fuse_conv_bn(capture(model.float().eval()))
    return dense, to_hybrid(dense, candidates(dense))


@torch.no_grad()
def assert_equal(dense, hybrid, x, predicts=True):
    """Within 1e-5 of the range of the outputs, or what the dense model itself is off by, which may magnify rounding."""
    exact, expected, actual = copy.deepcopy(dense).double()(x.double()), dense(x.clone()), hybrid(x.clone())
    scale = exact.max() - exact.min() if exact.max() - exact.min() > 1e-3 * exact.abs().max() else exact.abs().max()
    limit = max(TOLERANCE * scale, 2 * (expected - exact).abs().max())
    if predicts and len(x) > 1:
        assert (exact[0] - exact[1]).abs().max() > 100 * limit, 'whatever goes in, the same comes out'
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    assert (actual - exact).abs().max() <= limit
    if predicts:
        assert torch.equal(actual.argmax(1), expected.argmax(1))


# One with each: residuals; ReLU6 and depthwise; concatenation; ceil pooling; branches; shuffles.
@pytest.mark.parametrize('name, num_dense', [
    ('resnet18', 0), ('mobilenet_v2', 0), ('densenet121', 0), ('squeezenet1_1', 0), ('googlenet', 0),
    ('shufflenet_v2_x0_5', 0)])
def test_torchvision(name, num_dense):
    dense, hybrid = hybrid_of(make_sparse(architectures.build(name), Sparsity(density=0.4, dead_filters=0.1)))
    layers = dict(hybrid.named_modules())
    left = [path for path, layer in layers.items() if type(layer) in (nn.Conv2d, nn.Linear)]
    assert len(left) == num_dense
    for batch in (1, 3, 17):
        assert_equal(dense, hybrid, images(batch, 32, batch))
    back = to_dense(hybrid)
    assert not any(isinstance(layer, SparseLayer) for layer in back.modules())
    for path in candidates(dense):
        layer, before = back.get_submodule(path), dense.get_submodule(path)
        assert type(layer) is type(before) and torch.equal(layer.weight, before.weight)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias) if before.bias is None else before.bias)
    assert_equal(dense, back, images(3, 32))


@pytest.mark.parametrize('num_networks', [40, pytest.param(1000, marks=pytest.mark.full)])
def test_generated_networks(num_networks):
    reasons = []

    def check(network):
        network = replace(network, heads=network.heads[:1])
        model = capture(network.build().float())
        generator = torch.Generator().manual_seed(network.sparsity.seed)
        x = torch.randn(19, IMAGE_CHANNELS, *RESOLUTIONS[network.dims][0], generator=generator)
        hybrid, execution = with_execution(model, (x,), 'sparse')
        reasons.append(execution.reason)
        if execution.reason:
            assert hybrid is model
            return
        assert execution.num_sparse == len(candidates(model)) > 0
        for batch in (x, x[:3], x[:1]):
            assert_equal(model, hybrid, batch, predicts=False)
        try:
            data = export.to_data(hybrid)
        except ValueError as error:  # files know fewer operations
            assert 'cannot store' in str(error)
        else:
            assert torch.equal(export.from_data(data)(x), hybrid(x))

    for_networks(num_networks, check)
    assert reasons.count('') > 0.5 * len(reasons)
    assert set(reasons) <= {'', 'no layer has a sparse form',
                            'what the model computes for an image depends on the others of its batch'}


# What torch.fx sees of an activation -> what the sparse layer clamps to; None where it stays a layer of its own.
ACTIVATIONS = {
    'nn.ReLU': (nn.ReLU(), (0.0, None)),
    'nn.ReLU, in place': (nn.ReLU(inplace=True), (0.0, None)),
    'nn.ReLU6': (nn.ReLU6(), (0.0, 6.0)),
    'nn.Hardtanh': (nn.Hardtanh(-0.5, 0.25), (-0.5, 0.25)),
    'F.relu': (F.relu, (0.0, None)),
    'F.relu, in place': (lambda x: F.relu(x, inplace=True), (0.0, None)),
    'F.relu6': (F.relu6, (0.0, 6.0)),
    'torch.relu': (torch.relu, (0.0, None)),
    'x.relu': (lambda x: x.relu(), (0.0, None)),
    'x.relu_': (lambda x: x.relu_(), (0.0, None)),
    'nn.LeakyReLU': (nn.LeakyReLU(), None),
    'nn.SiLU': (nn.SiLU(), None),
    'sigmoid': (torch.sigmoid, None),
}


@pytest.mark.parametrize('activation, clamp', ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_that_clamp_are_fused(activation, clamp):
    dense, hybrid = hybrid_of(sparse(nets.Pair(activation=activation)))
    first = hybrid.model.get_submodule('conv1')
    assert (first.low, first.high) == (clamp or (None, None))
    assert len(hybrid.model.graph.nodes) == (4 if clamp else 5)
    assert len(to_dense(hybrid).graph.nodes) == 5
    for batch in (1, 17):
        assert_equal(dense, hybrid, 4 * images(batch))
        assert_equal(dense, to_dense(hybrid), 4 * images(batch))


def test_an_activation_is_not_fused_where_others_read_the_layer():
    class Both(nets.Pair):
        def forward(self, x):
            y = self.conv1(x)
            return self.conv2(F.relu(y) + y)

    dense, hybrid = hybrid_of(sparse(Both()))
    first = hybrid.model.get_submodule('conv1')
    assert (first.low, first.high) == (None, None)
    assert_equal(dense, hybrid, images(17))


POOLS = {
    'max': nn.MaxPool2d(2), 'max, overlapping': nn.MaxPool2d(3, 2, 1), 'max, dilated': nn.MaxPool2d(2, 1, dilation=3),
    'max, ceil': nn.MaxPool2d((3, 2), ceil_mode=True), 'average': nn.AvgPool2d(3, 2, 1),
    'average of the image alone': nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
    'adaptive average': nn.AdaptiveAvgPool2d((5, 1)), 'adaptive max': nn.AdaptiveMaxPool2d(3),
    'F.max_pool2d': lambda x: F.max_pool2d(x, 2),
    'F.max_pool2d, arguments': lambda x: F.max_pool2d(x, 3, 1, 1, 1, True),
    'F.max_pool2d, by name': lambda x: F.max_pool2d(input=x, kernel_size=2, stride=1),
    'F.avg_pool2d': lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    'F.adaptive_avg_pool2d': lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    'F.adaptive_max_pool2d': lambda x: F.adaptive_max_pool2d(x, 3),
    'after what is element by element': lambda x: F.max_pool2d(torch.sigmoid(x) * x + x, 2),
    'two': nn.Sequential(nn.MaxPool2d(3, 1), nn.AvgPool2d(2)),
    'after a slice': lambda x: F.max_pool2d(x[:, 1:], 2),
    'two readers': lambda x: torch.cat([F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1)], 1),
    'x.mean': lambda x: x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize('pool', POOLS.values(), ids=POOLS)
def test_pools(pool):
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 3), pool, nn.LazyConv2d(5, 1)

        def forward(self, x):
            return self.conv2(self.pool(self.conv1(x)))

    torch.manual_seed(0)
    model = Pooling()
    model(images(1))
    dense, hybrid = hybrid_of(sparse(model))
    for batch in (1, 3, 17, 33):
        assert_equal(dense, hybrid, images(batch))
    empty = images(0)
    assert hybrid(empty).shape == dense(empty).shape
    assert hybrid(images(1).to('meta')).shape == dense(images(1)).shape
    assert_equal(dense, to_dense(hybrid), images(3))
    assert torch.equal(export.from_data(export.to_data(hybrid))(images(17)), hybrid(images(17)))


def test_an_empty_batch_is_empty_outputs_as_of_torch():
    for model in (nets.Pair(), nets.ResNet()):
        dense, hybrid = hybrid_of(model)
        x = nets.images()[:0]
        assert hybrid(x).shape == dense(x).shape and len(dense(x)) == 0


class Shared(nn.Module):
    """Layer `a` is called twice, and so is an activation that has two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.act = self.same_act = nn.ReLU()

    def forward(self, x):
        return self.c(self.same_act(self.b(self.act(self.a(self.a(x))))))


def test_shared_layers_are_left_alone():
    dense, hybrid = hybrid_of(sparse(Shared()))
    assert type(hybrid.model.a) is nn.Conv2d
    assert type(hybrid.model.b) is SparseConv2d and hybrid.model.b.low == 0
    assert_equal(dense, hybrid, images(17))
    with pytest.raises(ValueError, match="^'a' cannot be sparse: it is used more than once$"):
        to_hybrid(dense, ['b', 'a'])


def test_a_layer_without_a_sparse_form_is_named():
    dense = capture(nets.Pair(first={'padding_mode': 'circular'}).eval())
    assert list(candidates(dense)) == ['conv2']
    with pytest.raises(ValueError, match="^'conv1' cannot be sparse: padding_mode 'circular' has no sparse form$"):
        to_hybrid(dense, ['conv1'])


def test_the_layers_that_are_asked_for_and_no_others():
    dense = capture(sparse(nets.VGG()))
    some = list(candidates(dense))[1::2]
    hybrid = to_hybrid(dense, some)
    kinds = {path: type(hybrid.model.get_submodule(path)) for path in candidates(dense)}
    assert [path for path, kind in kinds.items() if kind in (SparseConv2d, SparseLinear)] == some
    hybrid(nets.images())  # outside torch.no_grad: the dense layers in it ask for no gradient
    export.from_data(export.to_data(hybrid))(nets.images())
    assert_equal(dense, hybrid, nets.images(num=19))


def test_weights_that_are_given():
    dense = capture(sparse(nets.Pair()))
    whole = to_hybrid(dense, candidates(dense))
    given = {path: whole.model.get_submodule(path).filters() for path in candidates(dense)}
    empty = copy.deepcopy(dense)
    for layer in (empty.conv1, empty.conv2):
        layer.weight.data.zero_()
    assert torch.equal(to_hybrid(empty, candidates(empty), given)(images(3)), whole(images(3)))


def test_the_dense_model_is_untouched_and_shares_nothing():
    dense = capture(sparse(nets.VGG()))
    before, code = nets.state_of(dense), dense.code
    hybrid = to_hybrid(dense, candidates(dense))
    with torch.no_grad():
        for tensor in hybrid.state_dict().values():
            tensor.zero_()
    assert nets.same_state(before, nets.state_of(dense)) and dense.code == code


def test_blocks():
    class Sizes(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    for num, expected in ((1, [1]), (library.load().functions.lanes(), None), (0, [1])):
        seen = []
        x = images(num)
        assert torch.equal(InBlocks(Sizes())(x), x)
        assert seen == (expected or [num])
    seen, lanes = [], library.load().functions.lanes()
    x = images(2 * lanes + 3)
    assert torch.equal(InBlocks(Sizes())(x), x) and seen == [lanes, lanes, 3]


def test_a_copy_has_its_own_weights():
    _, hybrid = hybrid_of(sparse(nets.VGG()))
    x = nets.images(num=17)
    before = hybrid(x)
    other = copy.deepcopy(hybrid)
    assert torch.equal(other(x), before)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert torch.equal(hybrid(x), before) and not other(x).any()


def test_a_file_keeps_the_answers(tmp_path):
    _, hybrid = hybrid_of(sparse(nets.VGG()))
    export.save(hybrid, tmp_path / 'model', input_shape=(3, 8, 8))
    loaded, x = export.load(tmp_path / 'model'), nets.images(num=35)
    assert isinstance(loaded, InBlocks) and loaded.meta['input_shape'] == (3, 8, 8)
    assert torch.equal(loaded(x), hybrid(x))
    export.save(loaded, tmp_path / 'again')
    assert torch.equal(export.load(tmp_path / 'again')(x), hybrid(x))


def test_without_a_compiler_a_hybrid_model_still_answers(monkeypatch):
    dense, hybrid = hybrid_of(sparse(nets.VGG()))
    monkeypatch.setattr(library, 'load', lambda: None)
    for loaded in (hybrid, export.from_data(export.to_data(hybrid))):
        for batch in (1, 17):
            assert_equal(dense, loaded, nets.images(num=batch))
        assert loaded(nets.images()[:0]).shape == (0, 10)


@pytest.mark.parametrize('x', [images(2, 8)[:, :2], images(2, 8).double(), images(2, 8) * float('nan')], ids=range(3))
def test_bad_inputs_are_one_line(x):
    _, hybrid = hybrid_of(nets.VGG())
    with pytest.raises(ValueError, match=r'^SparseConv2d\(3, ') as caught:
        hybrid(x)
    assert '\n' not in str(caught.value)


def test_all_that_a_hybrid_calls_can_be_stored():
    assert torch.transpose in ops.FUNCTIONS.values() and {SparseConv2d, SparseLinear} <= set(ops.MODULE_ARGUMENTS)
