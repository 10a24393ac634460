"""Every back end gives the outputs of the converted model in torch."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dnnshifter_ext.package import models, read, write
from dnnshifter_ext.runtime import backends
from dnnshifter_ext.runtime.program import program
from open_lth.models import registry
from tests.dnnshifter_ext import nets
from tests.dnnshifter_ext.runtime import portfolios

BATCHES = (1, 7, 16, 37)


def engine(name, num_outputs=10):
    return registry.get(registry.get_default_hparams(name).model_hparams, num_outputs)


class Assorted(nn.Module):
    """What the engine's families do not have: strides, dilation, groups, padded pools, cat, mean, clamps, ReLU6."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, padding='same', groups=2, bias=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.relu6 = nn.ReLU6()
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu6(self.first(x))
        y = F.hardtanh(F.relu(self.grouped(x)), -0.5, 0.7)
        x = torch.cat([self.pool(x), self.pool(F.avg_pool2d(torch.clamp(y, max=0.6) * x, 3, 1, 1))], 1)
        return self.last(F.relu(x).mean((2, 3)) + x.mean((2, 3)))


# Name -> what makes it, the shape of its inputs, density and share of dead filters where they matter.
NETWORKS = {
    'VGG': (nets.VGG, (3, 8, 8)), 'ResNet': (nets.ResNet, (3, 8, 8)), 'LeNet': (nets.LeNet, (1, 6, 6)),
    'flattening': (nets.FlatteningNet, (3, 8, 8)), 'assorted': (Assorted, (3, 9, 9), 0.8, 0.1),
    'cifar_vgg_5': (lambda: engine('cifar_vgg_5'), (3, 32, 32)),
    'cifar_resnet_8_8': (lambda: engine('cifar_resnet_8_8'), (3, 32, 32), 0.04, 0.2),
    'mnist_lenet_100': (lambda: engine('mnist_lenet_100'), (1, 28, 28), 0.02, 0.2),
    'tinyimagenet_resnet_18_4': (lambda: engine('tinyimagenet_resnet_18_4'), (3, 64, 64)),
}


def packed(model, execution='sparse', shape=portfolios.SHAPE):
    [found] = read(write([portfolios.variant('v', model, execution, shape)])).variants
    return found


def network(name):
    """Converted and packed; the shape of its inputs."""
    make, shape, *sparsity = NETWORKS[name]
    torch.manual_seed(0)
    return packed(portfolios.sparse(make(), *(sparsity or (0.3, 0.4))), 'sparse', shape), shape


def answers(found, backend, batch, num_threads=None):
    [plan] = backends.plans(backend, (found,), num_threads)
    model = plan.rebuild(plan.inflate())
    assert model.num_bytes <= plan.num_bytes
    return model.run(batch)


@pytest.mark.parametrize('name', NETWORKS)
def test_all_back_ends_agree_with_torch(name):
    found, shape = network(name)
    batch = portfolios.images(max(BATCHES), shape)
    with torch.inference_mode():
        wanted = models.rebuild(found)(torch.from_numpy(batch)).numpy()
    assert np.ptp(wanted, axis=0).max() > 0.01 * np.ptp(wanted)  # they depend on the image
    for backend in backends.NAMES:
        for num in BATCHES if shape[1] < 32 else BATCHES[1:3]:
            outputs = answers(found, backend, batch[:num])
            assert portfolios.is_close(outputs, wanted[:num]), (backend, num)


def test_there_were_index_maps_among_them():
    """So that the test above says something about gathers and scatters."""
    kinds = set()
    for name in ('cifar_resnet_8_8', 'mnist_lenet_100'):
        found, _ = network(name)
        steps = program(found.structure(), {key: tensor.shape for key, tensor in found.tensors.items()}).steps
        kinds |= {step.kind for step in steps}
    assert {'gather', 'scatter_add', 'add', 'constant'} <= kinds


@pytest.mark.parametrize('backend', ['torch', 'numpy'])
def test_sparse_layers_are_never_dense(backend, monkeypatch):
    found = packed(portfolios.sparse(nets.VGG()))
    batch = portfolios.images(3)
    wanted = answers(found, 'torch', batch)
    dense = type(found).dense

    def refuse_matrices(self, name):
        assert len(self.tensors[name].shape) == 1, name
        return dense(self, name)

    monkeypatch.setattr(type(found), 'dense', refuse_matrices)
    assert portfolios.is_close(answers(found, backend, batch), wanted)


def test_torch_runs_those_layers_sparse_that_the_profile_names():
    variant = portfolios.variant('v', portfolios.sparse(nets.VGG()))
    layers = variant.profile['execution']['layers']
    layers[0]['execution'] = 'dense'
    [found] = read(write([variant])).variants
    [plan] = backends.plans('torch', (found,), None)
    assert plan.sparse == {layer['layer'] for layer in layers[1:]}
    assert layers[0]['layer'] + '.weight' in plan.inflate()
    batch = portfolios.images(20)
    assert portfolios.is_close(answers(found, 'torch', batch), answers(found, 'onnxruntime', batch))


def test_models_of_one_plan_have_weights_of_their_own():
    found = packed(portfolios.sparse(nets.VGG()))
    batch = portfolios.images(4)
    for backend in backends.NAMES:
        [plan] = backends.plans(backend, (found,), None)
        first, weights = plan.rebuild(plan.inflate()), plan.inflate()
        wanted = first.run(batch)
        for value in weights.values():
            array = value.values if backend == 'numpy' and hasattr(value, 'positions') else np.asarray(value)
            if array.dtype == np.float32:
                array *= 2
        assert not portfolios.is_close(plan.rebuild(weights).run(batch), wanted)
        assert np.array_equal(first.run(batch), wanted)


class InPlace(nn.Module):
    """Reads a value after it was changed in place, under its old name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x)
        y = x.relu_()
        return self.fc(torch.cat([x, y], 1).mean((2, 3)))


@pytest.mark.parametrize('backend', backends.NAMES)
def test_what_is_changed_in_place_is_changed_for_all(backend):
    model = portfolios.sparse(InPlace(), 1.0, 0.0)
    [found] = read(write([models.variant('v', model, {}, (3, 6, 6))])).variants
    batch = portfolios.images(5, (3, 6, 6))
    with torch.inference_mode():
        wanted = model(torch.from_numpy(batch)).numpy()
    assert portfolios.is_close(answers(found, backend, batch), wanted)


def without_torch(model, shape=(3, 8, 8)):
    [found] = read(write([models.variant('v', model.eval(), {}, shape)])).variants
    return backends.plans('numpy', (found,), None)


@pytest.mark.parametrize(('make', 'words'), [
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU()), "variant 'v': '_1' is a GELU"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode='circular')), "pads with 'circular'"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4)), r'from \(6, 6\) to \(4, 4\)'),
    (lambda: nn.Sequential(nn.Flatten(0)), 'mixes images'),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), 'something else than'),
])
def test_what_only_torch_can_run_is_refused_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        without_torch(make())
    assert '\n' not in str(caught.value)


def test_without_the_shape_of_inputs_only_torch_can_run_it():
    with pytest.raises(ValueError, match='does not say what its inputs look like'):
        without_torch(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), None)


@pytest.mark.parametrize('structure', ['', '[]', '{}', '{"input_shape": [3], "modules": {}, "nodes": [3]}'])
def test_a_structure_that_is_none_is_refused(structure):
    with pytest.raises(ValueError) as caught:
        program(structure, {})
    assert '\n' not in str(caught.value)


def test_a_layer_whose_weights_are_missing_is_refused():
    variant = portfolios.variant('v', portfolios.sparse(nets.VGG()))
    tensors = {name: array for name, array in variant.tensors.items() if name != 'fc.weight'}
    [found] = read(write([type(variant)('v', variant.structure, tensors, {})])).variants
    with pytest.raises(ValueError, match="layer 'fc' has no weights of float32"):
        backends.plans('numpy', (found,), None)


@pytest.mark.parametrize('execution', [
    'sparse', {'layers': 3}, {'layers': [3]}, {'layers': [{'layer': 'x'}]},
    {'layers': [{'layer': 'nowhere', 'execution': 'sparse'}]}])
def test_a_profile_that_is_wrong_about_layers_is_refused(execution):
    variant = portfolios.variant('v', portfolios.sparse(nets.VGG()))
    variant = type(variant)(variant.name, variant.structure, variant.tensors, json.loads(json.dumps(
        {'execution': execution})))
    with pytest.raises(ValueError, match="variant 'v': (the profile|layer 'nowhere' has no weights)"):
        backends.plans('torch', read(write([variant])).variants, None)


def test_an_unknown_back_end_is_refused():
    with pytest.raises(ValueError, match="no back end 'tvm', only torch, onnxruntime, numpy"):
        backends.plans('tvm', (), None)
