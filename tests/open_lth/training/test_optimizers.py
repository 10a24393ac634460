"""Optimizers; learning-rate curves are in tests/open_lth/golden/test_lr_schedule.py."""

import pytest
import torch

from open_lth.foundations.hparams import TrainingHparams
from open_lth.testing.toy_model import InnerProductModel
from open_lth.training.optimizers import get_optimizer


def optimizer(name='sgd', **options):
    return get_optimizer(TrainingHparams(name, 0.1, '1ep', **options), InnerProductModel(3))


def settings(**options):
    group = optimizer(**options).param_groups[0]
    return group['momentum'], group['nesterov'], group['weight_decay'], group['lr']


@pytest.mark.parametrize('options, expected', [
    ({}, (0, False, 0, 0.1)),
    (dict(momentum=0.9), (0.9, False, 0, 0.1)),
    (dict(nesterov_momentum=0.8), (0.8, True, 0, 0.1)),
    (dict(momentum=0.9, nesterov_momentum=0.0), (0.9, False, 0, 0.1)),
    (dict(weight_decay=1e-4), (0, False, 1e-4, 0.1)),
    (dict(weight_decay=None), (0, False, 0, 0.1))])
def test_sgd(options, expected):
    assert isinstance(optimizer(**options), torch.optim.SGD)
    assert settings(**options) == expected


def test_both_momenta_give_the_plain_value_and_nesterovs_update():
    """Reproduced."""

    assert settings(momentum=0.9, nesterov_momentum=0.8)[:2] == (0.9, True)


def test_adam():
    group = optimizer('adam', weight_decay=0.01, momentum=0.9).param_groups[0]
    assert (group['lr'], group['weight_decay'], group['betas'], group['eps']) == (
        0.1,
        0.01,
        (0.9, 0.999),
        1e-8,
    )


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError):
        optimizer('nope')


def test_frozen_parameters_take_part_but_do_not_move():
    model = InnerProductModel(3)
    model.layer.weight.requires_grad = False
    sgd = get_optimizer(TrainingHparams('sgd', 0.1, '1ep', weight_decay=0.5), model)
    assert len(sgd.param_groups[0]['params']) == 1
    sgd.step()
    assert model.layer.weight.tolist() == [0, 1, 2]
