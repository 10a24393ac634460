"""ImageNet (ILSVRC 2012), read file by file."""

import concurrent.futures
import os

import numpy as np
from PIL import Image
import torchvision

from open_lth.datasets import base
from open_lth.foundations.errors import UserError
from open_lth.platforms.local import require_folder
from open_lth.platforms.platform import get_platform

DataLoader = base.DataLoader

_NORMALIZE = torchvision.transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def open_rgb(path):
    with get_platform().open(path, 'rb') as fp:
        return Image.open(fp).convert('RGB')


class Dataset(base.ImageDataset):
    """Examples are paths of JPEG files; a label is the rank of the class folder."""

    IMAGE_SHAPE = (3, 224, 224)

    @staticmethod
    def num_train_examples(): return 1281167

    @staticmethod
    def num_test_examples(): return 50000

    @staticmethod
    def num_classes(): return 1000

    @classmethod
    def find(cls):
        """The class folders of both splits."""
        return [_class_folders(split) for split in ('train', 'val')]

    @staticmethod
    def get_train_set(use_augmentation):
        augment = [torchvision.transforms.RandomResizedCrop(224, scale=(0.1, 1.0), ratio=(0.8, 1.25)),
                   torchvision.transforms.RandomHorizontalFlip()]
        return Dataset(*_list_examples('train'), augment if use_augmentation else _center_crop())

    @staticmethod
    def get_test_set():
        return Dataset(*_list_examples('val'), _center_crop())

    def __init__(self, examples, labels, image_transforms):
        super().__init__(examples, labels, image_transforms, [_NORMALIZE])

    def example_to_image(self, example):
        return open_rgb(example)


def _center_crop():
    return [torchvision.transforms.Resize(256), torchvision.transforms.CenterCrop(224)]


def list_class_folders(root, what):
    """(name, path) of each folder in root, in order; UserError when there is none."""
    platform = get_platform()
    folders = [(name, os.path.join(root, name)) for name in sorted(platform.listdir(root))] \
        if platform.isdir(root) else []
    folders = [(name, path) for name, path in folders if platform.isdir(path)]
    if not folders:
        raise UserError(f'{what}: {root} holds no class folders')
    return folders


def _class_folders(split):
    root = os.path.join(require_folder(get_platform().imagenet_root, 'imagenet_root', 'imagenet'), split)
    return list_class_folders(root, 'imagenet')


def _list_examples(split):
    platform = get_platform()
    folders = _class_folders(split)

    def list_images(folder):
        return [os.path.join(folder, name) for name in sorted(platform.listdir(folder))
                if name.lower().endswith('jpeg')]
    with concurrent.futures.ThreadPoolExecutor(max(platform.num_workers, 1)) as pool:
        images = list(pool.map(list_images, (path for _, path in folders)))
    labels = np.repeat(np.arange(len(images)), [len(paths) for paths in images])
    return np.array([path for paths in images for path in paths]), labels
