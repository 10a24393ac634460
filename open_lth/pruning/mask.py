"""Which weights stay: tensor name -> tensor of 1 (kept) and 0 (pruned)."""

import json

import numpy as np
import torch

from open_lth.foundations import paths
from open_lth.foundations.errors import CorruptFileError
from open_lth.platforms.platform import get_platform


class Mask(dict):
    def __init__(self, other_dict=None):
        super().__init__()
        for key, value in (other_dict or {}).items():
            self[key] = value

    def __setitem__(self, key, value):
        """Accepts tensors and numpy arrays of zeros and ones; ValueError for anything else."""
        if not isinstance(key, str) or not key:
            raise ValueError(f'invalid tensor name: {key!r}')
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(value)
        if not isinstance(value, torch.Tensor):
            raise ValueError(f'the mask of {key} must be a tensor, not {type(value).__name__}')
        if not bool(((value == 0) | (value == 1)).all()):
            raise ValueError(f'the mask of {key} has entries other than 0 and 1')
        super().__setitem__(key, value)

    @staticmethod
    def ones_like(model):
        """Keeps every prunable weight (float32)."""
        state = model.state_dict()
        return Mask({name: torch.ones(state[name].shape) for name in model.prunable_layer_names})

    def numpy(self):
        return {name: tensor.cpu().numpy() for name, tensor in self.items()}

    @property
    def sparsity(self):
        """The fraction of weights pruned, a float32 scalar tensor."""
        total = torch.tensor(float(self.num_total))
        kept = sum(torch.sum(tensor, dtype=torch.float32).cpu() for tensor in self.values())
        return 1 - kept / total

    @property
    def density(self):
        """The fraction of weights kept."""
        return 1 - self.sparsity

    @property
    def num_total(self):
        return sum(tensor.numel() for tensor in self.values())

    @property
    def num_kept(self):
        return sum(int(torch.count_nonzero(tensor)) for tensor in self.values())

    def save(self, output_location):
        """Writes the sparsity report, then the mask (primary process only)."""
        platform = get_platform()
        if not platform.is_primary_process:
            return
        platform.makedirs(output_location)
        with platform.open(paths.sparsity_report(output_location), 'w') as fp:
            fp.write(json.dumps({'total': float(self.num_total), 'unpruned': float(self.num_kept)}, indent=4))
        platform.save_model({name: tensor.cpu().int() for name, tensor in self.items()},
                            paths.mask(output_location))

    @staticmethod
    def load(output_location):
        """ValueError when there is none, CorruptFileError when it is not a mask."""
        if not Mask.exists(output_location):
            raise ValueError(f'mask not found: {paths.mask(output_location)}')
        path = paths.mask(output_location)
        loaded = get_platform().load_model(path, map_location=torch.device('cpu'))
        try:
            return Mask(loaded)
        except (ValueError, AttributeError, TypeError) as e:
            raise CorruptFileError(f'{path} is not a mask ({e}). Restore it, or delete it.') from e

    @staticmethod
    def exists(output_location):
        return get_platform().exists(paths.mask(output_location))
