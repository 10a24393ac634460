"""Figures that OpenLTH's own tests expect, on the substitute data; hashes that must never move."""

import numpy as np
import pytest

from open_lth.datasets import base, cifar10, mnist
from open_lth.foundations.hparams import DatasetHparams, ModelHparams, TrainingHparams
from open_lth.lottery.desc import LotteryDesc
from open_lth.models import cifar_resnet, cifar_vgg, mnist_lenet, registry
from open_lth.pruning.sparse_global import PruningHparams
from tests.conftest import make_platform
from tests.helpers import load_golden

FACTS = load_golden('unit_test_facts')
SETS = {
    'fashion_mnist_as_mnist': (mnist, 'fashion_as_mnist'),
    'synthetic_cifar10': (cifar10, 'synthetic_cifar'),
}
FAMILIES = {
    'mnist_lenet': mnist_lenet.Model,
    'cifar_resnet': cifar_resnet.Model,
    'cifar_vgg': cifar_vgg.Model,
}


@pytest.mark.parametrize('name', SETS)
def test_labels(name, request):
    family, fixture = SETS[name]
    facts = FACTS['made_by_running_with_substitute_data'][name]
    platform = make_platform(dataset_root=request.getfixturevalue(fixture))
    platform.run_job(lambda: check_labels(family, facts))


def check_labels(family, facts):
    def open_set(which):
        return family.Dataset.get_test_set() if which == 'test' else family.Dataset.get_train_set(True)

    unchanged = facts['test set: labels unchanged after randomize_labels(0, fraction)']
    for fraction, count in unchanged.items():
        dataset = open_set('test')
        before = dataset._labels.copy()
        dataset.randomize_labels(0, float(fraction))
        assert int(np.equal(before, dataset._labels).sum()) == count
    for which in ('train', 'test'):
        assert open_set(which)._labels[:10].tolist() == facts[f'{which} first 10 labels']
        for seed in (0, 1):
            dataset = open_set(which)
            dataset.subsample(seed, 0.1)
            length, labels = facts[f'{which} subsample({seed}, 0.1) length and first 10 labels']
            assert (len(dataset), dataset._labels[:10].tolist()) == (length, labels)
    for seed in (0, 1):
        key = f'loader batch 4, shuffle({seed}), first 10 labels'
        if key in facts:
            assert first_labels(open_set('train'), seed) == facts[key]


def first_labels(dataset, seed):
    loader = base.DataLoader(dataset, 4, 0)
    loader.shuffle(seed)
    batches = iter(loader)
    return [int(label) for _ in range(3) for label in next(batches)[1]][:10]


@pytest.mark.parametrize('seed', FACTS['rotation_labels_for_50000_examples_by_seed'])
def test_rotation_labels(seed):
    class Blank(base.ImageDataset):
        num_train_examples = num_test_examples = staticmethod(lambda: 50000)
        num_classes = staticmethod(lambda: 10)
        get_train_set = get_test_set = staticmethod(lambda use_augmentation=False: None)

        def example_to_image(self, example):
            raise NotImplementedError

    facts = FACTS['rotation_labels_for_50000_examples_by_seed'][seed]
    dataset = Blank(np.zeros(50000), np.zeros(50000))
    dataset.unsupervised_rotation(int(seed))
    assert np.bincount(dataset._labels).tolist() == facts['counts_0_to_3']
    assert dataset._labels[:20].tolist() == facts['first20']


def test_hashes_after_each_change():
    steps = FACTS['cumulative_hash_regression']
    desc = LotteryDesc(
        ModelHparams('cifar_resnet_20', 'kaiming_normal', 'uniform'),
        DatasetHparams('cifar10', 128),
        TrainingHparams('sgd', 0.1, '160ep'),
        PruningHparams(pruning_strategy='sparse_global'),
    )
    assert desc.hashname == steps[0][1]
    for change, hashname in steps[1:]:
        apply_change(desc, change)
        assert desc.hashname == hashname, change
    assert len({hashname for _, hashname in steps}) == len(steps) - 2, 'two changes are taken back'


def apply_change(desc, text):
    """Reads 'then set BUNDLE.FIELD[+FIELD] = VALUE'."""

    target, _, value = text.removeprefix('then set ').partition(' = ')
    bundle, _, names = target.partition('.')
    values = [part.strip(" '()") for part in value.rsplit(', ', 1)] if '+' in names else [value]
    for name, part in zip(names.split('+'), values):
        hparams = getattr(desc, bundle)
        kind = type(hparams).__dataclass_fields__[name].type
        setattr(hparams, name, part == 'True' if kind is bool else kind(part))


@pytest.mark.parametrize('name', FACTS['parameter_counts'])
def test_parameter_counts(name):
    model = registry.get(ModelHparams(name, 'kaiming_normal', 'uniform'))
    assert sum(parameter.numel() for parameter in model.parameters()) == FACTS['parameter_counts'][name]


@pytest.mark.parametrize('family', FAMILIES)
def test_valid_and_invalid_names(family):
    model = FAMILIES[family]
    for name in FACTS['names_valid'][family]:
        assert model.is_valid_model_name(name), name
    for name in FACTS['names_invalid'][family]:
        assert not model.is_valid_model_name(name), name
        with pytest.raises(ValueError):
            model.get_model_from_name(name, lambda module: None)
