import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.models import cifar_narrowvgg, registry


def build(name):
    torch.manual_seed(0)
    return registry.get(ModelHparams(name, 'kaiming_normal', 'uniform'))


@pytest.mark.parametrize('depth', [5, 16])
def test_width_64_is_the_vgg_itself(depth):
    narrow, usual = build(f'cifar_narrowvgg_{depth}_64').state_dict(), build(f'cifar_vgg_{depth}').state_dict()
    assert list(narrow) == list(usual) and all(torch.equal(narrow[name], usual[name]) for name in usual)


def test_all_widths_shrink_in_proportion():
    model = build('cifar_narrowvgg_16_8')
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [
        8, 8, 16, 16, 32, 32, 32, 64, 64, 64, 64, 64, 64]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize('name', ['cifar_narrowvgg_5', 'cifar_narrowvgg_6_8', 'cifar_narrowvgg_5_8_8', 'cifar_vgg_5'])
def test_other_names_are_not_of_this_family(name):
    assert not cifar_narrowvgg.Model.is_valid_model_name(name)
    with pytest.raises(ValueError):
        cifar_narrowvgg.Model.get_model_from_name(name, lambda module: None)


def test_default_hyperparameters_are_those_of_vgg():
    defaults, vgg = (registry.get_default_hparams(name) for name in ('cifar_narrowvgg_5_16', 'cifar_vgg_5'))
    assert defaults.model_hparams.model_name == 'cifar_narrowvgg_5_16'
    assert defaults.training_hparams == vgg.training_hparams and defaults.dataset_hparams == vgg.dataset_hparams
