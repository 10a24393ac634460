import math

import numpy as np
import pytest
import torch

from open_lth.datasets import base, digits
from open_lth.platforms import platform


class Counting(base.Dataset):
    """Examples 0..n-1 with labels i mod 10."""

    def __init__(self, size=20):
        super().__init__(np.arange(size), torch.arange(size) % 10)

    num_train_examples = num_test_examples = staticmethod(lambda: 20)
    num_classes = staticmethod(lambda: 10)
    get_train_set = get_test_set = staticmethod(lambda use_augmentation=False: Counting())


def digits_with(dataset, **options):
    """A second data set on the images of the first, with other transforms."""

    joint = options.pop('joint_image_transforms', None)
    copy = type(dataset)(dataset._examples, dataset._labels.copy(), **options)
    copy._joint_image_transforms = joint or []
    return copy


@pytest.fixture
def images():
    return digits.Dataset.get_test_set()


# ---- labels and subsets

def test_items_are_example_and_label():
    dataset = Counting()
    assert len(dataset) == 20 and dataset[13] == (13, 3)
    assert isinstance(dataset._labels, np.ndarray), 'tensors are converted'


@pytest.mark.parametrize('fraction, size', [(0.01, 1), (0.05, 1), (0.051, 2), (0.5, 10), (1, 20), (1.0, 20)])
def test_sizes_round_up(fraction, size):
    dataset = Counting()
    dataset.subsample(3, fraction)
    assert len(dataset) == size


def test_subset_is_in_permutation_order():
    dataset = Counting()
    dataset.subsample(3, 0.5)
    expected = np.random.RandomState(4).permutation(20)[:10]
    assert dataset._examples.tolist() == expected.tolist()
    assert dataset._labels.tolist() == (expected % 10).tolist()


def test_second_subsample_is_refused():
    dataset = Counting()
    dataset.subsample(3, 0.5)
    with pytest.raises(ValueError):
        dataset.subsample(3, 0.5)


def test_random_labels_replace_only_the_chosen_ones():
    dataset = Counting()
    dataset.randomize_labels(7, 0.25)
    chosen = np.random.RandomState(8).permutation(20)[:5]
    expected = np.arange(20) % 10
    expected[chosen] = np.random.RandomState(7).randint(10, size=5)
    assert dataset._labels.tolist() == expected.tolist()


def test_a_small_subsample_of_randomized_labels_is_all_random():
    """Reproduced: both choices come from one permutation."""

    dataset = Counting()
    dataset.randomize_labels(7, 0.5)
    dataset.subsample(7, 0.25)
    assert dataset._labels.tolist() == np.random.RandomState(7).randint(10, size=10)[:5].tolist()


def test_numpys_global_generator_is_not_touched():
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    dataset = Counting()
    dataset.randomize_labels(7, 0.5)
    dataset.subsample(7, 0.25)
    assert np.random.rand() == expected


# ---- image transforms

def test_blur_comes_after_the_augmentation(images):
    seen = []
    dataset = digits_with(images, image_transforms=[lambda image: seen.append('augment') or image])
    dataset.blur(4)
    blurred, _ = dataset[0]
    assert seen == ['augment'] and blurred.shape == (3, 32, 32)
    assert blurred.var() < images[0][0].var(), 'shrinking and enlarging removes detail'


def test_rotation_replaces_the_labels_and_keeps_upright_images(images):
    upright = [images[i][0] for i in range(20)]
    images = digits.Dataset.get_test_set()
    images.unsupervised_rotation(0)
    assert images._labels.tolist() == np.random.RandomState(0).randint(4, size=360).tolist()
    torch.manual_seed(0)
    for i in range(20):
        image, label = images[i]
        assert torch.equal(image, upright[i]) == (label == 0)


def test_rotation_angle_is_random():
    """Reproduced: anything in [-90 label, 90 label], one draw per item, not label quarter turns."""

    images = digits.Dataset.get_test_set()
    images.unsupervised_rotation(0)
    quarter_turn = int(np.flatnonzero(images._labels == 1)[0])
    torch.manual_seed(0)
    first, second = images[quarter_turn][0], images[quarter_turn][0]
    assert not torch.equal(first, second)
    upright = int(np.flatnonzero(images._labels == 0)[0])
    torch.manual_seed(0)
    images[upright]
    after = torch.rand(1)
    torch.manual_seed(0)
    torch.empty(1).uniform_(0, 0)
    assert torch.equal(torch.rand(1), after)


def test_transforms_are_frozen_at_the_first_access(images):
    before, _ = images[0]
    images.blur(4)
    assert torch.equal(images[0][0], before)


def test_joint_transforms_see_image_and_label(images):
    dataset = digits_with(
        images, joint_image_transforms=[lambda image, label: (image.rotate(90), label + 100)]
    )
    image, label = dataset[0]
    assert label == images[0][1] + 100
    assert torch.equal(image, torch.rot90(images[0][0], 1, (1, 2)))


# ---- sampler and loader

def test_sampler_without_shuffling_is_sequential_and_draws_nothing():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert list(base.ShuffleSampler(5)) == [0, 1, 2, 3, 4]
    assert torch.equal(torch.rand(1), expected)


def test_seeded_order_repeats_and_does_not_touch_the_global_generator():
    sampler = base.ShuffleSampler(100)
    sampler.shuffle_dataorder(3)
    torch.manual_seed(0)
    first = list(sampler)
    after = torch.rand(1)
    assert list(sampler) == first == torch.randperm(100, generator=torch.Generator().manual_seed(3)).tolist()
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)


def test_seed_0_is_a_seed():
    sampler = base.ShuffleSampler(100)
    sampler.shuffle_dataorder(0)
    assert list(sampler) == torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()


def test_unseeded_order_is_new_each_time():
    sampler = base.ShuffleSampler(100)
    sampler.shuffle_dataorder(None)
    torch.manual_seed(0)
    first, second = list(sampler), list(sampler)
    assert first != second and sorted(first) == sorted(second) == list(range(100))


class ThreeProcesses:
    """A distributed platform as one of its processes sees it."""

    is_distributed, world_size = True, 3

    def __init__(self, rank):
        self.rank = rank


@pytest.mark.parametrize('seed', [0, 3, None])
def test_processes_share_one_order(seed):
    """Fixed: in OpenLTH seed 0 counts as none, and each process then draws an order of its own."""

    shares = []
    for rank in range(3):
        platform._PLATFORM = ThreeProcesses(rank)
        torch.manual_seed(5)
        sampler = base.DistributedShuffleSampler(20)
        sampler.shuffle_dataorder(seed)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    torch.manual_seed(5)
    sampler = base.ShuffleSampler(20)
    sampler.shuffle_dataorder(seed)
    order = list(sampler)
    assert shares == [order[0::3], order[1::3], order[2::3]]


@pytest.mark.parametrize('batch_size', [1, 7, 20, 100])
def test_loader_keeps_the_last_partial_batch(local_platform, batch_size):
    loader = base.DataLoader(Counting(), batch_size, 0)
    batches = [examples.tolist() for examples, _ in loader]
    assert sum(batches, []) == list(range(20))
    assert len(batches) == len(loader) == loader.iterations_per_epoch == math.ceil(20 / batch_size)


def test_a_new_iterator_draws_one_int64_and_then_the_unseeded_order(local_platform):
    loader = base.DataLoader(Counting(), 20, 0)
    loader.shuffle(None)
    torch.manual_seed(0)
    examples, _ = next(iter(loader))
    torch.manual_seed(0)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(examples, torch.randperm(20))
