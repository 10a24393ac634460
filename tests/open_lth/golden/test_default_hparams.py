"""Expanded default hyperparameters of every family, field for field."""

import pytest

from open_lth.models.registry import get_default_hparams
from open_lth.training.desc import TrainingDesc
from tests.helpers import load_golden

UPSTREAM = load_golden('default_hparams_upstream')
FORK = load_golden('default_hparams_fork')
BUNDLES = ('model_hparams', 'dataset_hparams', 'training_hparams', 'pruning_hparams')


def fork_names():
    reason = "upstream's mnist_lenet default of 40ep wins over the fork's 16ep"
    skip = pytest.mark.skip(reason=reason)
    return [pytest.param(name, marks=skip if name.startswith('mnist_lenet') else ()) for name in FORK]


def check(name, golden):
    desc = get_default_hparams(name)
    for bundle in BUNDLES:
        hparams, expected = getattr(desc, bundle), golden[bundle]
        for field, value in expected['fields'].items():
            actual = getattr(hparams, field)
            assert (actual, type(actual)) == (value, type(value)), (bundle, field)
        assert str(hparams) == expected['str']
        assert hparams.display == expected['display']
        assert hparams._name == expected['_name']
        check_own_fields_are_off(hparams, expected['fields'])
    assert desc.pretrain_dataset_hparams is None and desc.pretrain_training_hparams is None
    assert desc.hashname == golden['hashname']
    train = TrainingDesc(desc.model_hparams, desc.dataset_hparams, desc.training_hparams)
    assert train.hashname == golden['train_hashname']


def check_own_fields_are_off(hparams, golden_fields):
    """Fields that OpenLTH does not have come after its own and are off, so that names do not move."""

    names = [name for name in hparams.__dataclass_fields__ if not name.startswith('_')]
    assert names[:len(golden_fields)] == list(golden_fields)
    assert not any(getattr(hparams, name) for name in names[len(golden_fields):])


@pytest.mark.parametrize('name', UPSTREAM)
def test_upstream_defaults(name):
    check(name, UPSTREAM[name])


@pytest.mark.parametrize('name', fork_names())
def test_fork_defaults(name):
    check(name, FORK[name])


def test_defaults_are_not_shared_between_calls():
    get_default_hparams('cifar_resnet_20').training_hparams.lr = 9
    assert get_default_hparams('cifar_resnet_20').training_hparams.lr == 0.1
