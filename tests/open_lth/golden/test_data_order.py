"""Data order, labels after the dataset options, and transformed examples."""

import hashlib
import re

import numpy as np
import pytest
import torch

from open_lth.datasets import base, cifar10, mnist, registry
from open_lth.foundations.hparams import DatasetHparams
from tests.conftest import make_platform
from tests.helpers import int64_digest, load_golden, run_engine, tensor_bytes

GOLDEN = load_golden('data_order')
ROWS = 'rows(index,label,shape,sum,sha256_16_float32)'


class Toy(base.Dataset):
    """Examples 0..999 with labels i mod 10."""

    def __init__(self, size=1000):
        super().__init__(np.arange(size), np.arange(size) % 10)

    num_train_examples = num_test_examples = staticmethod(lambda: 1000)
    num_classes = staticmethod(lambda: 10)
    get_train_set = get_test_set = staticmethod(lambda use_augmentation=False: Toy())


@pytest.mark.parametrize('golden', GOLDEN['sampler'], ids=lambda golden: f'{golden["n"]}-{golden["seed"]}')
def test_sampler(golden):
    sampler = base.ShuffleSampler(golden['n'])
    if golden['seed'] != 'never shuffled':
        sampler.shuffle_dataorder(golden['seed'])
    order = list(sampler)
    assert order[:32] == golden['first32'] and len(order) == golden['n']
    if 'sha256_int64' in golden:
        assert int64_digest(order) == golden['sha256_int64']


@pytest.mark.parametrize(
    'golden', GOLDEN['loader_unseeded'], ids=lambda golden: f'workers-{golden["num_workers"]}'
)
def test_unseeded_loader(golden, local_platform):
    loader = base.DataLoader(Toy(golden['n']), golden['batch_size'], golden['num_workers'])
    assert loader.iterations_per_epoch == golden['iterations_per_epoch']
    torch.manual_seed(golden['torch_manual_seed'])
    for expected in golden['epochs_first32']:
        loader.shuffle(None)
        order = torch.cat([examples for examples, _ in loader]).tolist()
        assert order[:32] == expected and sorted(order) == list(range(golden['n']))
    assert torch.rand(2).tolist() == golden['torch_rand2_after']


# ---- labels

def apply_options(dataset, text):
    """Applies the dataset options that a golden case names, in the order of the registry."""

    seed = int(re.search(r'seed[ =](\d+)', text)[1]) if 'seed' in text else 0
    randomize = re.search(r'random(?:ize_labels)?(?: seed=\d+ fraction=)? ?(\d*\.\d+)', text)
    subsample = re.search(r'subsample(?: seed=\d+ fraction=)? ?(\d*\.\d+)', text)
    if randomize and 'untouched' not in text:
        dataset.randomize_labels(seed, float(randomize[1]))
    if subsample:
        dataset.subsample(seed, float(subsample[1]))
    if 'rotation' in text:
        dataset.unsupervised_rotation(seed)
    return dataset


@pytest.mark.parametrize('golden', [case for case in GOLDEN['labels'] if case['case'].startswith('toy')],
                         ids=lambda golden: golden['case'])
def test_labels_of_the_toy_set(golden):
    dataset = apply_options(Toy(), golden['case'])
    check_labels(dataset, golden)
    assert dataset._examples[:8].tolist() == golden['first8_examples']


@pytest.mark.parametrize('golden', [case for case in GOLDEN['labels'] if case['case'].startswith('fashion')],
                         ids=lambda golden: golden['case'])
def test_labels_of_fashion_mnist(golden, fashion_as_mnist):
    make_platform(dataset_root=fashion_as_mnist).run_job(lambda: check_labels(apply_options(
        mnist.Dataset.get_test_set() if ' test ' in golden['case'] else mnist.Dataset.get_train_set(True),
        golden['case']), golden))


def check_labels(dataset, golden):
    assert len(dataset) == golden['len']
    assert dataset._labels[:32].tolist() == golden['first32']
    assert int64_digest(dataset._labels) == golden['labels_sha256_int64']


# ---- examples

def open_case(text):
    family = mnist if text.startswith('fashion') else cifar10
    if ' test' in text:
        return family.Dataset.get_test_set()
    dataset = family.Dataset.get_train_set('no augment' not in text)
    blur = re.search(r'blur\((\d)\)', text)
    if blur:
        dataset.blur(int(blur[1]))
    if 'rotation' in text:
        dataset.unsupervised_rotation(0)
    return dataset


@pytest.mark.parametrize('golden', GOLDEN['examples'], ids=lambda golden: golden['case'])
def test_transformed_examples(golden, request):
    name = 'fashion_as_mnist' if golden['case'].startswith('fashion') else 'synthetic_cifar'

    def check():
        dataset = open_case(golden['case'])
        torch.manual_seed(golden['torch_manual_seed'])
        for index, label, shape, total, digest in golden[ROWS]:
            image, actual_label = dataset[index]
            assert (int(actual_label), list(image.shape), image.dtype) == (label, shape, torch.float32)
            assert hashlib.sha256(tensor_bytes(image)).hexdigest()[:16] == digest, index
            assert image.double().sum().item() == pytest.approx(total, rel=1e-5)
        assert torch.rand(2).tolist() == golden['torch_rand2_after']

    make_platform(dataset_root=request.getfixturevalue(name)).run_job(check)


# ---- counts and errors

@pytest.mark.parametrize('name, batch_size, fraction, iterations', GOLDEN['iterations_per_epoch'])
def test_iterations_per_epoch(name, batch_size, fraction, iterations):
    hparams = DatasetHparams(name, batch_size, subsample_fraction=fraction)
    assert registry.iterations_per_epoch(hparams) == iterations


@pytest.mark.parametrize('name, plain, rotation', GOLDEN['num_classes'])
def test_num_classes(name, plain, rotation):
    assert registry.num_classes(DatasetHparams(name, 1)) == plain
    assert registry.num_classes(DatasetHparams(name, 1, unsupervised_labels='rotation')) == rotation


@pytest.mark.parametrize('error, hparams', {
    'unknown dataset': DatasetHparams('nope', 1),
    'unknown unsup': DatasetHparams('digits', 1, unsupervised_labels='nope')}.items())
def test_bad_dataset_options_are_refused(error, hparams, local_platform):
    assert GOLDEN['errors'][error] == 'ValueError'
    with pytest.raises(ValueError):
        registry.get(hparams)


def test_examples_and_labels_of_different_length_are_refused():
    assert GOLDEN['errors']['len mismatch'] == 'ValueError'
    with pytest.raises(ValueError):
        type(
            'Short', (Toy,), {'__init__': lambda self: base.Dataset.__init__(self, np.zeros(3), np.zeros(4))}
        )()


def test_imagenet_without_its_folder_is_refused_with_the_flag_to_give(root):
    outcome = run_engine('train', '--default_hparams=imagenet_resnet_18', root=root)
    assert outcome.status == 2 and '--imagenet_root' in outcome.err


def test_blur_through_the_registry_works(synthetic_cifar):
    """Fixed: OpenLTH raises TypeError; the images are those of calling blur on the data set."""

    assert GOLDEN['errors']['registry blur'] == 'TypeError'

    def check():
        hparams = DatasetHparams('cifar10', 4, do_not_augment=True, blur_factor=4)
        images, _ = next(iter(registry.get(hparams)))
        dataset = open_case('synthetic cifar blur(4) no augment')
        assert torch.equal(images.cpu(), torch.stack([dataset[i][0] for i in range(4)]))

    make_platform(dataset_root=synthetic_cifar).run_job(check)
