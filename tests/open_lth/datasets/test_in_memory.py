"""The fast loader against its oracle, the image-by-image loader: same images, labels, order and draws."""

import numpy as np
import pytest
import torch

from open_lth.datasets import base, cifar10, digits, fashion_mnist, in_memory, registry
from open_lth.foundations.hparams import DatasetHparams
from open_lth.platforms import platform
from tests.conftest import make_platform


def colour(augmented, size=23, seed=0):
    """A small CIFAR-10-shaped data set."""

    source = np.random.RandomState(seed)
    images = source.randint(0, 256, size=(size, 32, 32, 3)).astype(np.uint8)
    augment = []
    if augmented:
        from torchvision.transforms import RandomCrop, RandomHorizontalFlip
        augment = [RandomHorizontalFlip(), RandomCrop(32, 4)]
    return cifar10.Dataset(images, source.randint(0, 10, size=size), augment)


def grey(_, size=23):
    source = np.random.RandomState(1)
    images = source.randint(0, 256, size=(size, 28, 28)).astype(np.uint8)
    return fashion_mnist.Dataset(images, source.randint(0, 10, size=size))


def crops_only(augmented):
    dataset = (digits.Dataset.get_train_set if augmented else lambda _: digits.Dataset.get_test_set())(True)
    dataset._examples, dataset._labels = dataset._examples[:23], dataset._labels[:23]
    return dataset


def serve(loader, seed, epochs=2, order_seed=None, shuffle=True):
    """All batches of some epochs, and what the generator gives next."""

    torch.manual_seed(seed)
    batches = []
    for epoch in range(epochs):
        if shuffle:
            loader.shuffle(None if order_seed is None else order_seed + epoch)
        batches += [(images.cpu(), labels.cpu()) for images, labels in loader]
    return batches, torch.rand(5), torch.randn(2)


@pytest.mark.parametrize('make', [colour, grey, crops_only])
@pytest.mark.parametrize('augmented', [True, False])
@pytest.mark.parametrize('order', ['unseeded', 'seeded', 'sequential'])
@pytest.mark.parametrize('batch_size', [1, 5, 8, 23, 64], ids=lambda size: f'batch-{size}')
def test_same_batches_and_generator_state(local_platform, make, augmented, order, batch_size):
    """23 images: odd last batches, hence odd numbers of draws."""

    options = dict(
        seed=batch_size, order_seed=4 if order == 'seeded' else None, shuffle=order != 'sequential'
    )
    fast = serve(in_memory.DataLoader(make(augmented), batch_size), **options)
    slow = serve(base.DataLoader(make(augmented), batch_size, 0), **options)

    assert len(fast[0]) == len(slow[0])
    for (fast_images, fast_labels), (slow_images, slow_labels) in zip(fast[0], slow[0]):
        assert fast_images.dtype == slow_images.dtype and fast_images.shape == slow_images.shape
        assert torch.equal(fast_images, slow_images)
        assert torch.equal(fast_labels, slow_labels) and fast_labels.dtype == slow_labels.dtype
    assert torch.equal(fast[1], slow[1]) and torch.equal(fast[2], slow[2])


def test_the_oracle_would_notice_another_augmentation(local_platform):
    """The comparison above can fail: other seeds give other images."""

    loader = in_memory.DataLoader(colour(True), 23)
    first, second = (serve(loader, seed, epochs=1, shuffle=False)[0][0][0] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize('stop_after', [0, 1, 3])
def test_an_abandoned_epoch_has_drawn_as_much_as_the_slow_one(local_platform, stop_after):
    """A run ends in the middle of an epoch: draws must not be taken ahead of the batch that needs them."""

    states = []
    for loader in (in_memory.DataLoader(colour(True), 5), base.DataLoader(colour(True), 5, 0)):
        torch.manual_seed(9)
        loader.shuffle(None)
        batches = iter(loader)
        for _ in range(stop_after):
            next(batches)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize('num', [0, 1, 2, 3, 10, 11, 1248, 1249])
def test_bulk_draws_are_the_single_draws(num):
    torch.manual_seed(num)
    torch.rand(3)  # starts at an odd place
    bulk, bulk_state = in_memory.draw_uint32(num), torch.get_rng_state()
    torch.manual_seed(num)
    torch.rand(3)
    single = [int(torch.randint(2**27 - 39, (1,))) for _ in range(num)]
    assert [value % (2**27 - 39) for value in bulk.tolist()] == single
    assert torch.equal(bulk_state, torch.get_rng_state())


# ---- which loader serves

def test_registry_serves_from_memory_without_workers(local_platform):
    assert isinstance(registry.get(DatasetHparams('digits', 10)), in_memory.DataLoader)


@pytest.mark.parametrize('options', [dict(unsupervised_labels='rotation'), dict(blur_factor=2)])
def test_registry_serves_unknown_transforms_image_by_image(local_platform, options):
    assert isinstance(registry.get(DatasetHparams('digits', 10, **options)), base.DataLoader)


def test_registry_serves_image_by_image_with_workers():
    platform._PLATFORM = make_platform(num_workers=2)
    assert isinstance(registry.get(DatasetHparams('digits', 10)), base.DataLoader)


def test_data_sets_with_unknown_transforms_are_refused(local_platform):
    dataset = colour(True)
    dataset.unsupervised_rotation(0)
    with pytest.raises(ValueError):
        in_memory.DataLoader(dataset, 10)


def test_transforms_in_another_order_are_not_taken_for_the_known_ones():
    dataset = colour(True)
    dataset._image_transforms.reverse()
    assert not in_memory.supports(dataset)


@pytest.mark.parametrize('options', [{}, dict(subsample_fraction=0.1), dict(random_labels_fraction=0.5),
                                     dict(do_not_augment=True)])
def test_registry_options_reach_the_batches(local_platform, options):
    hparams = DatasetHparams('digits', 100, transformation_seed=3, **options)
    fast = registry.get(hparams)
    slow = base.DataLoader(fast.dataset, 100, 0)
    for (fast_images, fast_labels), (slow_images, slow_labels) in zip(serve(fast, 0)[0], serve(slow, 0)[0]):
        assert torch.equal(fast_images, slow_images) and torch.equal(fast_labels, slow_labels)
