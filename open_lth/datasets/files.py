"""Finding and reading the files of MNIST-like and CIFAR-like data sets."""

import contextlib
import gzip
import io
import os
import pickle
import struct
import zlib

import numpy as np

from open_lth.foundations.errors import CorruptFileError, UserError
from open_lth.platforms.platform import get_platform


def find_or_download(folders, names, download, what, where_to_get):
    """The first of `folders` holding all `names` (each plain or with .gz); else the first one after `download()`.

    Raises UserError, which names files, folder and source, when there is none and the download fails.
    """
    platform = get_platform()

    def holds_all(folder):
        return all(platform.exists(os.path.join(folder, name)) or platform.exists(os.path.join(folder, f'{name}.gz'))
                   for name in names)

    def found():
        return next((folder for folder in folders if holds_all(folder)), None)

    if found() is None and platform.is_primary_process:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                download()
        except Exception as e:  # whatever a network can do
            raise UserError(f'{what}: no {names[0]} in {folders[0]}, and it could not be downloaded '
                            f'({(str(e) or type(e).__name__).splitlines()[0]}). {where_to_get}') from e
    platform.barrier()
    folder = found()
    if folder is None:
        raise UserError(f'{what}: {folders[0]} lacks one of {", ".join(names)}. {where_to_get}')
    return folder


def read_idx(folder, name):
    """The uint8 array in an IDX file (MNIST's format), plain or gzipped."""
    platform = get_platform()
    path = os.path.join(folder, name)
    if not platform.exists(path):
        path += '.gz'
    try:
        with platform.open(path, 'rb') as fp:
            data = fp.read()
        if path.endswith('.gz'):
            data = gzip.decompress(data)
        zeros, dtype, num_dimensions = struct.unpack('>HBB', data[:4])
        shape = struct.unpack(f'>{num_dimensions}I', data[4:4 + 4 * num_dimensions])
        if zeros != 0 or dtype != 0x08:
            raise ValueError('not an IDX file of bytes')
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape).copy()
    except (ValueError, EOFError, struct.error, gzip.BadGzipFile, zlib.error) as e:
        raise CorruptFileError(f'{path} is damaged ({e}). Delete it and get it again.') from e


class _ArraysOnly(pickle.Unpickler):
    """CIFAR-10's files are pickles; nothing but numpy arrays and plain data is made from them."""

    _ALLOWED = {('numpy.core.multiarray', '_reconstruct'), ('numpy._core.multiarray', '_reconstruct'),
                ('numpy._core.numeric', '_frombuffer'), ('numpy.core.numeric', '_frombuffer'),
                ('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')}

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f'it wants to run {module}.{name}')
        return super().find_class(module, name)


def read_cifar_batch(path):
    """(images, labels) of a CIFAR-10 batch file: uint8 [n, 32, 32, 3] and int64 [n]."""
    try:
        with get_platform().open(path, 'rb') as fp:
            batch = _ArraysOnly(fp, encoding='latin1').load()
        images = np.asarray(batch['data'], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(batch['labels'], np.int64)
        if len(images) != len(labels):
            raise ValueError(f'{len(images)} images but {len(labels)} labels')
        return images, labels
    except OSError:
        raise
    except Exception as e:  # a damaged pickle can raise anything
        raise CorruptFileError(f'{path} is damaged or not a CIFAR-10 batch ({e}). Delete it and get it again.') from e
