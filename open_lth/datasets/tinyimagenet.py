"""Tiny ImageNet (200 classes, 64x64 pixels), read file by file from the unzipped tiny-imagenet-200."""

import os

import numpy as np
import torchvision

from open_lth.datasets import base, imagenet
from open_lth.foundations.errors import UserError
from open_lth.platforms.local import require_folder
from open_lth.platforms.platform import get_platform

DataLoader = base.DataLoader


class Dataset(base.ImageDataset):
    """Examples are paths; labels rank the class names. The normalisation is the DNNShifter authors'."""

    @staticmethod
    def augmentation():
        return [torchvision.transforms.RandomResizedCrop(64, scale=(0.1, 1.0), ratio=(0.8, 1.25)),
                torchvision.transforms.RandomHorizontalFlip()]

    IMAGE_SHAPE = (3, 64, 64)

    @staticmethod
    def num_train_examples(): return 100000

    @staticmethod
    def num_test_examples(): return 10000

    @staticmethod
    def num_classes(): return 200

    @classmethod
    def find(cls):
        """The class folders of the training set and the file with the test labels."""
        annotations = os.path.join(_root(), 'val', 'val_annotations.txt')
        if not get_platform().exists(annotations):
            raise UserError(f'tinyimagenet: there is no {annotations}')
        return imagenet.list_class_folders(os.path.join(_root(), 'train'), 'tinyimagenet'), annotations

    @classmethod
    def get_train_set(cls, use_augmentation):
        return cls(*_list_train_examples(), cls.augmentation() if use_augmentation else _resize())

    @classmethod
    def get_test_set(cls):
        return cls(*_list_test_examples(), _resize())

    def __init__(self, examples, labels, image_transforms):
        super().__init__(examples, labels, image_transforms,
                         [torchvision.transforms.Normalize([-0.021, -0.0354, -0.0376], [1.21, 1.20, 1.25])])

    def example_to_image(self, example):
        return imagenet.open_rgb(example)


def _resize():
    return [torchvision.transforms.Resize(64)]


def _root():
    return require_folder(get_platform().tinyimagenet_root, 'tinyimagenet_root', 'tinyimagenet')


def _walk(folder):
    platform = get_platform()
    for name in sorted(platform.listdir(folder)):
        path = os.path.join(folder, name)
        if platform.isdir(path):
            yield from _walk(path)
        elif name.endswith('.JPEG'):
            yield path


def _list_train_examples():
    paths, labels = [], []
    class_folders, _ = Dataset.find()
    for label, (_, folder) in enumerate(class_folders):
        images = list(_walk(folder))
        paths += images
        labels += [label] * len(images)
    return np.array(paths), np.array(labels)


def _list_test_examples():
    _, annotations = Dataset.find()
    folder = os.path.dirname(annotations)
    with get_platform().open(annotations) as fp:
        rows = [line.split()[:2] for line in fp if line.strip()]
    label_of = {name: label for label, name in enumerate(sorted({name for _, name in rows}))}
    return (np.array([os.path.join(folder, 'images', image) for image, _ in rows]),
            np.array([label_of[name] for _, name in rows]))
