"""CIFAR-10."""

import os

import numpy as np
from PIL import Image
import torchvision

from open_lth.datasets import base, files
from open_lth.platforms.platform import get_platform

DataLoader = base.DataLoader

_TRAIN_FILES = [f'data_batch_{i}' for i in range(1, 6)]
_TEST_FILES = ['test_batch']


class CIFAR10(torchvision.datasets.CIFAR10):
    """torchvision's data set, for those who want it; the engine reads the files itself, without unpickling objects."""


class Dataset(base.ImageDataset):
    """32x32 colour images. OpenLTH compatibility: they are normalised with ImageNet's constants."""

    IMAGE_SHAPE = (3, 32, 32)

    @staticmethod
    def num_train_examples(): return 50000

    @staticmethod
    def num_test_examples(): return 10000

    @staticmethod
    def num_classes(): return 10

    @classmethod
    def find(cls):
        """The folder of the six batch files."""
        root = os.path.join(get_platform().dataset_root, 'cifar10')
        return files.find_or_download(
            [os.path.join(root, 'cifar-10-batches-py')], _TRAIN_FILES + _TEST_FILES,
            lambda: CIFAR10(root, download=True), 'cifar10',
            f'Get cifar-10-python.tar.gz from the CIFAR-10 home page and unpack it in {root}, '
            'or give --dataset_root=FOLDER whose cifar10 folder holds it.')

    @staticmethod
    def get_train_set(use_augmentation):
        augment = [torchvision.transforms.RandomHorizontalFlip(), torchvision.transforms.RandomCrop(32, 4)]
        return Dataset(*_load(_TRAIN_FILES), augment if use_augmentation else [])

    @staticmethod
    def get_test_set():
        return Dataset(*_load(_TEST_FILES))

    def __init__(self, examples, labels, image_transforms=None):
        super().__init__(examples, labels, image_transforms or [],
                         [torchvision.transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])])

    def example_to_image(self, example):
        return Image.fromarray(example)


def _load(names):
    folder = Dataset.find()
    images, labels = zip(*(files.read_cifar_batch(os.path.join(folder, name)) for name in names))
    return np.concatenate(images), np.concatenate(labels)
