"""Fashion-MNIST (Xiao et al., 2017): MNIST's format and sizes, harder to learn."""

import os

import torchvision

from open_lth.datasets import base, mnist
from open_lth.platforms.platform import get_platform

DataLoader = base.DataLoader

DEBIAN_FOLDER = '/usr/share/datasets/fashion-mnist'


class Dataset(mnist.Dataset):
    MEAN, STD = 0.2860, 0.3530
    WHERE_TO_GET = "On Debian and Ubuntu: 'apt-get install dataset-fashion-mnist'. " \
        'Or give --dataset_root=FOLDER where the four files are.'

    @classmethod
    def folders(cls):
        return [os.path.join(get_platform().dataset_root, 'fashion_mnist', 'FashionMNIST', 'raw'), DEBIAN_FOLDER]

    @classmethod
    def download(cls):
        torchvision.datasets.FashionMNIST(os.path.join(get_platform().dataset_root, 'fashion_mnist'), download=True)
