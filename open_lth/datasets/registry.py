"""Data sets by name, transformed as their hyperparameters say."""

import math

from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import check_fraction
from open_lth.foundations.lazy import LazyRegistry
from open_lth.platforms.platform import get_platform

registered_datasets = LazyRegistry({
    name: f'open_lth.datasets.{name}:'
    for name in ('cifar10', 'mnist', 'imagenet', 'fashion_mnist', 'fashion_mnist_32', 'digits', 'tinyimagenet',
                 'tinyimagenet2')})


def get(dataset_hparams, train=True):
    """The loader of the training or test set; UserError for unknown names or impossible values."""
    from open_lth.datasets import in_memory
    validate(dataset_hparams)
    dataset_class = _dataset_class(dataset_hparams)
    seed = dataset_hparams.transformation_seed or 0
    if train:
        dataset = dataset_class.get_train_set(not dataset_hparams.do_not_augment)
        # OpenLTH compatibility: labels first, then the subsample, both from one permutation (see Dataset.subsample).
        if dataset_hparams.random_labels_fraction is not None:
            dataset.randomize_labels(seed=seed, fraction=dataset_hparams.random_labels_fraction)
        if dataset_hparams.subsample_fraction is not None:
            dataset.subsample(seed=seed, fraction=dataset_hparams.subsample_fraction)
        if dataset_hparams.blur_factor is not None:
            _require_images(dataset, 'blur_factor')
            dataset.blur(dataset_hparams.blur_factor)
    else:
        dataset = dataset_class.get_test_set()
    if dataset_hparams.unsupervised_labels is not None:
        _require_images(dataset, 'unsupervised_labels')
        dataset.unsupervised_rotation(seed=seed)

    platform = get_platform()
    if platform.num_workers == 0 and not platform.is_distributed and in_memory.supports(dataset):
        return in_memory.DataLoader(dataset, dataset_hparams.batch_size)
    module = registered_datasets[dataset_hparams.dataset_name]
    return module.DataLoader(dataset, dataset_hparams.batch_size, platform.num_workers)


def image_shape(dataset_hparams):
    """(channels, height, width) of the images served, or None where it is not known without the data."""
    validate(dataset_hparams)
    return getattr(_dataset_class(dataset_hparams), 'IMAGE_SHAPE', None)


def find(dataset_hparams):
    """Raises UserError unless the data are on this machine or can be downloaded now; reads no images."""
    validate(dataset_hparams)
    _dataset_class(dataset_hparams).find()


def iterations_per_epoch(dataset_hparams):
    """From the data set's nominal size, so that it is known without the data."""
    validate(dataset_hparams)
    num_train_examples = _dataset_class(dataset_hparams).num_train_examples()
    if dataset_hparams.subsample_fraction is not None:
        num_train_examples *= dataset_hparams.subsample_fraction
    return math.ceil(num_train_examples / dataset_hparams.batch_size)


def num_classes(dataset_hparams):
    """The data set's, or 4 for the rotation task."""
    validate(dataset_hparams)
    return 4 if dataset_hparams.unsupervised_labels == 'rotation' else _dataset_class(dataset_hparams).num_classes()


def validate(dataset_hparams):
    """Raises UserError for an unknown data set or a value out of range; reads no data."""
    if dataset_hparams.dataset_name not in registered_datasets:
        raise UserError(f'no such dataset: {dataset_hparams.dataset_name}. '
                        f'Known: {", ".join(sorted(registered_datasets))}')
    if dataset_hparams.batch_size < 1:
        raise UserError(f'--batch_size must be at least 1, not {dataset_hparams.batch_size}')
    check_fraction(dataset_hparams, 'random_labels_fraction')
    check_fraction(dataset_hparams, 'subsample_fraction')
    if dataset_hparams.subsample_fraction == 0:
        raise UserError('--subsample_fraction=0 leaves no examples')
    if dataset_hparams.unsupervised_labels not in (None, 'rotation'):
        raise UserError(f"no such unsupervised labels: {dataset_hparams.unsupervised_labels}. Known: rotation")
    if not 0 <= (dataset_hparams.transformation_seed or 0) < 2**32 - 1:
        raise UserError(f'--transformation_seed must be in [0, 2^32 - 2], not {dataset_hparams.transformation_seed}')
    if dataset_hparams.blur_factor is not None and dataset_hparams.blur_factor < 1:
        raise UserError(f'--blur_factor must be at least 1, not {dataset_hparams.blur_factor}')


def _dataset_class(dataset_hparams):
    return registered_datasets[dataset_hparams.dataset_name].Dataset


def _require_images(dataset, flag):
    from open_lth.datasets import base
    if not isinstance(dataset, base.ImageDataset):
        raise UserError(f'--{flag} needs a data set of images')
