"""MNIST, and any data set in its file format."""

import os

from PIL import Image
import torchvision

from open_lth.datasets import base, files
from open_lth.platforms.platform import get_platform

DataLoader = base.DataLoader


class Dataset(base.ImageDataset):
    """28x28 grey images."""

    MEAN, STD = 0.1307, 0.3081

    IMAGE_SHAPE = (1, 28, 28)

    @staticmethod
    def num_train_examples(): return 60000

    @staticmethod
    def num_test_examples(): return 10000

    @staticmethod
    def num_classes(): return 10

    @classmethod
    def folders(cls):
        """Where the four files may be; a download goes to the first."""
        return [os.path.join(get_platform().dataset_root, 'mnist', 'MNIST', 'raw')]

    @classmethod
    def download(cls):
        torchvision.datasets.MNIST(os.path.join(get_platform().dataset_root, 'mnist'), download=True)

    WHERE_TO_GET = 'Get the four files from an MNIST mirror, or give --dataset_root=FOLDER where they are.'

    @classmethod
    def get_train_set(cls, use_augmentation):
        """There is no augmentation for these data."""
        return cls._load('train')

    @classmethod
    def get_test_set(cls):
        return cls._load('t10k')

    @classmethod
    def find(cls):
        """The folder of the four files."""
        names = [f'{part}-{kind}-ubyte' for part in ('train', 't10k') for kind in ('images-idx3', 'labels-idx1')]
        return files.find_or_download(cls.folders(), names, cls.download,
                                      cls.__module__.rpartition('.')[2], cls.WHERE_TO_GET)

    @classmethod
    def _load(cls, split):
        folder = cls.find()
        images = files.read_idx(folder, f'{split}-images-idx3-ubyte')
        labels = files.read_idx(folder, f'{split}-labels-idx1-ubyte').astype('int64')
        return cls(images, labels)

    def __init__(self, examples, labels):
        super().__init__(examples, labels, [],
                         [torchvision.transforms.Normalize(mean=[self.MEAN], std=[self.STD])])

    def example_to_image(self, example):
        return Image.fromarray(example)
