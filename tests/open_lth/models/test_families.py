import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.models import (
    cifar_resnet,
    cifar_vgg,
    imagenet_resnet,
    mnist_lenet,
    registry,
    tinyimagenet_resnet,
)

SHAPES = {'mnist_lenet_20_10': (1, 28, 28), 'cifar_resnet_8_4': (3, 32, 32), 'cifar_vgg_5': (3, 32, 32),
          'imagenet_resnet_18_4': (3, 64, 64), 'imagenet_resnet_50_4': (3, 64, 64),
          'tinyimagenet_resnet_18_4': (3, 64, 64), 'tinyimagenet_modifiedresnet_18_4': (3, 64, 64)}


def build(name, outputs=None, **hparams):
    torch.manual_seed(0)
    return registry.get(ModelHparams(name, 'kaiming_normal', 'uniform', **hparams), outputs)


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('outputs', [None, 7])
def test_forward_and_backward(name, outputs):
    model = build(name, outputs)
    images, labels = torch.randn(4, *SHAPES[name]), torch.arange(4) % 7
    logits = model(images)
    assert logits.shape == (4, outputs or (1000 if 'imagenet' in name else 10))
    loss = model.loss_criterion(logits, labels)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('name', SHAPES)
def test_layer_names_are_in_the_state_dict(name):
    model = build(name)
    state = model.state_dict()
    assert all(state[layer].dim() in (2, 4) for layer in model.prunable_layer_names)
    assert [state[layer].dim() for layer in model.output_layer_names] == [2, 1]


def test_a_resnet_block_adds_its_shortcut():
    """conv2 of zeros: what comes out is the shortcut alone."""

    block = cifar_resnet.Block(4, 4)
    block.conv2.weight.data.zero_()
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block.eval()(x), torch.relu(x))


def test_a_downsampling_block_halves_the_image():
    assert cifar_resnet.Block(4, 8, downsample=True)(torch.randn(2, 4, 8, 8)).shape == (2, 8, 4, 4)


@pytest.mark.parametrize(
    'depth, conv_indices',
    [
        (5, [0, 2, 4, 6, 8]),
        (11, [0, 2, 4, 5, 7, 8, 10, 11]),
        (16, [0, 1, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 16]),
    ],
)
def test_vgg_state_names(depth, conv_indices):
    model = build(f'cifar_vgg_{depth}')
    assert model.prunable_layer_names == [f'layers.{i}.conv.weight' for i in conv_indices] + ['fc.weight']
    assert f'layers.{conv_indices[-1]}.conv.bias' in model.state_dict()


def test_modified_stem_keeps_small_images_large():
    plain, modified = (build(f'tinyimagenet_{kind}_18_4').model for kind in ('resnet', 'modifiedresnet'))
    assert plain.conv1.kernel_size == (7, 7) and modified.conv1.kernel_size == (3, 3)
    assert modified.maxpool(modified.conv1(torch.randn(1, 3, 64, 64))).shape[-1] == 64


def test_tiny_imagenet_models_have_1000_outputs():
    """Reproduced: the number of classes (200) never reaches the model."""

    assert build('tinyimagenet_resnet_18_4').model.fc.out_features == 1000


@pytest.mark.parametrize(
    'family, valid, invalid',
    [
        (
            mnist_lenet,
            ['mnist_lenetx_10', 'mnist_lenet_1'],
            ['mnist_lenet_1_', 'mnist_lenet_1_x', 'xmnist_lenet_1', ''],
        ),
        (
            cifar_resnet,
            ['cifar_resnet_8', 'cifar_resnet_8_1'],
            ['cifar_resnet_2', 'cifar_resnet_8_4_2', 'cifar_resnet_x'],
        ),
        (cifar_vgg, ['cifar_vgg_5'], ['cifar_vgg_12', 'cifar_vgg_16_64', 'cifar_vgg_x', 'mycifar_vgg_16']),
        (
            imagenet_resnet,
            ['imagenet_resnet_200_8'],
            [
                'imagenet_resnet_19',
                'imagenet_resnet_269',
                'imagenet_resnet_18_x',
                'imagenet_resnet_18_0',
                'tinyimagenet_resnet_18',
            ],
        ),
        (
            tinyimagenet_resnet,
            ['tinyimagenet_resnet_18', 'tinyimagenet_modifiedresnet_50_8'],
            ['tinyimagenet_resnet', 'tinyimagenet_foo_18', 'imagenet_resnet_18'],
        ),
    ],
)
def test_names(family, valid, invalid):
    assert all(family.Model.is_valid_model_name(name) for name in valid)
    for name in invalid:
        assert not family.Model.is_valid_model_name(name), name
        with pytest.raises(ValueError):
            family.Model.get_model_from_name(name, lambda module: None)


@pytest.mark.parametrize(
    'name', ['foo', '', 'foo_bar_baz', 'cifar_vgg_²', 'tinyimagenet_resnet', 'cifar_resnet_20_']
)
def test_unknown_names_are_refused(name):
    """Fixed: the fork raises IndexError for a short unknown name."""

    with pytest.raises(ValueError):
        build(name)
    with pytest.raises(ValueError):
        registry.get_default_hparams(name)


@pytest.mark.parametrize(
    'hparams',
    [
        ModelHparams('mnist_lenet_10', 'nope', 'uniform'),
        ModelHparams('mnist_lenet_10', 'kaiming_normal', 'nope'),
        ModelHparams('mnist_lenet_10', 'torch', 'uniform'),
        ModelHparams('mnist_lenet_10', '_is_weighted', 'uniform'),
    ],
)
def test_unknown_initializers_are_refused(hparams):
    with pytest.raises(ValueError):
        registry.get(hparams)
