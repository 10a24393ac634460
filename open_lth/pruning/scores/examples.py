"""The few training examples that data-dependent scores look at."""

import copy

import numpy as np
import torch

from open_lth.datasets import registry as datasets_registry
from open_lth.datasets.base import DataLoader

_IMAGENET_BATCH_SIZE = 256


def select(dataset_hparams, per_class, seed):
    """A loader of the first `per_class` examples of each class (or all there are) in a random order of the data.

    No augmentation; both orders are fixed by the seed.
    """
    hparams = copy.deepcopy(dataset_hparams)
    hparams.do_not_augment = True
    dataset = datasets_registry.get(hparams, train=True).dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).numpy()
    torch.empty((), dtype=torch.int64).random_()  # OpenLTH compatibility: the pass over the data took this draw

    labels = dataset._labels[order]
    by_label = np.argsort(labels, kind='stable')
    counts = np.bincount(labels)
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.sort(order[by_label[rank_in_class < per_class]])
    dataset._examples, dataset._labels = dataset._examples[chosen], dataset._labels[chosen]

    batch_size = _IMAGENET_BATCH_SIZE if hparams.dataset_name == 'imagenet' else hparams.batch_size
    loader = DataLoader(dataset, batch_size, num_workers=0, pin_memory=False)
    loader.shuffle(seed)
    return loader
