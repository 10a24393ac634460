"""Fixtures for all tests: a home of their own, no network, one thread, and the data of the golden runs."""

import gzip
import os
import pickle
import shutil
import socket
from unittest import mock

import numpy as np
from PIL import Image
import pytest
import torch

from tests.helpers import FASHION

IDX_FILES = (
    'train-images-idx3-ubyte',
    'train-labels-idx1-ubyte',
    't10k-images-idx3-ubyte',
    't10k-labels-idx1-ubyte',
)


@pytest.fixture(scope='session', autouse=True)
def single_thread():
    """The golden runs used one thread; sums in another order have other last bits."""

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def hermetic(monkeypatch, tmp_path_factory):
    """No test reads the user's folders or settings, nor opens a connection."""

    monkeypatch.setenv('HOME', str(tmp_path_factory.getbasetemp() / 'home'))
    for name in ('ROOT', 'DATASET_ROOT', 'IMAGENET_ROOT', 'TINYIMAGENET_ROOT'):
        monkeypatch.delenv(f'OPEN_LTH_{name}', raising=False)
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        raise OSError(f'no network in tests: {address}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


@pytest.fixture(scope='session', autouse=True)
def no_waiting_for_the_disk():
    """Nobody pulls the plug on a test. That files are synced at all: open_lth/foundations/test_files.py."""

    with mock.patch.object(os, 'fsync', lambda descriptor: None):
        yield


@pytest.fixture(autouse=True)
def no_platform_left_over():
    """The platform is a global of the process: each test starts and ends without one."""

    from open_lth.platforms import platform
    platform._PLATFORM = None
    yield
    platform._PLATFORM = None


@pytest.fixture(autouse=True)
def no_extension_left_over():
    """The registries are globals of the process: each test ends with the entries that it began with."""

    from open_lth.cli import runner_registry
    from open_lth.lottery.branch import registry as lottery_branches
    from open_lth.pruning import registry as strategies
    from open_lth.training.branch import registry as train_branches
    registries = (runner_registry.registered_runners, runner_registry.DESCRIPTIONS,
                  lottery_branches.registered_branches, train_branches.registered_branches,
                  strategies.registered_strategies)
    before = [dict.copy(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def local_platform(tmp_path):
    """A local platform on an empty root, installed for the test."""

    from open_lth.platforms import platform
    platform._PLATFORM = make_platform(root=tmp_path / 'root')
    return platform._PLATFORM


@pytest.fixture
def root(tmp_path):
    """An empty run root."""

    return tmp_path / 'root'


@pytest.fixture(scope='session')
def fashion_as_mnist(tmp_path_factory):
    """A dataset root whose `mnist` is Fashion-MNIST, unzipped: the idx files of both have the same names."""

    if not FASHION.is_dir():
        pytest.skip(f'{FASHION} is absent: install the package dataset-fashion-mnist')
    dataset_root = tmp_path_factory.mktemp('fashion_as_mnist')
    raw = dataset_root / 'mnist' / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    for name in IDX_FILES:
        with gzip.open(FASHION / f'{name}.gz') as packed, open(raw / name, 'wb') as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return dataset_root


def cifar_batch(number, size=10000):
    """Batch `number` (0 = test) of the synthetic CIFAR-10 of tests/golden/README.md, cut to a size."""

    data = np.random.RandomState(100 + number).randint(0, 256, size=(10000, 3072)).astype(np.uint8)
    labels = np.random.RandomState(200 + number).randint(0, 10, size=10000).tolist()
    return {'data': data[:size], 'labels': labels[:size]}


def write_cifar(dataset_root, batches):
    """Writes CIFAR-10's own files: batches[0] is the test batch."""

    folder = dataset_root / 'cifar10' / 'cifar-10-batches-py'
    folder.mkdir(parents=True)
    for number, batch in enumerate(batches):
        name = f'data_batch_{number}' if number else 'test_batch'
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {'label_names': [f'class {k}' for k in range(10)], 'num_cases_per_batch': 10000, 'num_vis': 3072}
    (folder / 'batches.meta').write_bytes(pickle.dumps(meta))
    return folder


@pytest.fixture(scope='session')
def synthetic_cifar(tmp_path_factory):
    """A dataset root with synthetic CIFAR-10: 50,000 and 10,000 images."""

    dataset_root = tmp_path_factory.mktemp('cifar')
    write_cifar(dataset_root, [cifar_batch(number) for number in range(6)])
    return dataset_root


@pytest.fixture(scope='session')
def synthetic_cifar_test256(synthetic_cifar, tmp_path_factory):
    """As synthetic_cifar, its test batch cut to 256 images, as in the golden end-to-end runs."""

    dataset_root = tmp_path_factory.mktemp('cifar_test256')
    folder = write_cifar(dataset_root, [cifar_batch(0, 256)])
    for number in range(1, 6):
        name = f'data_batch_{number}'
        (folder / name).symlink_to(synthetic_cifar / 'cifar10' / 'cifar-10-batches-py' / name)
    return dataset_root


@pytest.fixture(scope='session')
def tiny_imagenet(tmp_path_factory):
    """The Tiny ImageNet stand-in of tests/golden/README.md: 3 classes of 4 images, 4 test images."""

    folder = tmp_path_factory.mktemp('tiny-imagenet-200')
    number = 0
    for name in ('n03', 'n01', 'n02'):
        images = folder / 'train' / name / 'images'
        images.mkdir(parents=True)
        (images.parent / f'{name}_boxes.txt').write_text('0 0 64 64\n')
        for i in range(4):
            save_noise(images / f'{name}_{i}.JPEG', seed=number)
            number += 1
    images = folder / 'val' / 'images'
    images.mkdir(parents=True)
    for i in range(4):
        save_noise(images / f'val_{i}.JPEG', seed=100 + i)
    rows = [f'val_{i}.JPEG\t{name}\t0\t0\t62\t62' for i, name in enumerate(('n02', 'n01', 'n03', 'n02'))]
    (folder / 'val' / 'val_annotations.txt').write_text('\n'.join(rows) + '\n\n')
    return folder


def save_noise(path, seed):
    pixels = np.random.RandomState(seed).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format='PNG')


def make_platform(**fields):
    """A local platform; its flags are given as keywords."""

    from open_lth.platforms.registry import get
    fields = {name: str(value) if name.endswith('root') else value for name, value in fields.items()}
    return get('local')(**fields)
