import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry


def trainable(**frozen):
    """Names of the parameters of a small ResNet that still learn."""

    model = registry.get(ModelHparams('cifar_resnet_8_4', 'kaiming_normal', 'uniform', **frozen))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


BATCHNORM = {name for name in trainable() if '.bn' in name or name.startswith('bn') or 'shortcut.1' in name}
OUTPUT = {'fc.weight', 'fc.bias'}
OTHERS = trainable() - BATCHNORM - OUTPUT


def test_the_groups_are_what_they_should_be():
    assert len(BATCHNORM) == 2 * 9 and len(OTHERS) == 9


@pytest.mark.parametrize('frozen, rest', [
    ({}, BATCHNORM | OUTPUT | OTHERS),
    (dict(batchnorm_frozen=True), OUTPUT | OTHERS),
    (dict(output_frozen=True), BATCHNORM | OTHERS),
    (dict(others_frozen=True), BATCHNORM | OUTPUT),
    (dict(batchnorm_frozen=True, others_frozen=True), OUTPUT),
    (dict(others_frozen=True, others_frozen_exceptions='conv.weight'), BATCHNORM | OUTPUT | {'conv.weight'}),
    (dict(others_frozen=True, others_frozen_exceptions='conv.weight,blocks.0.conv1.weight'),
     BATCHNORM | OUTPUT | {'conv.weight', 'blocks.0.conv1.weight'})])
def test_frozen_groups(frozen, rest):
    assert trainable(**frozen) == rest


@pytest.mark.parametrize('exceptions', ['nope', 'conv.weight,nope', 'conv.weight, fc.bias'])
def test_unknown_exceptions_are_refused(exceptions):
    with pytest.raises(ValueError):
        trainable(others_frozen=True, others_frozen_exceptions=exceptions)


def test_freezing_draws_nothing():
    torch.manual_seed(0)
    trainable()
    expected = torch.rand(1)
    torch.manual_seed(0)
    trainable(batchnorm_frozen=True, others_frozen=True, output_frozen=True)
    assert torch.equal(torch.rand(1), expected)
