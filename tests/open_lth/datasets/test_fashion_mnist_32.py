import numpy as np
import torch

from open_lth.datasets import fashion_mnist_32, in_memory, registry
from open_lth.foundations.hparams import DatasetHparams
from tests.helpers import needs_fashion

GREY = np.random.RandomState(0).randint(0, 256, (5, 28, 28)).astype(np.uint8)


def test_images_are_padded_and_grey():
    dataset = fashion_mnist_32.Dataset(GREY, np.arange(5))
    served = dataset._examples
    assert served.shape == (5, 32, 32, 3) and served.dtype == np.uint8
    assert all((served[:, 2:30, 2:30, channel] == GREY).all() for channel in range(3))
    assert served.sum(dtype=np.int64) == 3 * GREY.sum(dtype=np.int64)  # nothing but black around them


def test_both_loaders_serve_the_same(local_platform):
    dataset = fashion_mnist_32.Dataset(GREY, np.arange(5))
    assert in_memory.supports(dataset)
    [(images, labels)] = in_memory.DataLoader(dataset, 5)
    assert images.shape == (5, *fashion_mnist_32.Dataset.IMAGE_SHAPE)
    assert all(torch.equal(images[number], dataset[number][0]) for number in range(5))
    assert labels.tolist() == list(range(5))


@needs_fashion
def test_the_files_are_those_of_fashion_mnist(local_platform):
    wide, usual = (registry.get(DatasetHparams(name, 100), train=False)
                   for name in ('fashion_mnist_32', 'fashion_mnist'))
    (images, labels), (grey, own_labels) = next(iter(wide)), next(iter(usual))
    assert torch.equal(images[:, :1, 2:30, 2:30], grey) and torch.equal(labels, own_labels)
