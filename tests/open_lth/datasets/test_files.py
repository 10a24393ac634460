"""Where data are found, and what is said when they are not, or are damaged."""

import gzip
import io
import pickle
import struct
import sys

import numpy as np
import pytest
import torch

from open_lth.datasets import registry
from open_lth.foundations.hparams import DatasetHparams
from tests.conftest import IDX_FILES, cifar_batch, make_platform, write_cifar
from tests.helpers import needs_fashion


def idx(array):
    return (
        struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_idx_files(folder, compressed=False):
    """Six training and four test images in MNIST's format."""

    folder.mkdir(parents=True)
    for name in IDX_FILES:
        size = 6 if name.startswith('train') else 4
        array = np.arange(size * 784).reshape(size, 28, 28) if 'images' in name else np.arange(size)
        content = idx(array)
        if compressed:
            (folder / f'{name}.gz').write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def read(name, dataset_root, train=True):
    """All images and labels that the registry serves."""

    batches = []
    hparams = DatasetHparams(name, 100, do_not_augment=True)
    make_platform(dataset_root=dataset_root).run_job(
        lambda: batches.extend(registry.get(hparams, train)))
    return tuple(torch.cat(parts) for parts in zip(*batches))


@pytest.mark.parametrize(
    'name, folder', [('mnist', 'mnist/MNIST/raw'), ('fashion_mnist', 'fashion_mnist/FashionMNIST/raw')]
)
@pytest.mark.parametrize('compressed', [False, True])
def test_idx_files_plain_or_compressed(tmp_path, name, folder, compressed):
    write_idx_files(tmp_path / folder, compressed)
    images, labels = read(name, tmp_path)
    assert images.shape == (6, 1, 28, 28) and labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert read(name, tmp_path, train=False)[0].shape == (4, 1, 28, 28)


@needs_fashion
def test_fashion_mnist_of_debian_is_found_without_a_dataset_root(tmp_path):
    images, labels = read('fashion_mnist', tmp_path / 'absent')
    assert images.shape == (60000, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [6000] * 10
    assert abs(images.mean()) < 1e-3 and images.std() == pytest.approx(1, abs=1e-3), (
        'normalised by its own constants'
    )


def test_a_small_file_of_cifar10s_format(tmp_path):
    write_cifar(tmp_path, [cifar_batch(number, 5) for number in range(6)])
    images, labels = read('cifar10', tmp_path)
    assert images.shape == (25, 3, 32, 32)
    batch = cifar_batch(1, 5)
    assert labels[:5].tolist() == batch['labels']
    pixel = torch.tensor(batch['data'][0].reshape(3, 32, 32)[:, 0, 1] / 255)
    expected = (pixel - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(images[0, :, 0, 1].double(), expected.double(), atol=1e-6)


@pytest.mark.parametrize('name, file, folder', [
    ('mnist', 'train-images-idx3-ubyte', 'mnist/MNIST/raw'),
    ('cifar10', 'data_batch_1', 'cifar10/cifar-10-batches-py')])
def test_absent_data_name_file_folder_and_source(tmp_path, name, file, folder):
    with pytest.raises(ValueError) as error:
        read(name, tmp_path)
    message = str(error.value)
    assert file in message and str(tmp_path / folder) in message and '--dataset_root' in message


def test_a_failed_download_leaves_the_streams_alone(tmp_path, monkeypatch):
    """Fixed: OpenLTH resets them to the interpreter's own, which breaks a redirection."""

    monkeypatch.setattr(sys, 'stdout', io.StringIO())
    stream = sys.stdout
    with pytest.raises(ValueError):
        read('cifar10', tmp_path)
    assert sys.stdout is stream and stream.getvalue() == ''


@pytest.mark.parametrize('damage', [b'', b'\0\0', b'\0\0\x08\x03\0\0', b'rubbish' * 20])
def test_damaged_idx_file_is_named(tmp_path, damage):
    folder = tmp_path / 'mnist' / 'MNIST' / 'raw'
    write_idx_files(folder)
    (folder / 'train-images-idx3-ubyte').write_bytes(damage)
    with pytest.raises(ValueError, match='train-images-idx3-ubyte'):
        read('mnist', tmp_path)


def test_truncated_compressed_idx_file_is_named(tmp_path):
    folder = tmp_path / 'mnist' / 'MNIST' / 'raw'
    write_idx_files(folder, compressed=True)
    path = folder / 'train-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match='train-images-idx3-ubyte.gz'):
        read('mnist', tmp_path)


def test_idx_file_that_declares_more_than_it_holds(tmp_path):
    folder = tmp_path / 'mnist' / 'MNIST' / 'raw'
    write_idx_files(folder)
    (folder / 'train-images-idx3-ubyte').write_bytes(
        struct.pack('>HBB3I', 0, 8, 3, 2**31, 2**31, 2**31) + b'x'
    )
    with pytest.raises(ValueError, match='train-images-idx3-ubyte'):
        read('mnist', tmp_path)


class RunsCode:
    """Unpickled by a careless reader, it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize('damage', ['truncated', 'missing key', 'rubbish', 'runs code'])
def test_damaged_cifar_file_is_named_and_runs_nothing(tmp_path, damage):
    folder = write_cifar(tmp_path, [cifar_batch(number, 5) for number in range(6)])
    path = folder / 'data_batch_3'
    content = {
        'truncated': path.read_bytes()[:-50],
        'missing key': pickle.dumps({'labels': [1]}),
        'rubbish': b'hello',
        'runs code': pickle.dumps({'data': RunsCode(tmp_path / 'written'), 'labels': [1]}),
    }[damage]
    path.write_bytes(content)
    with pytest.raises(ValueError, match='data_batch_3'):
        read('cifar10', tmp_path)
    assert not (tmp_path / 'written').exists()
