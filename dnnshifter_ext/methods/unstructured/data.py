"""The training examples that scores look at: not augmented, in a random order that the seed fixes."""

from __future__ import annotations

from dataclasses import replace
import itertools

import torch

from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.hparams import DatasetHparams
from open_lth.pruning.scores import examples

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def mini_batches(dataset_hparams: DatasetHparams, num: int, seed: int) -> Batches:
    """The first `num` mini-batches of an epoch (all, if it has fewer), of the size that training uses."""
    loader = datasets_registry.get(replace(dataset_hparams, do_not_augment=True), train=True)
    loader.shuffle(seed)
    return list(itertools.islice(loader, num))


def per_class(dataset_hparams: DatasetHparams, num: int, seed: int, batch_size: int | None = None) -> Batches:
    """`num` examples of each class, in batches of batch_size or, without one, of the size that training uses."""
    if batch_size is not None:
        dataset_hparams = replace(dataset_hparams, batch_size=batch_size)
    return list(examples.select(dataset_hparams, num, seed))
