"""Tiny ImageNet with CIFAR's augmentation: padded crops instead of resized ones."""

import torchvision

from open_lth.datasets import base, tinyimagenet

DataLoader = base.DataLoader


class Dataset(tinyimagenet.Dataset):
    @staticmethod
    def augmentation():
        return [torchvision.transforms.RandomCrop(64, 4), torchvision.transforms.RandomHorizontalFlip()]
