"""The export to ONNX: the file says and computes what it should, and the check would notice if not."""

import copy
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F
import torchvision

from dnnshifter_ext.conversion import convert
from dnnshifter_ext.graph import capture
from dnnshifter_ext.onnx import TOLERANCE, check_onnx, to_onnx
from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry as models_registry
from tests.dnnshifter_ext import nets, test_export


@pytest.fixture(scope='module')
def pruned():
    """A pruned model with branches."""
    return convert(nets.sparsify(nets.ResNet()), nets.images()).model


@pytest.fixture(scope='module')
def content(pruned):
    return to_onnx(pruned, nets.images())


def run(content, x):
    """The first output of ONNX Runtime."""
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(['output'], {'input': x.numpy()})[0])


def shape_of(value):
    return [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize('num', [1, 3, 4, 7])
def test_it_computes_the_same_for_any_batch(pruned, content, num):
    x = nets.images(num=num, seed=num)
    with torch.no_grad():
        torch.testing.assert_close(run(content, x), pruned(x), rtol=1e-5, atol=1e-6)


def test_the_file_has_names_an_open_batch_and_all_weights(pruned, content):
    model = onnx.load_from_string(content)
    [given], [answer] = model.graph.input, model.graph.output
    assert (given.name, shape_of(given)) == ('input', ['batch', 3, 8, 8])
    assert (answer.name, shape_of(answer)) == ('output', ['batch', 10])
    assert all(weight.data_location != onnx.TensorProto.EXTERNAL for weight in model.graph.initializer)
    assert sum(len(weight.raw_data) for weight in model.graph.initializer) >= 4 * nets.num_params(pruned)


def test_one_example_is_enough_and_the_model_is_untouched(caplog):
    model = nets.VGG().train()
    before = nets.state_of(model)
    content = to_onnx(model, nets.images(num=1))
    assert model.training and nets.same_state(before, model.state_dict())
    logging.getLogger().warning('loggers are heard again')
    assert 'heard again' in caplog.text
    x = nets.images(num=3)
    with torch.no_grad():
        torch.testing.assert_close(run(content, x), model.eval()(x))


def test_the_check_measures_in_float64(pruned, content):
    x = nets.images(num=5)
    report = check_onnx(content, pruned, x)
    with torch.no_grad():
        expected = copy.deepcopy(pruned).double()(x.double())
    assert 0 < report.max_abs_difference == pytest.approx(float((run(content, x) - expected).abs().max()), rel=0.5)
    assert report.within(TOLERANCE) and report.changed_predictions == 0
    assert report.num_predictions == 6  # the first input by itself, and all five


def test_the_check_notices_another_model(pruned, content):
    x = nets.images()
    other = capture(nets.sparsify(nets.ResNet(), seed=1))
    report = check_onnx(content, other, x)
    assert not report.within(TOLERANCE) and 0 < report.changed_predictions <= report.num_predictions
    changed = onnx.load_from_string(content)
    [bias] = [weight for weight in changed.graph.initializer if weight.name == 'fc.bias']
    bias.CopyFrom(onnx.numpy_helper.from_array(pruned.fc.bias.detach().numpy() + 0.25, 'fc.bias'))
    report = check_onnx(changed.SerializeToString(), pruned, x)
    assert report.max_abs_difference == pytest.approx(0.25, rel=1e-4) and not report.within(TOLERANCE)


def test_the_check_refuses_what_does_not_run(pruned, content, capfd):
    x = nets.images()
    for bad in (b'', b'text', content[:len(content) // 2]):
        with pytest.raises(ValueError, match='ONNX Runtime cannot run the exported model: [^\n]+$'):
            check_onnx(bad, pruned, x)
    fixed = onnx.load_from_string(content)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(ValueError, match='ONNX Runtime cannot run the exported model: [^\n]+$'):
        check_onnx(fixed.SerializeToString(), pruned, x)  # the batch is not open
    nameless = onnx.load_from_string(content)
    nameless.graph.name = ''  # ONNX Runtime does not mind, others may
    with pytest.raises(ValueError, match="'name' of 'graph' is required"):
        check_onnx(nameless.SerializeToString(), pruned, x)
    torn = onnx.load_from_string(content)
    [reshape] = [node for node in torn.graph.node if node.op_type == 'Reshape']
    [shape] = [weight for weight in torn.graph.initializer if weight.name == reshape.input[1]]
    shape.CopyFrom(onnx.numpy_helper.from_array(np.array([7, -1]), shape.name))
    with pytest.raises(ValueError, match='ONNX Runtime cannot run the exported model: [^\n]+$'):
        check_onnx(torn.SerializeToString(), pruned, x)
    with pytest.raises(ValueError, match='different shapes'):
        check_onnx(content, capture(nets.sparsify(nets.ResNet(outputs=9))), x)
    assert capfd.readouterr() == ('', '')


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize('model, x, message', [
    (nets.Pair(activation=lambda x: F.adaptive_max_pool2d(x, (3, 5))), nets.images(),
     r"torch.onnx.export fails on inputs of shape \(4, 3, 8, 8\): No ONNX function found for .*adaptive_max_pool2d"),
    (Branching(), nets.images(), 'torch.onnx.export fails on .*data-dependent'),
    (nets.VGG(), nets.images(channels=1), r'VGG: cannot run on inputs of shape \(1, 1, 8, 8\): .*3 channels'),
    (nets.VGG(), torch.zeros(2, 3), r'cannot run on inputs of shape \(1, 3\)'),
    (Two(), nets.images(), "cannot run on inputs .*'y'"),
    (nn.Linear(2**15, 2**15, device='meta'), torch.zeros(1, 2**15), 'more than the 2 GiB'),
], ids=['operation', 'branch', 'channels', 'dimensions', 'arguments', 'size'])
def test_what_cannot_be_exported_is_one_line(model, x, message, capfd):
    with pytest.raises(ValueError, match=message) as caught:
        to_onnx(model, x)
    assert '\n' not in str(caught.value)
    assert capfd.readouterr() == ('', '')


ENGINE = {
    'mnist_lenet_20_10': (1, 28), 'cifar_vgg_16': (3, 32), 'cifar_resnet_20_8': (3, 32),
    'imagenet_resnet_18_16': (3, 64), 'imagenet_resnet_50_16': (3, 64), 'tinyimagenet_resnet_18_16': (3, 64),
    'tinyimagenet_modifiedresnet_18_16': (3, 64)}
TORCHVISION = ('resnet18', 'mobilenet_v3_small', 'densenet121', 'shufflenet_v2_x0_5', 'efficientnet_b0', 'googlenet')
SMALL = ('convnext', 'vit', 'swin', 'swin v2', 'maxvit')


def family(name):
    """(a model, three inputs)."""
    if name in ENGINE:
        channels, size = ENGINE[name]
        model = models_registry.get(ModelHparams(name, 'kaiming_normal', 'uniform'), outputs=10)
        return model, nets.images(size, channels, num=3)
    if name in TORCHVISION:
        arguments = {'init_weights': False} if name == 'googlenet' else {}
        return torchvision.models.get_model(name, weights=None, num_classes=10, **arguments), nets.images(64, num=3)
    build, x = test_export.MODELS[name]
    return build(), x


@pytest.mark.full
@pytest.mark.parametrize('name', [*ENGINE, *TORCHVISION, *SMALL])
def test_every_family(name):
    torch.manual_seed(0)
    model, x = family(name)
    small = convert(nets.sparsify(model, density=0.5, share_of_dead_filters=0.1), x).model
    report = check_onnx(to_onnx(small, x[:2]), small, x)
    assert report.within(TOLERANCE) and report.changed_predictions == 0
