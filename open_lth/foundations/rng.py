"""The state of every global random generator: seeded once, saved with each checkpoint and each finished stage."""

import contextlib
import hashlib
import random

import numpy as np
import torch


def seed_everything(seed):
    """Seeds torch (all devices), numpy and Python. Draws from torch equal those after `torch.manual_seed(seed)`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def derive_seed(*names):
    """A 31-bit seed that depends on the names only."""
    return int.from_bytes(hashlib.sha256('/'.join(map(str, names)).encode()).digest()[:4], 'big') >> 1


def get_rng_state():
    """The generators' state as plain data and tensors, loadable with `weights_only=True`."""
    algorithm, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        'numpy': [algorithm, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached_gaussian],
        'python': random.getstate(),
    }


def set_rng_state(state):
    """The inverse of `get_rng_state`."""
    torch.set_rng_state(state['torch'])
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])
    algorithm, keys, position, has_gauss, cached_gaussian = state['numpy']
    np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, cached_gaussian))
    version, internal, gauss_next = state['python']
    random.setstate((version, tuple(internal), gauss_next))


@contextlib.contextmanager
def preserve_rng_state():
    """Whatever the block draws, the generators are left as they were found."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
