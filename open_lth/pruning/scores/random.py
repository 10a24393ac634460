"""Random pruning, the baseline of every other score."""

import torch


def score(model, loader, *, seed):
    """Uniform in [0, 1): the i-th prunable tensor, in sorted order of the names, has the seed `seed` + i."""
    state = model.state_dict()
    return {name: torch.rand(state[name].shape, generator=torch.Generator().manual_seed(seed + i))
            for i, name in enumerate(sorted(model.prunable_layer_names))}
