"""Where runs live and what they run on. Every file access of the engine goes through a platform."""

import abc
import contextlib
from dataclasses import dataclass
import io
import os

from open_lth.foundations.errors import CorruptFileError, UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.hparams import Hparams
from open_lth.platforms import platform as platform_module


@dataclass
class Platform(Hparams):
    num_workers: int = 0
    global_seed: int = None

    _name: str = 'Platform Hyperparameters'
    _description: str = 'Where the job runs. None of these is part of a run name.'
    _num_workers: str = 'The number of worker processes for loading data. 0 keeps data sets that fit in memory.'
    _global_seed: str = 'Seeds every random generator once, at the start of the command. ' \
        'Without it the seed is derived from the run name and the replicate.'

    @classmethod
    def add_args(cls, parser, *args, **kwargs):
        super().add_args(parser, *args, **kwargs)
        # A branch with a --seed of its own takes this short name over; --global_seed always works.
        parser.add_argument('--seed', type=int, dest='global_seed', help='(optional: int) Short for --global_seed.')

    def __post_init__(self):
        super().__post_init__()
        if self.num_workers < 0:
            raise UserError(f'--num_workers must be 0 or more, not {self.num_workers}')
        if not 0 <= (self.global_seed or 0) < 2**63:
            raise UserError(f'--seed must be in [0, 2^63), not {self.global_seed}')

    # Devices and processes.

    @property
    def device_str(self):
        """'cuda:0' when there is a GPU, else 'cpu'. More GPUs take part through `is_parallel`."""
        import torch
        return 'cuda:0' if torch.cuda.is_available() else 'cpu'

    @property
    def torch_device(self):
        import torch
        return torch.device(self.device_str)

    @property
    def is_parallel(self):
        import torch
        return torch.cuda.is_available() and torch.cuda.device_count() > 1

    @property
    def is_distributed(self):
        return False

    @property
    def rank(self):
        return 0

    @property
    def world_size(self):
        return 1

    @property
    def is_primary_process(self):
        return not self.is_distributed or self.rank == 0

    def barrier(self):
        """Waits for the other processes of a distributed platform."""

    # Folders.

    @property
    @abc.abstractmethod
    def root(self):
        """The folder of all runs."""

    @property
    @abc.abstractmethod
    def dataset_root(self):
        """The folder of downloaded data sets."""

    @property
    @abc.abstractmethod
    def imagenet_root(self):
        """The folder holding ImageNet's train/ and val/."""

    # Files.

    @staticmethod
    def open(file, mode='r'):
        """As the builtin; a file opened for writing ('w', 'wb') appears only when closed without an error."""
        return write_atomically(file, mode) if mode in ('w', 'wb') else open(file, mode)

    @staticmethod
    def exists(file):
        return os.path.exists(file)

    @staticmethod
    def makedirs(path):
        return os.makedirs(path, exist_ok=True)

    @staticmethod
    def isdir(path):
        return os.path.isdir(path)

    @staticmethod
    def listdir(path):
        return os.listdir(path)

    @staticmethod
    def save_model(obj, path, *args, **kwargs):
        import torch
        buffer = io.BytesIO()  # torch, writing to a file itself, turns a full disk into an obscure error
        torch.save(obj, buffer, *args, **kwargs)
        with write_atomically(path, 'wb') as fp:
            fp.write(buffer.getbuffer())

    @staticmethod
    def load_model(path, *args, **kwargs):
        """Reads a file of tensors and plain data; nothing else is unpickled.

        Raises FileNotFoundError when there is none, CorruptFileError when it is not such a file.
        """
        import torch
        with open(path, 'rb') as fp:
            try:
                with torch.serialization.safe_globals(_numpy_scalars()):
                    return torch.load(fp, *args, weights_only=True, **kwargs)
            except Exception as e:  # torch raises many types for a damaged file; all mean the same to the user
                reason = (str(e).strip() or type(e).__name__).splitlines()[0]
                raise CorruptFileError(f'{path} is damaged or is not a torch file of tensors ({reason}). '
                                       'Restore it, or delete it to have it made again.') from e

    def run_job(self, f):
        """Calls f with this platform in force."""
        with self.in_force():
            f()

    @contextlib.contextmanager
    def in_force(self):
        previous = platform_module._PLATFORM
        platform_module._PLATFORM = self
        try:
            yield
        finally:
            platform_module._PLATFORM = previous


def _numpy_scalars():
    """What OpenLTH's checkpoints hold besides tensors: numpy integers (ep, it) and floats (lr)."""
    import numpy as np
    scalar = np.int64(0).__reduce__()[0]
    return [(scalar, 'numpy.core.multiarray.scalar'), (scalar, 'numpy._core.multiarray.scalar'), np.dtype,
            type(np.dtype(np.int64)), type(np.dtype(np.float64)), type(np.dtype(np.float32))]
