"""Files appear whole or not at all: written under a temporary name in the same folder, flushed, then renamed."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def write_atomically(path, mode='w'):
    """Yields a file object; `path` changes only when the block ends without an exception.

    A reader, and a run killed at any moment, sees the old file or the new one. Raises OSError (disk full,
    folder not writable) with the old file intact and no temporary file left.
    """
    directory, name = os.path.split(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=f'.{name}.', suffix='.tmp', dir=directory)
    try:
        with open(descriptor, mode) as fp:
            yield fp
            fp.flush()
            os.fsync(fp.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
    _sync_directory(directory)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory):
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
