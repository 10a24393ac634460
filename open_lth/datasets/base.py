"""Data sets, their transformations, and the loader that serves them image by image."""

import abc
import math

import numpy as np
import torch
import torchvision

from open_lth.foundations import rng
from open_lth.platforms.platform import get_platform


class Dataset(abc.ABC, torch.utils.data.Dataset):
    """Examples with labels. The counts are constants of the class, so that run names need no data."""

    @staticmethod
    @abc.abstractmethod
    def num_train_examples(): pass

    @staticmethod
    @abc.abstractmethod
    def num_test_examples(): pass

    @staticmethod
    @abc.abstractmethod
    def num_classes(): pass

    @classmethod
    def find(cls):
        """Raises UserError unless the data are on this machine or can be downloaded now. Reads no images."""

    @staticmethod
    @abc.abstractmethod
    def get_train_set(use_augmentation): pass

    @staticmethod
    @abc.abstractmethod
    def get_test_set(): pass

    def __init__(self, examples, labels):
        """Raises ValueError unless there is a label for each example."""
        if len(examples) != len(labels):
            raise ValueError(f'different numbers of examples ({len(examples)}) and labels ({len(labels)})')
        self._examples = examples
        self._labels = labels if isinstance(labels, np.ndarray) else labels.numpy()
        self._subsampled = False

    def randomize_labels(self, seed, fraction):
        """Gives ceil(fraction * n) examples, chosen at random, uniformly random labels."""
        num = int(math.ceil(len(self._labels) * fraction))
        self._labels[self._chosen(seed, num)] = np.random.RandomState(seed=seed).randint(self.num_classes(), size=num)

    def subsample(self, seed, fraction):
        """Keeps ceil(fraction * n) examples in random order; ValueError the second time.

        OpenLTH compatibility: the choice is that of `randomize_labels` with the same seed, so a subsample taken
        after it holds the examples with random labels first.
        """
        if self._subsampled:
            raise ValueError('a data set can only be subsampled once')
        self._subsampled = True
        chosen = self._chosen(seed, int(math.ceil(len(self._labels) * fraction)))
        self._examples = self._examples[chosen]
        self._labels = self._labels[chosen]

    def _chosen(self, seed, num):
        return np.random.RandomState(seed=seed + 1).permutation(len(self._labels))[:num]

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return self._examples[index], self._labels[index]


class ImageDataset(Dataset):
    """Examples are turned into PIL images, transformed, made tensors, transformed again.

    IMAGE_SHAPE is (channels, height, width) of the result; None where it is not known beforehand.
    A joint transform maps (image, label) to (image, label). The lists are frozen at the first access.
    """

    IMAGE_SHAPE = None

    @abc.abstractmethod
    def example_to_image(self, example):
        """The PIL image of an example."""

    def __init__(self, examples, labels, image_transforms=None, tensor_transforms=None,
                 joint_image_transforms=None, joint_tensor_transforms=None):
        super().__init__(examples, labels)
        self._image_transforms = image_transforms or []
        self._tensor_transforms = tensor_transforms or []
        self._joint_image_transforms = joint_image_transforms or []
        self._joint_tensor_transforms = joint_tensor_transforms or []
        self._composed = None

    def blur(self, blur_factor):
        """Shrinks and enlarges every image by the factor, after the augmentation."""
        def transform(image):
            small = [int(side / blur_factor) for side in image.size]
            image_size = image.size
            return torchvision.transforms.Resize(image_size)(torchvision.transforms.Resize(small)(image))
        self._image_transforms.append(transform)

    def unsupervised_rotation(self, seed):
        """Replaces the labels by 0..3 and rotates each image accordingly.

        OpenLTH compatibility: the angle is uniformly random in [-90 * label, 90 * label], not 90 * label.
        """
        self._labels = np.random.RandomState(seed=seed).randint(4, size=len(self._labels))

        def transform(image, label):
            return torchvision.transforms.RandomRotation(label * 90)(image), label
        self._joint_image_transforms.append(transform)

    def __getitem__(self, index):
        if self._composed is None:
            self._composed = torchvision.transforms.Compose(
                self._image_transforms + [torchvision.transforms.ToTensor()] + self._tensor_transforms)
        example, label = self._examples[index], self._labels[index]
        image = self.example_to_image(example)
        for transform in self._joint_image_transforms:
            image, label = transform(image, label)
        image = self._composed(image)
        for transform in self._joint_tensor_transforms:
            image, label = transform(image, label)
        return image, label


class ShuffleSampler(torch.utils.data.sampler.Sampler):
    """0..n-1 in order until `shuffle_dataorder` is called; then in random order, new for each epoch."""

    def __init__(self, num_examples):
        self._num_examples = num_examples
        self._shuffled = False
        self._seed = None

    def shuffle_dataorder(self, seed=None):
        """None draws the order from the global generator; a seed fixes it."""
        self._shuffled = True
        self._seed = seed

    def order(self):
        """The indices of this epoch (int64, shape [n])."""
        if not self._shuffled:
            return torch.arange(self._num_examples)
        if self._seed is None:
            return torch.randperm(self._num_examples)
        return torch.randperm(self._num_examples, generator=torch.Generator().manual_seed(self._seed))

    def __iter__(self):
        return iter(self.order().tolist())

    def __len__(self):
        return self._num_examples


class DistributedShuffleSampler(ShuffleSampler):
    """Every rank serves its stride of one order, which all ranks share (the global generators are seeded alike)."""

    def order(self):
        platform = get_platform()
        return super().order()[platform.rank::platform.world_size]

    def __len__(self):
        platform = get_platform()
        return len(range(platform.rank, self._num_examples, platform.world_size))


class DataLoader(torch.utils.data.DataLoader):
    """Batches made image by image, in this process or in worker processes. The last, smaller batch is kept."""

    def __init__(self, dataset, batch_size, num_workers, pin_memory=True):
        platform = get_platform()
        if platform.is_distributed:
            sampler = DistributedShuffleSampler(len(dataset))
            batch_size //= platform.world_size
            num_workers //= platform.world_size
        else:
            sampler = ShuffleSampler(len(dataset))
        self._iterations_per_epoch = math.ceil(len(dataset) / (batch_size * platform.world_size))
        self.epoch_start_rng_state = None
        super().__init__(dataset, batch_size, sampler=sampler, num_workers=num_workers,
                         pin_memory=pin_memory and platform.torch_device.type == 'cuda')

    def shuffle(self, seed):
        self.sampler.shuffle_dataorder(seed)

    @property
    def iterations_per_epoch(self):
        return self._iterations_per_epoch

    def __iter__(self):
        # What a run must restore to serve this very epoch again.
        self.epoch_start_rng_state = rng.get_rng_state()
        return super().__iter__()
