"""The handwritten digits that scikit-learn ships (UCI): real images that need no download.

The 1797 images of 8x8 pixels with 17 grey values are served as 32x32 colour images, each pixel as a 4x4 square, so that
the CIFAR models accept them. A fixed random split gives 1437 for training and 360 for testing.
"""

import numpy as np
from PIL import Image
import torchvision

from open_lth.datasets import base

DataLoader = base.DataLoader


class Dataset(base.ImageDataset):
    IMAGE_SHAPE = (3, 32, 32)

    @staticmethod
    def num_train_examples(): return 1437

    @staticmethod
    def num_test_examples(): return 360

    @staticmethod
    def num_classes(): return 10

    @staticmethod
    def get_train_set(use_augmentation):
        augment = [torchvision.transforms.RandomCrop(32, 4)]
        return Dataset(*_load(slice(None, 1437)), augment if use_augmentation else [])

    @staticmethod
    def get_test_set():
        return Dataset(*_load(slice(1437, None)))

    def __init__(self, examples, labels, image_transforms=None):
        super().__init__(examples, labels, image_transforms or [],
                         [torchvision.transforms.Normalize(mean=[0.305] * 3, std=[0.376] * 3)])

    def example_to_image(self, example):
        return Image.fromarray(example)


def _load(part):
    from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.RandomState(0).permutation(len(labels))[part]
    grey = np.rint(images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    enlarged = grey.repeat(4, axis=1).repeat(4, axis=2)
    return np.stack([enlarged] * 3, axis=3), labels[chosen].astype(np.int64)
