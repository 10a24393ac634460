import pytest
import torch

from open_lth.models import bn_initializers, initializers

LAYERS = {'linear': lambda: torch.nn.Linear(40, 30), 'conv': lambda: torch.nn.Conv2d(8, 16, 3)}


def initialized(layer, name, seed=0):
    torch.manual_seed(seed)
    module = LAYERS[layer]()
    bias = module.bias.clone()
    getattr(initializers, name)(module)
    assert torch.equal(module.bias, bias), 'biases keep their default draw'
    return module.weight.detach()


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('name', ['kaiming_normal', 'kaiming_uniform', 'orthogonal'])
def test_torchs_functions_with_default_arguments(layer, name):
    torch.manual_seed(0)
    expected = getattr(torch.nn.init, f'{name}_')(LAYERS[layer]().weight).detach()
    assert torch.equal(initialized(layer, name), expected)


@pytest.mark.parametrize('layer', LAYERS)
def test_binary_keeps_signs_and_standard_deviation_of_the_normal_draw(layer):
    normal, binary = initialized(layer, 'kaiming_normal'), initialized(layer, 'binary')
    assert torch.equal(binary.sign(), normal.sign())
    assert binary.abs().unique().tolist() == pytest.approx([normal.std().item()])


def test_standard_normal_has_a_tenth_as_standard_deviation():
    assert initialized('linear', 'standard_normal').std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize(
    'name', ['kaiming_normal', 'kaiming_uniform', 'orthogonal', 'binary', 'standard_normal']
)
def test_other_modules_are_left_alone_and_cost_no_draws(name):
    batchnorm = torch.nn.BatchNorm2d(4)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    getattr(initializers, name)(batchnorm)
    assert torch.equal(torch.rand(1), expected) and batchnorm.weight.tolist() == [1] * 4


@pytest.mark.parametrize('name, weight, bias', [('fixed', 1, 0), ('oneone', 1, 1)])
def test_constant_batchnorm(name, weight, bias):
    batchnorm = torch.nn.BatchNorm2d(4)
    batchnorm.weight.data.fill_(9)
    getattr(bn_initializers, name)(batchnorm)
    assert batchnorm.weight.tolist() == [weight] * 4 and batchnorm.bias.tolist() == [bias] * 4


@pytest.mark.parametrize(
    'name, from_uniform', [('uniform', lambda u: u), ('positivenegative', lambda u: u * 2 - 1)]
)
def test_random_batchnorm(name, from_uniform):
    batchnorm = torch.nn.BatchNorm2d(4)
    torch.manual_seed(0)
    expected = from_uniform(torch.rand(4))
    torch.manual_seed(0)
    getattr(bn_initializers, name)(batchnorm)
    assert torch.equal(batchnorm.weight.detach(), expected) and batchnorm.bias.tolist() == [0] * 4


@pytest.mark.parametrize('name', ['uniform', 'fixed', 'oneone', 'positivenegative'])
def test_batchnorm_initializers_leave_other_modules_alone(name):
    linear = torch.nn.Linear(3, 3)
    before = linear.weight.clone()
    getattr(bn_initializers, name)(linear)
    assert torch.equal(linear.weight, before)
